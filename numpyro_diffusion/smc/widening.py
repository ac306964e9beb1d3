"""How much wider an error is that was estimated from few independent parts, or from parts of skewed sizes."""

from typing import Any

import numpy as np
from scipy import stats

__all__ = ["skewness_of_sum", "skew_widening", "widening"]

_NORMAL = stats.norm.ppf(0.975)


def widening(freedom: Any) -> np.ndarray:
    r"""$t / z$: the 97.5 % quantile of Student's distribution over that of the normal distribution.

    Args:
        freedom: Degrees of freedom, one less than the number of independent parts. From a single part nothing
            is known: the answer is then 84, so that it stays a number.
    """
    return stats.t.ppf(0.975, np.maximum(freedom, 0.5)) / _NORMAL


def skew_widening(skewness: Any) -> np.ndarray:
    r"""$1 + |g| (2 z^2 + 1) / (6 z)$: what the quantile of a studentised mean gains by skewness.

    A sample of skewed parts that lacks the rare large ones has a mean that is too low and a variance
    that is too small, both at once: the statistic's lower 2.5 % quantile is $-z - g (2 z^2 + 1) / 6$ to
    first order, with $z$ that of the normal distribution.

    Args:
        skewness: $g$, the skewness of the parts over the root of their number; see `skewness_of_sum`.

    References:
        Johnson (1978), Modified t tests and confidence intervals for asymmetrical populations, JASA; Hall
        (1992), On the removal of skewness by transformation, JRSS B.
    """
    return 1 + np.abs(skewness) * (2 * _NORMAL**2 + 1) / (6 * _NORMAL)


def skewness_of_sum(deviations: np.ndarray) -> np.ndarray:
    r"""$\sum_i d_i^3 / (\sum_i d_i^2)^{3/2}$ along the first axis, 0 where nothing deviates."""
    second = np.sum(deviations**2, 0)
    third = np.sum(deviations**3, 0)
    return np.where(second > 0, third / np.where(second > 0, second, 1.0) ** 1.5, 0.0)
