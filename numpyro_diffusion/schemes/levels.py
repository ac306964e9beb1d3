"""Frozen levels: what a pilot chooses and a run scans over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Position
from ..bridge import Bridge

__all__ = ["Level", "check_fit", "check_levels"]


class Level(NamedTuple):
    """Frozen parameters of the levels; leaves have a leading axis of length `num_levels`.

    Attributes:
        clock: Where the particles are when the level begins.
        power: Exponent of the likelihood there.
        next_clock: Where they are carried to.
        next_power: Exponent of the likelihood there.
        step_size: Step of the joint move at `clock`.
        other_step_size: Step of the move on the non-diffusion sites.
        scale: Standard deviation of each coordinate: the diagonal preconditioner of both moves.
        curvature: Mean diagonal second derivative of the log density at `clock`, for transports that
            ask for it.
    """

    clock: Array
    power: Array
    next_clock: Array
    next_power: Array
    step_size: Array
    other_step_size: Array
    scale: Position
    curvature: Position | None = None


def check_fit(levels: Level, bridge: Bridge) -> None:
    """Refuse levels that were tuned for a model with other sites."""
    shapes = jax.eval_shape(lambda key: bridge.sample_base(key), jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in shapes.items()}
    got = {name: jnp.shape(leaf)[1:] for name, leaf in levels.scale.items()}
    if got != expected:
        raise ValueError(
            f"the frozen levels hold scales of shapes {got}, but the sites of this model are {expected}, "
            "in unconstrained space. Levels are for one model: let a pilot choose new ones."
        )


def check_levels(levels: Level, start: float = 1.0) -> None:
    """Refuse levels that do not run from noise to data without gaps.

    Args:
        levels: The levels.
        start: Clock at which they must begin: 1, or 0 where particles start from the prior itself.
    """
    clock, following = jnp.asarray(levels.clock), jnp.asarray(levels.next_clock)
    if clock.ndim != 1 or bool(jnp.any(following > clock)):
        raise ValueError(
            "`levels` must run from noise (clock 1) to data (clock 0), one entry a level; got clocks "
            f"{clock} -> {following}. Did you pass them in data-to-noise order?"
        )
    if clock[0] != start or following[-1] != 0 or bool(jnp.any(clock[1:] != following[:-1])):
        raise ValueError(
            f"`levels` must begin at clock {start:g}, end at clock 0 and leave no gap; got "
            f"{clock} -> {following}."
        )
    power, next_power = jnp.asarray(levels.power), jnp.asarray(levels.next_power)
    gaps = bool(jnp.any(power[1:] != next_power[:-1]))
    if gaps or bool(power[0] != 0) or bool(next_power[-1] != 1):
        raise ValueError(
            "the likelihood's power must pass without gaps from 0 at the first level, where particles "
            f"come from the prior, to 1 at the last; got {power} -> {next_power}."
        )
