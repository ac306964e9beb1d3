r"""Annealed importance sampling with resampling, along the noise levels of a diffusion energy.

At each level a particle is moved by kernels that leave $\gamma_{c, \beta}$ invariant and is then
carried to the next level and weighed there:

$$\log w = \log \gamma_{c', \beta'}(T z) - \log \gamma_{c, \beta}(z) + \log |\det T|.$$

The weighted particles follow the user's posterior as their number grows, for any levels, any moves and
any error of the energy at the levels in between; these change the variance only.
"""

import equinox as eqx
import jax

from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..feynman_kac import FeynmanKac
from ..moves import Move, hmc, mala
from .kernels import Kernels, Level, Particle, check_fit, check_levels
from .pilot import tune

__all__ = ["Annealed"]


def _position(particle: Particle) -> Position:
    return particle.position


class Annealed(eqx.Module):
    r"""Annealed sampler over the noise levels of an energy, with HMC or MALA moves.

    A pilot cloud chooses the levels (so that each costs the same share of effective sample size), the
    step sizes and the scale of every coordinate; these are then frozen, which keeps the evidence
    unbiased.

    Attributes:
        move: Joint move of all sites; `hmc(n)` or `mala()`. Two short trajectories of two steps
            move a cloud as far as five MALA moves, for one evaluation less.
        num_moves: Joint moves a level.
        other_move: Move of the non-diffusion sites given what they see; costs no network evaluation.
        num_other_moves: Such moves a level.
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        conditional_ess: Share of the effective sample size that each level may keep, in (0, 1).
        num_pilot: Particles of the pilot cloud.
        max_levels: Give up, and say why, when the pilot needs more levels than this.

    References:
        Neal (2001), Annealed importance sampling. Del Moral, Doucet & Jasra (2006), Sequential Monte
        Carlo samplers, JRSS B. Thornton et al. (2025), arXiv 2502.12786, for energies of diffusions.
    """

    move: Move = eqx.field(default_factory=hmc)
    num_moves: int = eqx.field(static=True, default=2)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, default=2)
    levels: int | Level | None = None
    conditional_ess: float = eqx.field(static=True, default=0.97)
    num_pilot: int = eqx.field(static=True, default=256)
    max_levels: int = eqx.field(static=True, default=400)

    def __check_init__(self):
        if self.num_moves < 1 or self.num_other_moves < 1:
            raise ValueError(
                "`Annealed` expects at least one move a level; got "
                f"num_moves={self.num_moves}, num_other_moves={self.num_other_moves}."
            )
        if not 0 < self.conditional_ess < 1:
            raise ValueError(
                "`conditional_ess` is the share that a level keeps, in (0, 1); got "
                f"{self.conditional_ess}. Try 0.9."
            )
        if self.num_pilot < 2:
            raise ValueError(f"`num_pilot` must be at least 2; got {self.num_pilot}. Try 256.")
        if isinstance(self.levels, Level):
            check_levels(self.levels)
        elif not (self.levels is None or isinstance(self.levels, int)):
            raise TypeError(
                f"`levels` is a number, frozen levels or `None`; got {type(self.levels).__name__}. The "
                "levels of an earlier run are in its `result.levels`."
            )
        elif self.levels is not None and self.levels < 1:
            raise ValueError(f"`levels` must be at least 1; got {self.levels}.")

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        return Kernels(bridge, self.move, self.other_move, self.num_moves, self.num_other_moves)

    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """Tune with a pilot cloud unless the levels are frozen, and return the Feynman-Kac model.

        Args:
            bridge: The densities.
            key: PRNG key of the pilot; a fixed one if left out.
            progress_bar: Show the pilot's progress.
        """
        kernels = self.kernels(bridge)
        if isinstance(self.levels, Level):
            levels = self.levels
            check_fit(levels, bridge)
        else:
            key = jax.random.key(0) if key is None else key
            levels = tune(
                key,
                kernels,
                num_particles=self.num_pilot,
                conditional_ess=self.conditional_ess,
                max_levels=self.max_levels,
                num_levels=self.levels,
                progress_bar=progress_bar,
            )
        return FeynmanKac(kernels.init, kernels.step, levels, _position, bridge.target, True)

    def evaluations_per_level(self, bridge: Bridge) -> int:
        """Network evaluations a particle and level: one for the weight and one a move."""
        refresh = 1 if self.kernels(bridge).in_blocks else 0
        if not bridge.diffusion_sites:
            return 0
        return 1 + refresh + self.num_moves * self.move.evaluations
