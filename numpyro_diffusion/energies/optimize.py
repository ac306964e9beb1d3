r"""Model-based diffusion (MBD) as an optimiser of a known function, without gradients."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._prng import lean
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar

__all__ = ["OptimizeResult", "mbd_optimize"]


class OptimizeResult(NamedTuple):
    """Result of `mbd_optimize`.

    Attributes:
        x: Where it ended, of the shape of `start`.
        log_density: Log density there.
        path: Where it was after each step, of shape `(num_steps, *shape)`.
        effective_draws: How many of the draws counted at each step, of shape `(num_steps,)`.
    """

    x: Array
    log_density: Scalar
    path: Array
    effective_draws: Array

    __repr__ = record
    _repr_html_ = record_page


def mbd_optimize(
    key: PRNGKey,
    log_density: Callable[[Array], Scalar],
    start: Array,
    *,
    noise_levels: Array | None = None,
    num_draws: int = 256,
    temperature: float = 1.0,
    standardize: bool = False,
    bounds: tuple[float, float] | None = None,
    demonstration: Callable[[Array], Scalar] | None = None,
) -> OptimizeResult:
    r"""Score ascent with the scores of model-based diffusion: no gradient, no data, one point.

    From noise to none, $\bar y \leftarrow \sum_i w_i y_i$ with $y_i \sim \mathcal{N}(\bar y, \sigma_k^2)$ and
    $w_i \propto p_0(y_i)^{1 / T}$. This is path-integral control whose proposal is annealed. It ends near a
    maximum of the density; for draws from it there is `SmoothedDensity`.

    Args:
        key: PRNG key.
        log_density: `log_density(x)` of shape `()` for ONE point, minus a cost for instance.
        start: Where to start, of any shape.
        noise_levels: $\sigma_k$ in units of `x`, in the order of the steps. By default a hundred from 0.63 to
            0.01, for problems of order one.
        num_draws: Draws a step.
        temperature: $T$.
        standardize: Scale the log densities of each step to a standard deviation of one first, so that a
            temperature of 0.1 to 0.4 suits any cost. No distribution is then behind the weights.
        bounds: Least and largest value of a coordinate, to which draws are clipped.
        demonstration: Log weight of a point by the example of a demonstration, on the scale of the log
            densities over the temperature; the larger of the two counts.

    Raises:
        ValueError: If a number is out of range.

    References:
        Pan, Yi, Shi & Qu (2024), Model-Based Diffusion for Trajectory Optimization, arXiv 2407.01573.
    """
    num_draws = whole_number("num_draws", num_draws, 1)
    levels = _levels() if noise_levels is None else np.asarray(noise_levels, float)
    if not temperature > 0 or levels.ndim != 1 or not np.all(levels > 0):
        raise ValueError(
            "`mbd_optimize` expects a positive temperature and positive noise levels; "
            f"got {temperature} and {levels}. {_faq.numbers}"
        )
    start = jnp.asarray(start, jnp.result_type(float))
    settings = num_draws, temperature, standardize, bounds
    path, effective = _anneal(
        key, log_density, demonstration, start, jnp.asarray(levels, start.dtype), *settings
    )
    return OptimizeResult(path[-1], jnp.asarray(log_density(path[-1])), path, effective)


@eqx.filter_jit
def _anneal(key, log_density, demonstration, start, levels, num, temperature, standardize, bounds):
    def step(centre, given):
        key, level = given
        draws = centre + level * jax.random.normal(key, (num, *centre.shape), centre.dtype)
        draws = draws if bounds is None else jnp.clip(draws, *bounds)
        log_weights = jax.vmap(log_density)(draws)
        if standardize:
            spread = jnp.std(log_weights)
            log_weights = (log_weights - jnp.mean(log_weights)) / jnp.where(spread > 0, spread, 1)
        log_weights = log_weights / temperature
        if demonstration is not None:
            log_weights = jnp.maximum(log_weights, jax.vmap(demonstration)(draws))
        weights = jax.nn.softmax(log_weights)
        centre = jnp.tensordot(weights, draws, 1)
        return centre, (centre, 1 / jnp.sum(weights**2))

    return jax.lax.scan(step, start, (jax.random.split(lean(key), len(levels)), levels))[1]


def _levels() -> np.ndarray:
    r"""$\sqrt{1 - \bar\alpha_k}$ of a hundred steps with $\beta$ from 1e-4 to 1e-2, noisiest first."""
    return np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 100)))[::-1]
