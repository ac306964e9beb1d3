r"""Noised held-out examples at several noise levels, shared by all measurements.

A measurement is a function of one clean example, one key and one time. It is mapped over levels within
an example and over examples in batches, in one compiled program.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from ..density.paths import log_noise, over_examples, times_at
from ..energies import AbstractDenoiser, AbstractEnergy

__all__ = ["by_level", "check_times", "level_times", "mean_and_error", "noise_levels", "score_at"]


def level_times(prior: AbstractDenoiser, num: int = 8) -> np.ndarray:
    """Rising times from `t_min` to `t_max`, in equal steps of log noise, shape `(num,)`.

    Args:
        prior: An energy or a denoiser.
        num: Number of levels, both ends included.
    """
    num = whole_number("num", num, 1)
    low, high = log_noise(prior, [prior.t_min, prior.t_max])
    times = np.asarray(times_at(prior, np.linspace(low, high, num)), float)
    return np.concatenate([[prior.t_min], times[1:-1], [prior.t_max]])[:num]


def check_times(prior: AbstractDenoiser, times: Any) -> np.ndarray:
    """Times on the host, those of `level_times` where none are given.

    Raises:
        ValueError: If they are not a vector in [`t_min`, `t_max`].
    """
    times = level_times(prior) if times is None else np.asarray(times, float)
    inside = times.ndim == 1 and times.size > 0
    if not (inside and np.all((prior.t_min <= times) & (times <= prior.t_max))):
        raise ValueError(
            f"`times` must be a vector of times in [{prior.t_min:.4g}, {prior.t_max:.4g}], the prior's own "
            f"t_min and t_max; got {times}. `auditing.level_times(prior)` spreads some over its "
            f"levels. {_faq.schedules}"
        )
    return times


def noise_levels(prior: AbstractDenoiser, times: np.ndarray) -> np.ndarray:
    r"""$s = \sigma_t / \alpha_t$ in the units of the data, of the shape of `times`."""
    return np.exp(log_noise(prior, times))


def by_level(
    function: Callable[[Array, PRNGKey, Scalar], Any],
    data: Array,
    key: PRNGKey,
    times: Array,
    batch_size: int | None,
    evaluations: int = 1,
) -> Any:
    """`function(x0, key, t)` of every example at every level; leaves lead with `(num, num_levels)`.

    Args:
        function: The measurement.
        data: Clean examples of shape `(num, *shape)`.
        key: PRNG key.
        times: Shape `(num_levels,)`.
        batch_size: Bound on the evaluations at once; none if `None`.
        evaluations: Evaluations at once that one call of `function` takes.
    """

    def one(x0, key):
        keys = jax.random.split(key, len(times))
        return jax.lax.map(lambda at: function(x0, *at), (keys, times))

    batch = None if batch_size is None else max(1, batch_size // evaluations)
    return over_examples(one, batch, data, jax.random.split(key, len(data)))


def score_at(prior: AbstractDenoiser, u: Array, t: Scalar) -> Array:
    r"""$\nabla_u \log p_t(u)$ of $u = x_t / \alpha_t$; an energy's own score, which keeps its digits."""
    if isinstance(prior, AbstractEnergy):
        alpha_t, _ = prior.schedule(t)
        return alpha_t * prior.score(alpha_t * u, t)
    return prior.data_score(u, t)


def mean_and_error(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis and its standard error, from values of independent examples."""
    values = np.asarray(values, float)
    return values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5
