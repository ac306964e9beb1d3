"""How much wider an error is that was estimated from few independent parts."""

from typing import Any

import numpy as np
from scipy import stats

__all__ = ["widening"]


def widening(freedom: Any) -> np.ndarray:
    r"""$t / z$: the 97.5 % quantile of Student's distribution over that of the normal distribution.

    Args:
        freedom: Degrees of freedom, one less than the number of independent parts. From a single part nothing
            is known: the answer is then 84, so that it stays a number.
    """
    return stats.t.ppf(0.975, np.maximum(freedom, 0.5)) / stats.norm.ppf(0.975)
