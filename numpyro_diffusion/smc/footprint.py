"""Memory of a run, measured on the compiled program of one level for few particles."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .._arguments import whole_or_none
from .chunks import level_step, start_clouds
from .feynman_kac import FeynmanKac
from .resampling import scheme_of

__all__ = ["Footprint", "check_batch", "footprint", "free_bytes", "safe_batch"]

_FEW = 64


class Footprint(NamedTuple):
    """Bytes of a run.

    Attributes:
        state: What a particle is between two levels.
        work: What stepping a particle takes besides, while it lasts.
        fixed: What does not depend on the number of particles, the network's parameters among it.
    """

    state: float
    work: float
    fixed: float

    def peak(self, num_particles: int, batch_size: int | None) -> float:
        """At the most, with so many particles over all clouds, of which a batch steps at once."""
        batch = num_particles if batch_size is None else min(batch_size, num_particles)
        return self.fixed + 2 * self.state * num_particles + self.work * batch


def footprint(model: FeynmanKac, chain_length: int | None = None) -> Footprint:
    """Measure what a level needs, by compiling it for two small clouds; nothing is run.

    Args:
        model: What is to be run.
        chain_length: That of a waste-free run.
    """
    count = _FEW if chain_length is None else 2 * chain_length
    small, large = (_sizes(model, n, chain_length) for n in (count, 2 * count))
    state = (large[0] - small[0]) / count
    work = max((large[1] - small[1]) / count, 0.0)
    return Footprint(state, work, max(small[1] - work * count, 0.0) + _bytes(model))


def _sizes(model: FeynmanKac, count: int, chain_length: int | None) -> tuple[float, float]:
    """Bytes of a cloud, and of all else that a level holds on to at once."""
    one_level = level_step(model, count, scheme_of("systematic"), 0.5, chain_length, None, False)
    level = jax.tree.map(lambda leaf: np.asarray(leaf)[0], model.levels)
    start = start_clouds.__wrapped__  # type: ignore[attr-defined]
    shapes, _ = jax.eval_shape(
        lambda key: start(key, None, model.init, count, None, False), jax.random.key(0)
    )
    arrays, rest = eqx.partition(one_level, eqx.is_array)
    run = lambda arrays, cloud, level: eqx.combine(arrays, rest)(cloud, level)
    compiled = jax.jit(run).lower(arrays, shapes, level).compile()
    analysis = compiled.memory_analysis()
    return _bytes(shapes), float(getattr(analysis, "temp_size_in_bytes", 0))


def _bytes(tree: Any) -> float:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return float(sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))


def check_batch(batch_size: Any) -> None:
    """Refuse what is neither a number of particles, nor `None` for all, nor `"auto"`.

    Raises:
        ValueError: If it is something else.
    """
    if not (isinstance(batch_size, str) and batch_size == "auto"):
        whole_or_none("batch_size", batch_size, 1, '`None` takes all, "auto" what memory holds.')


def free_bytes() -> float | None:
    """Memory that is free on the default device, or on this machine; `None` where nothing tells."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as lines:
            told = dict(line.split(":") for line in lines)
        return 1024.0 * float(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def safe_batch(
    model: FeynmanKac, num_particles: int, chain_length: int | None = None
) -> int | None:
    """As many particles at once as half of the free memory holds; `None` if all of them do.

    Args:
        model: What is to be run.
        num_particles: Over all clouds.
        chain_length: That of a waste-free run.
    """
    free = free_bytes()
    if free is None:
        return None
    size = footprint(model, chain_length)
    left = 0.5 * free - size.peak(num_particles, 0)
    if left >= size.work * num_particles:
        return None
    return max(1, int(left / size.work)) if left > 0 else 1
