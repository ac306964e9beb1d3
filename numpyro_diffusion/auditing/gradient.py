r"""Whether an energy's gradient equals its score, by noise level."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data
from ..energies import AbstractEnergy
from ..energies.check import RULES, check_has_density, measure
from .levels import by_level, check_times, mean_and_error, noise_levels

__all__ = ["Agreement", "gradient_agreement"]


class Agreement(NamedTuple):
    r"""Density against score along short segments, by level; arrays of shape `(num_levels,)`.

    Attributes:
        times: The levels.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        discrepancy: Mean distance, in nats, between the rise of the energy and that of the score.
        discrepancy_error: Its standard error.
        rise: Root mean square rise along a segment, in nats: what `discrepancy` is to be compared with.
        violations: Share of the segments off by more than rounding and quadrature allow.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    discrepancy: np.ndarray
    discrepancy_error: np.ndarray
    rise: np.ndarray
    violations: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def gradient_agreement(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    times=None,
    *,
    batch_size: int | None = 4096,
) -> Agreement:
    r"""The measurement of `check_energy` at many noised examples and levels, without its refusal.

    $E(b) - E(a) + \int_a^b \nabla \log p_t(x) \cdot dx$ vanishes along any segment. Those here have a random
    direction and about the noise level's length, and run through a noised example; the integral is by
    Gauss-Legendre quadrature of the score.

    Args:
        energy: The energy.
        data: Clean examples of shape `(num, *shape)`.
        key: PRNG key.
        times: Levels; eight in equal steps of log noise by default.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data, times or numbers cannot be used.
    """
    check_has_density("gradient_agreement", energy)
    data = check_data(energy, data, batch_size=batch_size)
    times = check_times(energy, times)
    values = _values(energy, data, key, jnp.asarray(times, data.dtype), batch_size)
    discrepancy, rise, violated = (np.asarray(value, float) for value in values)
    return Agreement(
        times,
        noise_levels(energy, times),
        *mean_and_error(discrepancy),
        np.sqrt((rise**2).mean(0)),
        violated.mean(0),
    )


@eqx.filter_jit
def _values(energy, data, key, times, batch_size):
    """Discrepancy, rise and violation, each of shape `(num, num_levels)`."""
    rules = [jnp.asarray(weights, data.dtype) for _, weights in RULES]
    precision = float(jnp.finfo(data.dtype).eps)

    def one(x0, key, t):
        alpha_t, sigma_t = energy.schedule(t)
        noise, direction = sigma_t * jax.random.normal(key, (2, *x0.shape), x0.dtype)
        x, direction = alpha_t * x0 + noise, 0.5 * direction
        value, score, _, ends, slopes = measure(energy, x, t, direction)
        coarse, fine = (w @ slope for w, slope in zip(rules, slopes, strict=True))
        rise = ends[1] - ends[0]
        # As in `check_energy`: terms may be larger than their sum, and positions are rounded.
        size = jnp.abs(value) + rules[1] @ jnp.abs(slopes[1]) + x.size
        moved = jnp.sum(jnp.abs(score) * (jnp.abs(x) + jnp.abs(direction)))
        allowed = precision * (64 * size + 8 * moved) + 10 * jnp.abs(fine - coarse)
        discrepancy = jnp.abs(rise + fine)
        return discrepancy, rise, ~(discrepancy <= allowed)  # NaN is a violation

    nodes = sum(len(weights) for weights in rules) + 4
    return by_level(one, data, key, times, batch_size, nodes)
