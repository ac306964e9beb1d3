r"""Data tempering: from draws that stand for a prior to the posterior, at clock 0.

$\gamma_\beta \propto p(z)\, p(y \mid z)^\beta$ with $\beta$ from 0 to 1. Over the bridge of `bridge.grown`
the prior is the posterior given old data, and the likelihood what new data add. Over that of
`bridge.proposed` it is a proposal, and the likelihood the ratio of the joint density to it.
"""

from typing import ClassVar

import equinox as eqx

from .. import _faq
from ..bridge import Bridge
from ..smc import Claims
from ..smc.moves import hmc
from .checks import check_choices
from .kernels import Kernels
from .levels import Level
from .path import Path, prior_first
from .settings import MOVES, PILOT, Moves, Pilot
from .transport import Carry
from .tuned import TunedScheme

__all__ = ["DataTempered"]

_MOVES, _PILOT = MOVES.but(Moves(hmc(4), 3)), PILOT.but(Pilot(conditional_ess=0.5))


class DataTempered(TunedScheme):
    r"""Reweigh, resample and move a cloud from one posterior to the next.

    What `SMC.update` runs, from the old posterior to the new one; and `SMC(initial=proposal)`, from a
    proposal to the posterior.

    Particles are weighed by the new density over the old one; where that leaves too little of the effective
    sample size, in several steps of a power that rises to 1. Every step but the first begins with moves, and
    the last one has no weights. Over a bridge of a prior with exact draws it is likelihood tempering.

    Attributes:
        moves: Within the levels; a number alone is that of joint moves, a move alone the joint one.
        levels: `None` for the pilot's choice, or the frozen levels of an earlier run.
        pilot: The cloud that chooses levels and step sizes; a number stands for so many particles.

    References:
        Chopin (2002), A sequential particle filter method for static models, Biometrika (IBIS).
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B.
    """

    moves: Moves = eqx.field(default=_MOVES, converter=_MOVES.but)
    levels: Level | None = None
    pilot: Pilot = eqx.field(default=_PILOT, converter=_PILOT.but)

    takes_proposals: ClassVar[bool] = True

    def __check_init__(self):
        if isinstance(self.levels, int):
            raise TypeError(
                "`levels` of `DataTempered` is `None` or frozen levels, since an even grid of noise "
                f"levels says nothing of the likelihood; got {self.levels}. {_faq.levels}"
            )
        check_choices(self, joint_moves=True, start=0.0)

    @property
    def path(self) -> Path:
        """The likelihood fades in at clock 0."""
        return prior_first

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge whose prior can be drawn from, or has a cloud."""
        if not bridge.exact_prior:
            raise ValueError(
                "`DataTempered` starts from draws of the prior, and the energy of this bridge has no exact "
                "ones. Start with `Annealed()` or `LikelihoodTempered()`; `SMC.update` goes on "
                f"from there. {_faq.exact_draws}"
            )
        return Kernels(bridge, self.moves, Carry(), from_prior=True)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence relative to the distribution that the draws are of.

        From a proposal, which is normalised, it holds the prior's normaliser unless that is known.
        """
        if bridge.proposal is not None:
            return Claims(bridge.target)
        return Claims(
            bridge.target, "p(y) under the distribution that was started from", normalized=True
        )
