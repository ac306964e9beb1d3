r"""Bellman diffusion: draws from a density field by a diffusion whose noise is the density itself."""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._records import record, record_page
from .._typing import PRNGKey
from .field import DensityField

__all__ = ["BellmanDraws", "bellman_sample"]


class BellmanDraws(NamedTuple):
    r"""Result of `bellman_sample`.

    Attributes:
        draws: Shape `(num, dimension)`.
        turnover: $\int s(x_t)\,dt$ of each path over the variance of the draws, shape `(num,)`: how often it
            could have forgotten where it started. Below 1 it is still about there.
        target: What the draws follow, in words, and in which limit.
    """

    draws: np.ndarray
    turnover: np.ndarray
    target: str

    __repr__ = record
    _repr_html_ = record_page


def bellman_sample(
    key: PRNGKey, field: DensityField, start, *, time: float = 20.0, num_steps: int = 1000
) -> BellmanDraws:
    r"""Run $dx = g(x)\, dt + \sqrt{s(x)}\, dW$ from some points, by Euler and Maruyama's scheme.

    For $s = p$ and $g = \nabla p$ the density $p$ is stationary, since
    $-\nabla \cdot (p \nabla p) + \tfrac12 \Delta (p \cdot p) = 0$. Exact as `time` grows and steps become
    small, for exact fields; there is no weight and no Metropolis step.

    It runs on a clock of $1/p$. A standard normal has its largest density $(2\pi)^{-d/2}$: 0.4 in one
    dimension, 0.06 in three, 1e-4 in ten, so that beyond three or four nothing moves, and in any dimension
    what starts in the tails, or between far modes, stays for long. `turnover` says how far it came; a
    warning, if that is not far.

    Args:
        key: PRNG key.
        field: From `fit_density_field`, `DensityField.mix`, `push_affine`, or in closed form.
        start: Where paths begin, shape `(num, dimension)`: inside the support, such as data with noise.
        time: $T$, in units of variance over density.
        num_steps: Steps. A step, `time / num_steps`, times the largest second derivative of $p$ should stay
            below 0.05; at 0.08 the variance of two modes came out 1 per cent too large.

    Raises:
        ValueError: If `start` is not finite or of another shape, or a number is out of range.
        FloatingPointError: If a path is not finite; the message names it.

    Warns:
        UserWarning: If half of the paths or more have a `turnover` below 1.

    References:
        Li et al. (2024), arXiv 2410.01796.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    rows = np.asarray(start, float)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(
            "`start` must be finite, of shape (num, dimension); got shape "
            f"{rows.shape}. {_faq.finite}"
        )
    if not (time > 0 and np.isfinite(time)):
        raise ValueError(f"`time` must be positive and finite; got {time}. {_faq.numbers}")
    dtype = jnp.result_type(float)
    step = jnp.asarray(time / num_steps, dtype)
    ends, clocks = _paths(key, field, jnp.asarray(rows, dtype), step, jnp.arange(num_steps))
    draws, clocks = np.asarray(ends), np.asarray(clocks)
    bad = np.flatnonzero(~np.isfinite(draws).all(1))
    if len(bad):
        raise FloatingPointError(
            f"{len(bad)} of {len(draws)} paths of `bellman_sample` are not finite (first: {bad[0]}, from "
            f"{rows[bad[0]].tolist()}). Take more steps, or look at the field there. {_faq.lost}"
        )
    turnover = clocks / max(float(draws.var(0).mean()), float(np.finfo(draws.dtype).tiny))
    if np.median(turnover) < 1:
        warnings.warn(
            "half of the paths of `bellman_sample` have a turnover below 1 (median "
            f"{np.median(turnover):.2g}): they are still about where they started. Take more `time`; in more "
            f"than three or four dimensions sample a score instead. {_faq.numbers}",
            stacklevel=2,
        )
    target = "the density of the field, as time grows and steps become small; unweighted"
    return BellmanDraws(draws, turnover, target)


@eqx.filter_jit
def _paths(key, field, start, step, numbers):
    """Where paths end, and the integrals of the density along them."""

    def move(carry, number):
        x, clock = carry
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
        s = jnp.maximum(jax.vmap(field.value)(x), 0.0)
        x = x + jax.vmap(field.gradient)(x) * step + jnp.sqrt(s * step)[:, None] * noise
        return (x, clock + s * step), None

    return jax.lax.scan(move, (start, jnp.zeros(len(start), start.dtype)), numbers)[0]
