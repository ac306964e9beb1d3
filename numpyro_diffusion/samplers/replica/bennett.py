r"""Bennett's acceptance ratio (BAR): the ratio of two normalisers from draws of both distributions."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["batch_means_error", "bennett"]

Floats = NDArray[np.floating]


def bennett(forward: Floats, backward: Floats) -> tuple[float, Floats]:
    r"""Bennett's acceptance ratio: $r = \log Z_1 / Z_0$ from log weights in both directions.

    With a map $T$ and $W = \log \gamma_1(T z) + \log |\det T| - \log \gamma_0(z)$ at draws of $\gamma_0$, and
    the same backwards, $W'$, at draws of $\gamma_1$,

    $$\sum_i \operatorname{sigmoid}(W_i - r) = \sum_i \operatorname{sigmoid}(W'_i + r).$$

    Of all estimates from as many draws of either side it has the least variance, where draws are independent.
    The two sides may be correlated: the error is that of the sequence which is handed back.

    Args:
        forward: $W$, of any shape; -inf where the density vanishes.
        backward: $W'$, of the same shape.

    Returns:
        $r$, and the first-order deviation of $r$ that is due to each pair of draws; their mean is 0. If all
        log weights of one side are -inf, the distributions do not overlap, and both are NaN.

    References:
        Bennett (1976), Efficient estimation of free energy differences from Monte Carlo data, Journal of
        Computational Physics. Meng & Wong (1996), Statistica Sinica.
    """
    forward, backward = np.asarray(forward, float), np.asarray(backward, float)
    one, other = np.isfinite(forward), np.isfinite(backward)
    if not (one.any() and other.any()):
        return float("nan"), np.full_like(forward, np.nan)
    # The difference of the sums falls with r, and beyond these bounds it has a sign.
    ends = np.concatenate([forward[one], -backward[other]])
    odds = abs(np.log(one.sum() / other.sum())) + 40.0
    low, high = ends.min() - odds, ends.max() + odds
    for _ in range(100):
        r = 0.5 * (low + high)
        above = expit(forward - r).sum() > expit(backward + r).sum()
        low, high = (r, high) if above else (low, r)
    one, other = expit(forward - r), expit(backward + r)
    slope = np.mean(one * (1 - one) + other * (1 - other))
    return float(r), (one - other) / slope


def batch_means_error(series: Floats, num_batches: int = 10) -> float:
    """Standard error of the mean of a few correlated sequences, from the means of stretches of them.

    Args:
        series: Shape `(num_chains, length)`.
        num_batches: Stretches of each. They must be longer than the sequences remember.

    References:
        Flegal & Jones (2010), Batch means and spectral variance estimators, Annals of Statistics.
    """
    if series.shape[1] < num_batches:
        return float("nan")
    size = series.shape[1] // num_batches
    means = series[:, series.shape[1] - size * num_batches :]
    means = means.reshape(series.shape[0] * num_batches, size).mean(1)
    return float(means.std(ddof=1) / means.size**0.5)
