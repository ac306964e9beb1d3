r"""Annealed importance sampling with resampling, along the noise levels of a diffusion energy.

At each level a particle is moved by kernels that leave $\gamma_{c, \beta}$ invariant and is then
carried to the next level and weighed there:

$$\log w = \log \gamma_{c', \beta'}(T z) - \log \gamma_{c, \beta}(z) + \log |\det T|.$$

The weighted particles follow the user's posterior as their number grows, for any levels, any moves and
any error of the energy at the levels in between; these change the variance only.
"""

from typing import ClassVar

import equinox as eqx

from .._typing import PRNGKey
from ..bridge import Bridge
from ..feynman_kac import FeynmanKac
from ..moves import Move, hmc, mala
from ..twists import AbstractTwist, Tweedie
from .build import EVIDENCE, AbstractScheme, build, check_choices, frozen
from .kernels import Kernels
from .levels import Level
from .path import likelihood_first
from .transport import Carry

__all__ = ["Annealed"]


class Annealed(AbstractScheme):
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
        check_choices(
            "Annealed",
            levels=self.levels,
            conditional_ess=self.conditional_ess,
            num_pilot=self.num_pilot,
        )

    path_space: ClassVar[bool] = False

    @property
    def twist(self) -> AbstractTwist:
        """What the likelihood sees at noisy levels, unless the user says otherwise."""
        return Tweedie()

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        counts = self.num_moves, self.num_other_moves
        return Kernels(bridge, self.move, self.other_move, Carry(), *counts)

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
        levels = frozen(
            key,
            kernels,
            self.levels,
            likelihood_first,
            num_particles=self.num_pilot,
            conditional_ess=self.conditional_ess,
            max_levels=self.max_levels,
            progress_bar=progress_bar,
        )
        return build(kernels, levels, target=bridge.target, evidence=EVIDENCE)
