r"""Reverse-diffusion proposals weighted by the energy: exact with any number of levels.

Each level draws $u_s$ from a Gaussian reverse step that is guided by the likelihood, and weighs it by

$$w = \frac{\gamma_s(u_s)\, q(u_t \mid u_s)}{\gamma_t(u_t)\, M(u_s \mid u_t)},$$

with the noising $q$ as backward kernel (see `Reverse`). One network evaluation a level serves weight and
next proposal.
"""

from typing import ClassVar

import equinox as eqx

from .._arguments import plain
from ..bridge import Bridge
from ..energies import AbstractDenoiser
from ..smc import Claims
from ..smc.moves import Move, hmc, mala
from ..twists import AbstractTwist, ByDimension
from .checks import check_choices, check_has_diffusion
from .covariance import AbstractCovariance, Diagonal
from .kernels import Kernels
from .levels import Level
from .path import Path, in_short_steps
from .proposals import Reverse
from .tuned import TunedScheme, Tuning

__all__ = ["ReverseDiffusion"]


class ReverseDiffusion(TunedScheme):
    r"""Guided reverse-diffusion proposals with exact weights, and moves of the other sites.

    The weighted particles follow the posterior under $e^{-E(\cdot, t_{\min})}$ at any number of levels,
    whatever the error of the energy at the levels in between. The weights of one level vary with the
    dimension, so this is for tens of dimensions rather than thousands. Moves that leave each level's law
    invariant keep it going where the Gaussian step is a poor guide; with `num_moves=0` a level costs one
    network evaluation.

    Attributes:
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        covariance: What a draw knows of the second derivative of the log density: `Isotropic()`,
            `Diagonal()` or `Full()`, averaged over the pilot cloud, or that of every particle, `Local()`.
        inflation: Factor on the variance of a proposal. Above 1 it guards against rare huge weights when
            levels are few; it costs the same share of the particles at every level, however close.
        proposal: Of which law draws follow the score, in the place of the prior's own: an energy or
            denoiser, or one by diffusion site. `cfg(e1, e2, 2.0)` may propose for `cfg(e1, e2, 4.0)`.
        move: Joint move of all sites.
        num_moves: Joint moves a level, may be 0; `None` for the pilot's choice at each level, by their
            autocorrelation.
        other_move: Move of the non-diffusion sites; costs no network evaluation.
        num_other_moves: Such moves a level.
        conditional_ess: Share of the effective sample size that each level may keep, in (0, 1).
        preconditioner_rank: Directions along which coordinates move together that moves know of, beside
            the scale of every coordinate; the pilot measures them.
        num_pilot: Particles of the pilot cloud.
        max_levels: Give up, and say why, when the pilot needs more levels than this.

    References:
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B. Thornton et al. (2025),
        arXiv 2502.12786.
    """

    levels: int | Level | None = eqx.field(default=None, converter=plain)
    covariance: AbstractCovariance = eqx.field(default_factory=Diagonal)
    inflation: float = 1.0
    proposal: AbstractDenoiser | dict[str, AbstractDenoiser] | None = None
    move: Move = eqx.field(default_factory=hmc)
    num_moves: int | None = eqx.field(static=True, converter=plain, default=1)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, converter=plain, default=2)
    conditional_ess: float = eqx.field(static=True, default=0.97)
    preconditioner_rank: int = eqx.field(static=True, converter=plain, default=0)
    num_pilot: int = eqx.field(static=True, converter=plain, default=256)
    max_levels: int = eqx.field(static=True, converter=plain, default=400)

    def __check_init__(self):
        check_choices(
            self,
            num_moves=self.num_moves,
            num_other_moves=self.num_other_moves,
            preconditioner_rank=self.preconditioner_rank,
            inflation=self.inflation,
        )

    twist: ClassVar[AbstractTwist] = ByDimension()

    @property
    def path(self) -> Path:
        """The noise falls in steps that are not too long."""
        return in_short_steps

    @property
    def tuning(self) -> Tuning:
        """The pilot cloud that tunes it."""
        return Tuning(self.num_pilot, self.conditional_ess, self.max_levels)

    def kernels(self, bridge: Bridge) -> Kernels:
        """Proposals and weights over a bridge, which must have a diffusion site."""
        check_has_diffusion(self, bridge)
        counts = self.num_moves, self.num_other_moves
        proposal = self.proposal
        if isinstance(proposal, AbstractDenoiser):
            if len(bridge.diffusion_sites) > 1:
                raise ValueError(
                    f"the model has diffusion sites {bridge.diffusion_sites}; `proposal` must say of which, "
                    "as a dict by site."
                )
            proposal = dict.fromkeys(bridge.diffusion_sites, proposal)
        transport = Reverse(self.covariance, self.inflation, proposal)
        rank = self.preconditioner_rank
        return Kernels(bridge, self.move, self.other_move, transport, *counts, rank=rank)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence that holds the normaliser unless it is known."""
        return Claims(bridge.target)
