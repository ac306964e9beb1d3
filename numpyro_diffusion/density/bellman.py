r"""Bellman diffusion: draws from a density field by a diffusion whose noise is the density itself."""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance, whole_number
from .._numbers import positive, real_array
from .._prng import check_key
from .._records import record, record_page
from .._typing import PRNGKey
from .field import DensityField
from .stability import steepest

__all__ = ["BellmanDraws", "bellman_sample"]

_STEEP = 0.2


class BellmanDraws(NamedTuple):
    r"""Result of `bellman_sample`.

    Attributes:
        draws: Shape `(num, dimension)`.
        turnover: $\int s(x_t)\,dt$ of each path over the variance of the draws, shape `(num,)`: how often it
            could have forgotten where it started. Below 1 it is still about there. NaN of one path alone,
            which has no variance.
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
            below 0.05; at 0.08 the variance of two modes came out 1 per cent too large. Above 0.2 at the
            first starts there is a warning.

    Raises:
        ValueError: If `start` is not finite or of another shape, or a number is out of range.
        FloatingPointError: If a path is not finite; the message names it.

    Warns:
        UserWarning: If steps are too large, or half of the paths or more have a `turnover` below 1.

    References:
        Li et al. (2024), arXiv 2410.01796.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    key = check_key(key)
    check_instance("field", field, DensityField, "fit_density_field(...)", optional=False)
    rows = real_array("start", start, "of shape (num, dimension)")
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"`start` must be finite real numbers of shape (num, dimension); got shape {rows.shape}. "
            f"{_faq.shapes}"
        )
    time = positive("time", time)
    dtype = jnp.result_type(float)
    one = jax.ShapeDtypeStruct(rows.shape[1:], dtype)
    shapes = [jax.eval_shape(part, one).shape for part in (field.value, field.gradient)]
    if shapes != [(), one.shape]:
        raise ValueError(
            f"a field at a point of shape {one.shape} is a number and a gradient of that shape; got shapes "
            f"{shapes[0]} and {shapes[1]}. {_faq.shapes}"
        )
    step = jnp.asarray(time / num_steps, dtype)
    ends, clocks = _paths(key, field, jnp.asarray(rows, dtype), step, jnp.arange(num_steps))
    draws, clocks = np.asarray(ends), np.asarray(clocks)
    bad = np.flatnonzero(~np.isfinite(draws).all(1))
    if len(bad):
        raise FloatingPointError(
            f"{len(bad)} of {len(draws)} paths of `bellman_sample` are not finite (first: {bad[0]}, from "
            f"{rows[bad[0]].tolist()}). Take more steps, or look at the field there. {_faq.lost}"
        )
    variance = float(draws.var(0).mean())
    turnover = clocks / variance if variance > 0 else np.full_like(clocks, np.nan)
    slope = float(
        steepest(jax.random.fold_in(key, num_steps), field.gradient, jnp.asarray(rows, dtype))
    )
    if slope * time / num_steps > _STEEP:
        warnings.warn(
            f"steps of `bellman_sample` are too large: a step of {time / num_steps:.3g} times the largest "
            f"second derivative of the density at the starts, {slope:.3g}, should be below 0.05, and paths "
            f"are thrown out of the support. Take {int(min(slope * time / 0.05, 1e9)) + 1} steps. "
            f"{_faq.numbers}",
            stacklevel=2,
        )
    elif np.median(turnover) < 1:
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
