r"""Annealed importance sampling (AIS) with resampling, along the noise levels of a diffusion energy.

At each level a particle is moved by kernels that leave $\gamma_{c, \beta}$ invariant and is then
carried to the next level and weighed there:

$$\log w = \log \gamma_{c', \beta'}(T z) - \log \gamma_{c, \beta}(z) + \log |\det T|.$$

The weighted particles follow the user's posterior as their number grows, for any levels, any moves and
any error of the energy at the levels in between; these change the variance only.
"""

import equinox as eqx

from .._arguments import plain
from ..bridge import Bridge
from ..smc import Claims
from ..smc.moves import Move, hmc, mala
from .checks import check_choices
from .kernels import Kernels
from .levels import Level
from .transport import AbstractTransport, Carry
from .tuned import TunedScheme, Tuning

__all__ = ["Annealed"]


class Annealed(TunedScheme):
    r"""Annealed sampler over the noise levels of an energy, with HMC or MALA moves.

    A pilot cloud chooses the levels (so that each costs the same share of effective sample size), the
    step sizes and the scale of every coordinate; these are then frozen, which keeps the evidence
    unbiased.

    Attributes:
        move: Joint move of all sites; `hmc(n)` or `mala()`. Two short trajectories of two steps
            move a cloud as far as five MALA moves, for one evaluation less.
        num_moves: Joint moves a level; `None` for the pilot's choice at each level, by their
            autocorrelation.
        other_move: Move of the non-diffusion sites given what they see; costs no network evaluation.
        num_other_moves: Such moves a level.
        transport: From level to level: the linear map `Carry()`, or `ProbabilityFlow()`, which costs an
            evaluation a coordinate.
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        conditional_ess: Share of the effective sample size that each level may keep, in (0, 1).
        preconditioner_rank: Directions along which coordinates move together that moves know of, beside
            the scale of every coordinate; the pilot measures them.
        num_pilot: Particles of the pilot cloud.
        max_levels: Give up, and say why, when the pilot needs more levels than this.

    References:
        Neal (2001), Annealed importance sampling. Del Moral, Doucet & Jasra (2006), Sequential Monte
        Carlo samplers, JRSS B. Thornton et al. (2025), arXiv 2502.12786, for energies of diffusions.
    """

    move: Move = eqx.field(default_factory=hmc)
    num_moves: int | None = eqx.field(static=True, converter=plain, default=2)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, converter=plain, default=2)
    transport: AbstractTransport = eqx.field(default_factory=Carry)
    levels: int | Level | None = eqx.field(default=None, converter=plain)
    conditional_ess: float = eqx.field(static=True, default=0.97)
    preconditioner_rank: int = eqx.field(static=True, converter=plain, default=0)
    num_pilot: int = eqx.field(static=True, converter=plain, default=256)
    max_levels: int = eqx.field(static=True, converter=plain, default=400)

    def __check_init__(self):
        check_choices(
            self,
            num_moves=self.num_moves,
            num_other_moves=self.num_other_moves,
            least_moves=1,
            preconditioner_rank=self.preconditioner_rank,
        )

    @property
    def tuning(self) -> Tuning:
        """The pilot cloud that tunes it."""
        return Tuning(self.num_pilot, self.conditional_ess, self.max_levels)

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        counts = self.num_moves, self.num_other_moves
        return Kernels(
            bridge,
            self.move,
            self.other_move,
            self.transport,
            *counts,
            rank=self.preconditioner_rank,
        )

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence that holds the normaliser unless it is known."""
        return Claims(bridge.target)
