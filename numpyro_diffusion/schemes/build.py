"""What a scheme is, and what all share: tune unless the levels are frozen, then make the model."""

import abc

import equinox as eqx
import jax

from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..feynman_kac import FeynmanKac
from ..twists import AbstractTwist
from .kernels import Kernels, Particle
from .levels import Level, check_fit, check_levels
from .path import Path
from .pilot import tune

__all__ = ["EVIDENCE", "AbstractScheme", "build", "check_choices", "frozen"]


EVIDENCE = "the integral of the target, less the prior's normaliser where that is known"


class AbstractScheme(eqx.Module):
    """A sampler: from a bridge to a Feynman-Kac model.

    Attributes:
        path_space: Whether its prior is the law of a reverse sampler, known by its steps alone.
    """

    path_space: eqx.AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def twist(self) -> AbstractTwist:
        """What the likelihood sees at noisy levels, unless the user says otherwise."""

    @abc.abstractmethod
    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves, transport and weights over a bridge."""

    @abc.abstractmethod
    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """Tune with a pilot cloud unless the levels are frozen, and return the Feynman-Kac model.

        Args:
            bridge: The densities.
            key: PRNG key of the pilot; a fixed one if left out.
            progress_bar: Show the pilot's progress.
        """

    def evaluations_per_level(self, bridge: Bridge) -> int:
        """Network evaluations a particle and level: one for the weight and one a move.

        One more where moves of other sites come in between.
        """
        if not bridge.diffusion_sites:
            return 0
        kernels = self.kernels(bridge)
        refresh = 1 if kernels.in_blocks and kernels.num_moves else 0
        return 1 + refresh + kernels.num_moves * kernels.move.evaluations


def _position(particle: Particle) -> Position:
    return particle.position


def frozen(
    key: PRNGKey | None, kernels: Kernels, levels: int | Level | None, path: Path, **options
) -> Level:
    """The levels at hand, or those that a pilot finds; `options` are `tune`'s."""
    if isinstance(levels, Level):
        check_fit(levels, kernels.bridge)
        return levels
    key = jax.random.key(0) if key is None else key
    return tune(key, kernels, path=path, num_levels=levels, **options)


def build(kernels: Kernels, levels: Level, **fields) -> FeynmanKac:
    """The Feynman-Kac model; `fields` name its target and its evidence."""
    return FeynmanKac(kernels.init, kernels.step, levels, _position, **fields)


def check_choices(
    name: str,
    *,
    levels: int | Level | None,
    conditional_ess: float,
    num_pilot: int,
    start: float = 1.0,
) -> None:
    """Refuse what no scheme can use."""
    if not 0 < conditional_ess < 1:
        raise ValueError(
            "`conditional_ess` is the share that a level keeps, in (0, 1); got "
            f"{conditional_ess}. Try 0.9."
        )
    if num_pilot < 2:
        raise ValueError(f"`num_pilot` must be at least 2; got {num_pilot}. Try 256.")
    if isinstance(levels, Level):
        check_levels(levels, start)
    elif not (levels is None or isinstance(levels, int)):
        raise TypeError(
            f"`levels` of `{name}` is a number, frozen levels or `None`; got {type(levels).__name__}. "
            "The levels of an earlier run are in its `result.levels`."
        )
    elif levels is not None and levels < 1:
        raise ValueError(f"`levels` must be at least 1; got {levels}.")
