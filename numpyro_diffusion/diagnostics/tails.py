"""Pareto k-hat: the tail of the importance weights."""

import numpy as np

from ..samplers.split import SplitResult
from ..smc import SMCResult

__all__ = ["pareto_k", "tail_shape"]


def pareto_k(result: SMCResult | SplitResult) -> np.ndarray:
    r"""Shape of a generalised Pareto distribution fitted to the largest final weights, one a cloud or chain.

    Below 0.5 the weights have a variance and the usual error bars hold; above 0.7 a few unseen particles
    would change the answer. `nan` where the weights are equal, as after a resampling.

    Args:
        result: A result of `run_smc` or `split_gibbs`.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto Smoothed Importance Sampling, JMLR.
    """
    log_weights = np.atleast_2d(np.asarray(result.log_weights, float))
    return np.array([tail_shape(cloud) for cloud in log_weights])


def tail_shape(log_weights: np.ndarray) -> float:
    """Pareto shape of some importance weights, by ArviZ; `nan` where there are few or they are equal."""
    log_weights = log_weights[np.isfinite(log_weights)]
    if len(log_weights) < 20 or np.ptp(log_weights) < 1e-6:
        return float("nan")
    try:  # ArviZ 1.x, whose argument is minus the log weights
        from arviz_stats.base import array_stats  # type: ignore[import-not-found]
    except ImportError:
        import arviz

        return float(arviz.psislw(log_weights)[1])
    return float(array_stats.psislw(-log_weights)[1])
