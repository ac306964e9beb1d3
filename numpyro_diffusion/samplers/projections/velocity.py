r"""Trajectories that are nowhere faster than a limit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_counts, plain
from ..._typing import Array
from .sets import AbstractProjection, _norm, _shortened

__all__ = ["VelocityBall"]

_RELAXATION = 1.6


class VelocityBall(AbstractProjection):
    r"""$\{x : |x_{i+1} - x_i| \le d\}$ for trajectories, with the steps along the first axis.

    The nearest one by the alternating direction method of multipliers: with $D x$ the differences, minimise
    $\tfrac12 |x - y|^2$ subject to $D x = z$, $|z_i| \le d$. The matrix $I + \rho D^\top D$ is the same for
    all trajectories of one length and inverted once, when the function is compiled. The last differences are
    cut to $d$ and added up about the mean, which a projection keeps, so that what comes out is feasible
    whether or not the loop has converged.

    Attributes:
        max_step: $d > 0$.
        tolerance: The loop ends where constraint and differences change by less than this share of $d$.
        max_steps: The loop ends after so many steps at the latest.
        penalty: $\rho$; it decides the speed and not the answer.

    References:
        Boyd, Parikh, Chu, Peleato & Eckstein (2011), Distributed optimization and statistical learning
        via the alternating direction method of multipliers, Foundations and Trends in Machine Learning.
    """

    max_step: float = eqx.field(static=True, default=1.0)
    tolerance: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, converter=plain, default=10_000)
    penalty: float = eqx.field(static=True, default=10.0)

    def __check_init__(self):
        check_counts(self, max_steps=1)
        if not (self.max_step > 0 and self.tolerance > 0 and self.penalty > 0):
            raise ValueError(
                "`VelocityBall` expects a positive step, tolerance and penalty; got "
                f"{self.max_step}, {self.tolerance} and {self.penalty}. {_faq.numbers}"
            )

    def __call__(self, x: Array) -> Array:
        num = len(x)
        if num < 2:
            return x
        y = x.reshape(num, -1)
        rho, d = self.penalty, self.max_step
        difference = np.diff(np.eye(num), axis=0)
        inverse = jnp.asarray(np.linalg.inv(np.eye(num) + rho * difference.T @ difference), x.dtype)
        limit = max(self.tolerance, 8 * float(jnp.finfo(x.dtype).eps)) * d

        def goes_on(carry):
            _, _, change, k = carry
            return (change > limit) & (k < self.max_steps)

        def step(carry):
            z, dual, _, k = carry
            path = inverse @ (y + rho * _transposed(z - dual))
            relaxed = _RELAXATION * jnp.diff(path, axis=0) + (1 - _RELAXATION) * z
            new = _shortened(relaxed + dual, d, axis=-1)
            change = jnp.maximum(jnp.max(jnp.abs(relaxed - new)), jnp.max(jnp.abs(new - z)))
            return new, dual + relaxed - new, change, k + 1

        start = _shortened(jnp.diff(y, axis=0), d, axis=-1)
        carry = start, jnp.zeros_like(start), jnp.asarray(jnp.inf, x.dtype), 0
        z, *_ = jax.lax.while_loop(goes_on, step, carry)
        path = jnp.concatenate([jnp.zeros_like(y[:1]), jnp.cumsum(z, 0)])
        nearest = path + jnp.mean(y - path, 0)
        inside = jnp.all(_norm(jnp.diff(y, axis=0), -1) <= d)
        return jnp.where(inside, y, nearest).reshape(x.shape)

    def slack(self, x: Array) -> Array:
        return self.max_step - _norm(jnp.diff(x.reshape(len(x), -1), axis=0), -1)[:, 0]


def _transposed(z: Array) -> Array:
    """The adjoint of differences."""
    zero = jnp.zeros_like(z[:1])
    return jnp.concatenate([zero, z]) - jnp.concatenate([z, zero])
