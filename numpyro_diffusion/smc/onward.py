"""A finished run as the beginning of another one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .._arguments import whole_or_none
from .._typing import PyTree
from .batching import flat, over_particles
from .packing import pack
from .result import SMCResult

__all__ = ["onward"]


def onward(
    result: SMCResult,
    start: Callable[[PyTree], tuple[PyTree, Any]],
    batch_size: int | None = None,
) -> SMCResult:
    """A finished run as the beginning of another one, which goes on from its clouds.

    Each particle keeps its place, weight and ancestor, and each cloud its evidence and its key, so that
    evidence and error of the run that goes on are those of both runs together.

    Args:
        result: With an axis of clouds.
        start: `position -> (particle, info)`: the particle as the first level of the new run takes it.
        batch_size: Particles that are evaluated at once.

    Returns:
        What `run_smc(..., state=)` goes on from, with no level run.
    """
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    num_chains, num_particles = result.log_weights.shape
    particles, info = _entered(start, result.positions, num_chains, num_particles, batch_size)
    info = jax.tree.map(jax.device_put, info.unpack())
    return result._replace(
        initial_info=info,
        trace=None,  # type: ignore[arg-type]
        completed=False,
        state=result.state._replace(particles=particles),
        num_levels_run=0,
        identity=None,  # another model goes on from it
    )


@eqx.filter_jit
def _entered(start, positions, num_chains, num_particles, batch_size):
    source = flat(positions)

    def one(i):
        particle, info = start(jax.tree.map(lambda leaf: leaf[i], source))
        return particle, pack(info)

    return over_particles(one, num_chains, num_particles, batch_size)
