r"""Likelihood tempering: an SMC sampler from exact draws of the prior to the posterior.

Where the prior has exact draws the cloud starts from them; otherwise it is brought down from noise as in
`Annealed`, without a likelihood. Then the likelihood fades in,
$\gamma_\beta \propto e^{-E(x, t_{\min})}\, p(\theta)\, p(y \mid x, \theta)^\beta$ with $\beta$ from 0 to 1.
"""

from typing import ClassVar

import equinox as eqx

from .. import _faq
from .._arguments import check_counts, plain
from ..bridge import Bridge
from ..smc import Claims
from ..smc.moves import hmc
from ..twists import AbstractTwist, Identity
from .checks import check_choices
from .kernels import Kernels
from .levels import Level
from .path import Path, prior_first
from .settings import MOVES, PILOT, Moves, Pilot
from .transport import Carry, Draws
from .tuned import TunedScheme

__all__ = ["LikelihoodTempered"]

_MOVES, _PILOT = MOVES.but(Moves(hmc(4), 3)), PILOT.but(Pilot(conditional_ess=0.5))


class LikelihoodTempered(TunedScheme):
    r"""A cloud of the prior, then likelihood tempering at `t_min`, with steps chosen by a pilot.

    The evidence counts the weights of the second part only, so the prior's normaliser cancels: the
    energy need not be normalised. Modes keep the prior's weights until the data speak. The weak point:
    at `t_min` the moves meet the prior at its sharpest, and modes that few draws of the prior hit are
    found by few particles; `Annealed` is better when data are far more precise than the prior.

    Attributes:
        moves: Within the levels; a number alone is that of joint moves, a move alone the joint one.
            Steps are long here, so moves are too: four steps each.
        levels: `None` for the pilot's choice, or the frozen levels of an earlier run.
        pilot: The cloud that chooses levels and step sizes; a number stands for so many particles.
        exact_draws: Start from exact draws of the prior where its energy has them.
        num_draws: As many of them a particle, of which the likelihood chooses one (see `Draws`). Draws
            and likelihoods are cheap there, since no network is evaluated.

    References:
        Jasra, Stephens, Doucet & Tsagaris (2011), Inference for Lévy-driven stochastic volatility models
        via adaptive SMC, Scandinavian Journal of Statistics, for tempering with adaptive steps.
    """

    moves: Moves = eqx.field(default=_MOVES, converter=_MOVES.but)
    levels: Level | None = None
    pilot: Pilot = eqx.field(default=_PILOT, converter=_PILOT.but)
    exact_draws: bool = eqx.field(static=True, default=True)
    num_draws: int = eqx.field(static=True, converter=plain, default=16)

    def __check_init__(self):
        check_counts(self, num_draws=1)
        if isinstance(self.levels, int):
            raise TypeError(
                "`levels` of `LikelihoodTempered` is `None` or frozen levels, since an even grid of noise "
                f"levels says nothing of the likelihood; got {self.levels}. {_faq.levels}"
            )
        at_the_prior = isinstance(self.levels, Level) and float(self.levels.clock[0]) == 0
        check_choices(self, joint_moves=True, start=0.0 if at_the_prior else 1.0)

    twist: ClassVar[AbstractTwist] = Identity()  # the likelihood is silent at noisy levels

    @property
    def path(self) -> Path:
        """The noise falls under the prior, and then the likelihood fades in."""
        return prior_first

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        exact = self.exact_draws and bridge.exact_prior
        transport = Draws(self.num_draws) if exact else Carry()
        return Kernels(bridge, self.moves, transport, from_prior=exact)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence from which the prior's normaliser has dropped out."""
        evidence = "p(y) under the prior as normalised by its own cloud"
        return Claims(bridge.target, evidence, normalized=True)
