r"""Scalar networks of noised data: log factors, values and density ratios."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .mlp import ResidualMLP

__all__ = ["ScalarHead"]


def _two_numbers() -> Array:
    return jnp.zeros(2)


class ScalarHead(eqx.Module):
    r"""$f(u, t) = b + \sum_i F_i\big(w, \tfrac14 \log s_t\big)$, $w = (u - m) / \sqrt{d^2 + s_t^2}$.

    $F$ is any backbone from an array to one of the same shape; its last layer, which is linear, is the head.
    One that starts at zero makes $f = b$.

    Attributes:
        net: Backbone, `net(w, c_noise)` of shape `shape`.
        schedule: Noise schedule, for the noise level $s_t$ in units of the data.
        mean: $m$ of shape `shape`, the mean of the data.
        scale: $d$ of shape `shape`, their standard deviation.
        offset: $b$, shape `()`.
    """

    net: Callable[[Array, Scalar], Array] = eqx.field(default_factory=ResidualMLP)
    schedule: AbstractSchedule = eqx.field(default_factory=VariancePreserving)
    mean: Array = eqx.field(default_factory=_two_numbers)
    scale: Array = eqx.field(default_factory=lambda: 1.0 + _two_numbers())
    offset: Scalar = eqx.field(default=0.0, converter=jnp.asarray)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def __call__(self, u: Array, t: Scalar) -> Scalar:
        s = self.schedule.noise_level(jnp.asarray(t, u.dtype))
        w = (u - self.mean.astype(u.dtype)) / jnp.sqrt(self.scale.astype(u.dtype) ** 2 + s**2)
        return self.offset.astype(u.dtype) + jnp.sum(self.net(w, 0.25 * jnp.log(s)))
