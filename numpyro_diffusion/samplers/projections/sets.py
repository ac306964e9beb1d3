r"""Feasible sets, each with the map to its nearest point.

A projection makes draws feasible and changes their distribution: what was outside piles up on the boundary.
The distribution confined to the set is `energy + Restrict(projection.slack)`.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._typing import Array
from ..._written import one_line

__all__ = ["AbstractProjection", "Ball", "Box", "Simplex"]

_ROUNDING = 32  # a projected point is inside although the last digits of its coordinates are lost


class AbstractProjection(eqx.Module):
    r"""A closed convex set $C$ with $\Pi_C(x) = \arg\min_{y \in C} |y - x|$, for ONE example."""

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """The nearest point of the set, of the shape of `x`."""

    @abc.abstractmethod
    def slack(self, x: Array) -> Array:
        """Distances from each bound, positive inside; used by `Restrict` as guidance."""

    def contains(self, x: Array) -> Array:
        """Test whether `x` is in the set, to the last digits, shape `()`."""
        size = jnp.max(jnp.abs(x), initial=1.0)
        return jnp.all(self.slack(x) >= -_ROUNDING * jnp.finfo(x.dtype).eps * size)


class Box(AbstractProjection):
    r"""$\{x : l \le x \le h\}$, coordinate by coordinate.

    Args:
        low: $l$, a number or an array that broadcasts to the shape of an example.
        high: $h$, alike.

    Raises:
        ValueError: If a lower bound is above the upper one.
    """

    low: Any = eqx.field(static=True)
    high: Any = eqx.field(static=True)

    def __init__(self, low=-1.0, high=1.0):
        low, high = np.asarray(low, float), np.asarray(high, float)
        if not np.all(low <= high):
            raise ValueError(
                f"`Box` expects low <= high everywhere; got {low} and {high}. {_faq.numbers}"
            )
        self.low, self.high = _frozen(low), _frozen(high)

    def _ends(self, x: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.low, x.dtype), jnp.asarray(self.high, x.dtype)

    def __call__(self, x: Array) -> Array:
        return jnp.clip(x, *self._ends(x))

    def slack(self, x: Array) -> Array:
        low, high = self._ends(x)
        return jnp.stack([x - low, high - x])


class Ball(AbstractProjection):
    r"""$\{x : |x - c| \le r\}$.

    Args:
        radius: $r > 0$.
        centre: $c$, a number or an array that broadcasts to the shape of an example.

    Raises:
        ValueError: If the radius is not positive.
    """

    radius: float = eqx.field(static=True)
    centre: Any = eqx.field(static=True)

    def __init__(self, radius: float = 1.0, centre=0.0):
        if not radius > 0:
            raise ValueError(f"`radius` of `Ball` must be positive; got {radius}. {_faq.numbers}")
        self.radius, self.centre = float(radius), _frozen(np.asarray(centre, float))

    def __call__(self, x: Array) -> Array:
        centre = jnp.asarray(self.centre, x.dtype)
        return centre + _shortened(x - centre, self.radius, axis=None)

    def slack(self, x: Array) -> Array:
        return self.radius - _norm(x - jnp.asarray(self.centre, x.dtype), axis=None)


class Simplex(AbstractProjection):
    r"""$\{x : x \ge 0,\ \sum_i x_i = 1\}$ along the last axis: probabilities.

    It has no volume, so no distribution with a density can be restricted to it; draws can be projected onto
    it.

    References:
        Held, Wolfe & Crowder (1974), Validation of subgradient optimization, Mathematical Programming.
    """

    def __call__(self, x: Array) -> Array:
        # The nearest point is max(x - theta, 0); theta is right for the largest coordinates it keeps.
        descending = -jnp.sort(-x, axis=-1)
        count = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        theta = (jnp.cumsum(descending, -1) - 1) / count
        kept = jnp.sum(descending > theta, -1, keepdims=True)
        return jnp.maximum(x - jnp.take_along_axis(theta, kept - 1, -1), 0.0)

    def slack(self, x: Array) -> Array:
        off = jnp.abs(jnp.sum(x, -1, keepdims=True) - 1)
        return jnp.concatenate([x, -off], -1)


def _frozen(value: np.ndarray) -> Any:
    """Numbers in nested tuples, so that a set is hashable: `Restrict` keeps it as static."""
    return value.item() if value.ndim == 0 else tuple(_frozen(part) for part in value)


def _norm(x: Array, axis) -> Array:
    square = jnp.sum(x**2, axis, keepdims=True)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def _shortened(x: Array, length: float, axis) -> Array:
    """Vectors along an axis, those longer than `length` cut to it."""
    return x * jnp.minimum(1.0, length / jnp.maximum(_norm(x, axis), length)).astype(x.dtype)
