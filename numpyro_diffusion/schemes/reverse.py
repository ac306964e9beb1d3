r"""Reverse-diffusion proposals weighted by the energy: exact with any number of levels.

Each level draws $u_s$ from a Gaussian reverse step that is guided by the likelihood, and weighs it by

$$w = \frac{\gamma_s(u_s)\, q(u_t \mid u_s)}{\gamma_t(u_t)\, M(u_s \mid u_t)},$$

with the noising $q$ as backward kernel (see `Reverse`). One network evaluation a level serves weight and
next proposal.
"""

from typing import ClassVar

import equinox as eqx

from .. import _faq
from .._arguments import plain
from ..bridge import Bridge
from ..energies import AbstractDenoiser
from ..smc import Claims
from ..twists import AbstractTwist, ByDimension
from .checks import check_choices, check_has_diffusion
from .covariance import AbstractCovariance, Diagonal
from .kernels import Kernels
from .levels import Level
from .path import Path, in_short_steps
from .proposals import Reverse
from .settings import MOVES, PILOT, Moves, Pilot
from .tuned import TunedScheme

__all__ = ["ReverseDiffusion"]

_MOVES = MOVES.but(1)


class ReverseDiffusion(TunedScheme):
    r"""Guided reverse-diffusion proposals with exact weights, and moves of the other sites.

    The weighted particles follow the posterior under $e^{-E(\cdot, t_{\min})}$ at any number of levels,
    whatever the error of the energy at the levels in between. The weights of one level vary with the
    dimension, so this is for tens of dimensions rather than thousands. Moves that leave each level's
    distribution invariant keep it going where the Gaussian step is a poor guide; with `moves=0` a level
    costs one network evaluation.

    Attributes:
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        covariance: What a draw knows of the second derivative of the log density: `Isotropic()`,
            `Diagonal()` or `Full()`, averaged over the pilot cloud, or that of every particle, `Local()`.
        inflation: Factor on the variance of a proposal. Above 1 it guards against rare huge weights when
            levels are few; it costs the same share of the particles at every level, however close.
        proposal: Of which distribution draws follow the score, in the place of the prior's own: an energy or
            denoiser, or one by diffusion site. `cfg(e1, e2, 2.0)` may propose for `cfg(e1, e2, 4.0)`.
        moves: Within the levels; a number alone is that of joint moves, a move alone the joint one.
        pilot: The cloud that chooses levels and step sizes; a number stands for so many particles.

    References:
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B. Thornton et al. (2025),
        arXiv 2502.12786.
    """

    levels: int | Level | None = eqx.field(default=None, converter=plain)
    covariance: AbstractCovariance = eqx.field(default_factory=Diagonal)
    inflation: float = 1.0
    proposal: AbstractDenoiser | dict[str, AbstractDenoiser] | None = None
    moves: Moves = eqx.field(default=_MOVES, converter=_MOVES.but)
    pilot: Pilot = eqx.field(default=PILOT, converter=PILOT.but)

    def __check_init__(self):
        check_choices(self, inflation=self.inflation)

    twist: ClassVar[AbstractTwist] = ByDimension()

    @property
    def path(self) -> Path:
        """The noise falls in steps that are not too long."""
        return in_short_steps

    def kernels(self, bridge: Bridge) -> Kernels:
        """Proposals and weights over a bridge, which must have a diffusion site."""
        check_has_diffusion(self, bridge)
        proposal = self.proposal
        if isinstance(proposal, AbstractDenoiser):
            if len(bridge.diffusion_sites) > 1:
                raise ValueError(
                    f"the model has diffusion sites {bridge.diffusion_sites}; `proposal` must say of which, "
                    f"as a dict by site. {_faq.names}"
                )
            proposal = dict.fromkeys(bridge.diffusion_sites, proposal)
        transport = Reverse(self.covariance, self.inflation, proposal)
        return Kernels(bridge, self.moves, transport)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence that holds the normaliser unless it is known."""
        return Claims(bridge.target)
