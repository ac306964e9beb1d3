r"""Which observed sites have a density that is 0, or nearly, for values that the prior allows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._typing import Array
from .base import Edge
from .sites import DiffusionSite

__all__ = ["doubtful", "names_of"]

_SCALES = (1.0, 3.0)  # of the prior's standard deviations
_POINTS = 128  # at each
_AT_ONCE = 32
_DEEP = 6.0  # nats


def doubtful(
    edges: Callable[[dict[str, Array]], dict[str, Edge]], sites: dict[str, DiffusionSite]
) -> dict[str, Array]:
    """Whether each edge is 0, or falls by a step, somewhere within a few standard deviations of the prior.

    Asked at independent normal points, which cost no network evaluation.

    Args:
        edges: Of the model, given clean values of its diffusion sites.
        sites: The diffusion sites.
    """
    numbers = np.random.default_rng(0)  # fixed: equal models get equal bridges

    def points(scale):
        normals = {n: numbers.standard_normal((_POINTS, *s.shape)) for n, s in sites.items()}
        return {
            n: s.centre + scale * s.scale * normals[n].astype(s.dtype) for n, s in sites.items()
        }

    x = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *map(points, _SCALES))
    each = jax.lax.map(edges, x, batch_size=_AT_ONCE)
    return {
        name: _is_zero(edge.log_density) | _has_step(edge.log_density)
        for name, edge in each.items()
    }


def _is_zero(values: Array) -> Array:
    """Somewhere 0, or not a number."""
    return jnp.any(jnp.isneginf(values) | jnp.isnan(values))


def _has_step(values: Array) -> Array:
    """Whether most of the range of the summed values, at the narrower points, is one gap."""
    total = jnp.sort(jnp.sum(values[:_POINTS].reshape(_POINTS, -1), 1))
    gap = jnp.max(jnp.diff(total))
    return (gap > _DEEP) & (gap > 0.5 * (total[-1] - total[0]))


def names_of(found: dict[str, Array]) -> tuple[str, ...]:
    """Names of the edges that are; all of them under a transformation of JAX, where none can be asked."""
    return tuple(n for n, yes in found.items() if isinstance(yes, Tracer) or bool(yes))
