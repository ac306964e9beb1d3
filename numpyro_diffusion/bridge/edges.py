r"""Observed sites and factors whose density is 0, or falls by a step, where the prior has mass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._typing import Array
from .sites import DiffusionSite
from .terms import Edge

__all__ = ["Doubts", "doubtful", "with_finite_gradients"]

_SCALES = (1.0, 3.0)  # of the prior's standard deviations
_POINTS = 128  # at each
_AT_ONCE = 32
_DEEP = 6.0  # nats


class Doubts(NamedTuple):
    """Observed sites and factors whose density may be 0 somewhere, by name.

    Attributes:
        zeros: Whether one is 0, or falls by a step, somewhere within a few standard deviations of the prior.
        log_peaks: The largest log density of each entry there, 0 if none is finite: what stands for the peak
            of a distribution that has no centre. Without it a constant of the model would be tempered too.
    """

    zeros: dict[str, Array]
    log_peaks: dict[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the edges; all of them under a transformation of JAX, where none can be evaluated."""
        return tuple(n for n, yes in self.zeros.items() if isinstance(yes, Tracer) or bool(yes))


def doubtful(
    edges: Callable[[dict[str, Array]], dict[str, Edge]], sites: dict[str, DiffusionSite]
) -> Doubts:
    """Find observed sites and factors that are 0, or fall by a step, and their largest values.

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
    values = {name: edge.log_density for name, edge in each.items()}
    return Doubts(
        {name: _is_zero(v) | _has_step(v) for name, v in values.items()},
        {name: _largest(v) for name, v in values.items()},
    )


def _is_zero(values: Array) -> Array:
    """Somewhere 0, or not a number."""
    return jnp.any(jnp.isneginf(values) | jnp.isnan(values))


def _has_step(values: Array) -> Array:
    """Whether most of the range of the summed values, at the narrower points, is one gap."""
    total = jnp.sort(jnp.sum(values[:_POINTS].reshape(_POINTS, -1), 1))
    gap = jnp.max(jnp.diff(total))
    return (gap > _DEEP) & (gap > 0.5 * (total[-1] - total[0]))


def _largest(values: Array) -> Array:
    """Of each entry over the points."""
    largest = jnp.max(jnp.where(jnp.isfinite(values), values, -jnp.inf), 0)
    return jnp.where(jnp.isfinite(largest), largest, 0.0)


@jax.custom_vjp
def with_finite_gradients(values: Any) -> Any:
    """Return the same function with entries of its gradient that are not finite set to 0.

    For the arguments of a model. Particles live where an edge is 0, on its floor, and there the gradient of a
    user's code may be anything: of `jnp.where(x < 1, jnp.sqrt(1 - x), -jnp.inf)` it is NaN, and that of
    `jnp.sqrt(jnp.maximum(x, 0))` is so where the value is a number. Moves are valid with whatever gradient,
    but make no step to or from a place where it is not a number.
    """
    return values


def _finite(_: None, cotangent: Any) -> tuple[Any]:
    return (jax.tree.map(lambda c: jnp.where(jnp.isfinite(c), c, 0.0), cotangent),)


with_finite_gradients.defvjp(lambda values: (values, None), _finite)
