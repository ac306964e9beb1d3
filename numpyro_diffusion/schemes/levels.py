"""Level parameters: what a pilot tunes and a run scans over."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._records import record, record_page
from .._typing import Array, Position
from ..bridge import Bridge
from ..smc.preconditioner import Preconditioner

__all__ = ["Level", "check_fit", "check_levels"]


class Level(NamedTuple):
    r"""Frozen parameters of the levels; leaves have a leading axis of length `num_levels`.

    Attributes:
        clock: Where the particles are when the level begins.
        power: Exponent of the likelihood there.
        next_clock: Where they are carried to.
        next_power: Exponent of the likelihood there.
        step_size: Step of the joint move at `clock`; of a composed move one for each part, `(num_levels,
            num_parts)`.
        other_step_size: Step of the move on the non-diffusion sites.
        num_moves: Number of joint moves at `clock`.
        preconditioner: Round coordinates of the joint move.
        other_preconditioner: Those of the move on the non-diffusion sites.
        curvature: What the transport asked the pilot to measure at `clock`.
        floor: By observed site or factor whose density may be 0, the log of what is added to it at `clock`.
        next_floor: The same where they are carried to; $-\infty$ at the end.
    """

    clock: Array
    power: Array
    next_clock: Array
    next_power: Array
    step_size: Array
    other_step_size: Array
    num_moves: Array
    preconditioner: Preconditioner
    other_preconditioner: Preconditioner
    curvature: Any = None
    floor: dict[str, Array] = {}
    next_floor: dict[str, Array] = {}

    __repr__ = record
    _repr_html_ = record_page

    @classmethod
    def by_hand(
        cls,
        clock: Array,
        power: Array,
        scale: Position,
        *,
        step_size: float | Array = 0.5,
        other_sites: tuple[str, ...] = (),
        other_step_size: float | Array = 0.5,
        num_moves: int = 2,
    ) -> "Level":
        """Levels that no pilot chose.

        Args:
            clock: Falls from 1 to 0, one entry more than there are levels.
            power: Exponent of the likelihood at these clocks, rising from 0 to 1.
            scale: Standard deviations of all sites in unconstrained space, by site, with a leading axis
                along the levels.
            step_size: Step of the joint move, in these standard deviations.
            other_sites: Names of the non-diffusion sites, where there are both kinds.
            other_step_size: Step of the move on them.
            num_moves: Joint moves a level.
        """
        num_moves = whole_number("num_moves", num_moves, 0)
        clock, power = jnp.asarray(clock), jnp.asarray(power)
        count = len(clock) - 1
        return cls(
            clock=clock[:-1],
            power=power[:-1],
            next_clock=clock[1:],
            next_power=power[1:],
            step_size=jnp.broadcast_to(jnp.asarray(step_size), (count,)),
            other_step_size=jnp.broadcast_to(jnp.asarray(other_step_size), (count,)),
            num_moves=jnp.full(count, num_moves),
            preconditioner=Preconditioner(scale),
            other_preconditioner=Preconditioner({name: scale[name] for name in other_sites}),
        )


def check_fit(levels: Level, bridge: Bridge) -> None:
    """Refuse levels that were tuned for a model with other sites."""
    shapes = jax.eval_shape(lambda key: bridge.sample_base(key), jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in shapes.items()}
    got = {name: jnp.shape(leaf)[1:] for name, leaf in levels.preconditioner.scale.items()}
    if got != expected:
        raise ValueError(
            f"the frozen levels hold scales of shapes {got}, but the sites of this model are {expected}, "
            "in unconstrained space. Levels are for one model: let a pilot choose new "
            f"ones. {_faq.levels}"
        )


def check_levels(levels: Level, start: float = 1.0) -> None:
    """Refuse levels that do not run from noise to data without gaps.

    Args:
        levels: The levels.
        start: Clock at which they must begin: 1, or 0 where particles start from the prior itself.
    """
    clock, following = np.asarray(levels.clock), np.asarray(levels.next_clock)
    if clock.ndim != 1 or bool(np.any(following > clock)):
        raise ValueError(
            "`levels` must run from noise (clock 1) to data (clock 0), one entry a level; got clocks "
            f"{clock} -> {following}. Did you pass them in data-to-noise order? {_faq.levels}"
        )
    if clock[0] != start or following[-1] != 0 or bool(np.any(clock[1:] != following[:-1])):
        raise ValueError(
            f"`levels` must begin at clock {start:g}, end at clock 0 and leave no gap; got "
            f"{clock} -> {following}. {_faq.levels}"
        )
    power, next_power = np.asarray(levels.power), np.asarray(levels.next_power)
    gaps = bool(np.any(power[1:] != next_power[:-1]))
    if gaps or bool(power[0] != 0) or bool(next_power[-1] != 1):
        raise ValueError(
            "the likelihood's power must pass without gaps from 0 at the first level, where particles "
            f"come from the prior, to 1 at the last; got {power} -> {next_power}. {_faq.levels}"
        )
