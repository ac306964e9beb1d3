r"""The continuous ranked probability score (CRPS) of weighted draws: how good a forecast was.

$$\mathrm{CRPS}(F, y) = \mathbb{E} |X - y| - \tfrac12 \mathbb{E} |X - X'|
  = \int (F(z) - 1\{y \le z\})^2\, dz$$

with $X, X'$ independent draws of $F$. It is proper: on average nothing scores lower than the distribution
that $y$ comes from. For a point forecast it is the absolute error.
"""

import numpy as np

from .. import _faq

__all__ = ["crps", "crps_sum"]


def crps(draws, observed, weights=None, *, fair: bool = True) -> np.ndarray:
    r"""CRPS of draws, entry by entry, in units of the data; the lower the better.

    For $\mathcal{N}(m, s^2)$ it is $s\,[z (2 \Phi(z) - 1) + 2 \varphi(z) - 1 / \sqrt\pi]$, $z = (y - m) / s$.

    Args:
        draws: Shape `(num, *shape)`, at least 2 of them.
        observed: What came, shape `*shape`.
        weights: One a draw, not negative, of any total; equal ones by default.
        fair: Whether the mean distance of two draws leaves out a draw and itself, so that for independent
            draws the score has the expectation of the forecast's own, however few they are. The score
            of the draws as a distribution otherwise.

    Returns:
        Shape `*shape`.

    Raises:
        ValueError: If shapes disagree, or something is not finite.

    References:
        Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation, JASA. Ferro
        (2014), Fair scores for ensemble forecasts, Quarterly Journal of the Royal Meteorological Society.
    """
    draws, observed = np.asarray(draws, float), np.asarray(observed, float)
    if draws.ndim < 1 or draws.shape[1:] != observed.shape or len(draws) < 2:
        raise ValueError(
            "`crps` expects at least 2 draws of shape (num, *shape) and observations of shape (*shape); got "
            f"{draws.shape} and {observed.shape}. Put draws along the first axis. {_faq.shapes}"
        )
    if not (np.isfinite(draws).all() and np.isfinite(observed).all()):
        raise ValueError(
            "`crps` expects finite draws and observations; got NaN or inf. Leave out what is missing: "
            f"`seen = ~np.isnan(y)`, `crps(draws[:, seen], y[seen])`. {_faq.finite}"
        )
    w = np.ones(len(draws)) if weights is None else np.asarray(weights, float)
    if w.shape != (len(draws),) or not (np.isfinite(w) & (w >= 0)).all() or (w > 0).sum() < 2:
        raise ValueError(
            f"`weights` of `crps` expects {len(draws)} finite numbers, not negative and at least 2 above 0; "
            f"got shape {w.shape}. {_faq.finite}"
        )
    w = (w / w.sum()).reshape(-1, *[1] * observed.ndim)
    order = np.argsort(draws, 0)
    x = np.take_along_axis(draws, order, 0)
    w_sorted = np.take_along_axis(np.broadcast_to(w, draws.shape), order, 0)
    # Half the mean distance of two draws, from their ranks.
    spread = np.sum(w_sorted * x * (2 * np.cumsum(w_sorted, 0) - w_sorted - 1), 0)
    if fair:
        spread = spread / (1 - np.sum(w**2))
    return np.sum(w * np.abs(draws - observed), 0) - spread


def crps_sum(draws, observed, weights=None, *, fair: bool = True) -> float:
    r"""$\mathrm{CRPS}_{\mathrm{sum}}$: of the sum of several series, over the mean size of that sum.

    $\sum_\tau \mathrm{CRPS}(\sum_i X_{\tau i}, \sum_i y_{\tau i}) / \sum_\tau |\sum_i y_{\tau i}|$, without
    unit: what forecasts of many series are usually ranked by. It sees the dependence between them.

    Args:
        draws: Shape `(num, steps, series)`.
        observed: Shape `(steps, series)`.
        weights: One a draw; see `crps`.
        fair: See `crps`.

    Raises:
        ValueError: If shapes disagree, something is not finite, or all sums are 0.

    References:
        Salinas, Bohlke-Schneider, Callot, Medico & Gasthaus (2019), High-dimensional multivariate forecasting
        with low-rank Gaussian copula processes, NeurIPS, arXiv 1910.03002.
    """
    draws, observed = np.asarray(draws, float), np.asarray(observed, float)
    if draws.ndim != 3 or observed.ndim != 2:
        raise ValueError(
            "`crps_sum` expects draws of shape (num, steps, series), observations of shape (steps, series); "
            f"got {draws.shape} and {observed.shape}. One series is `y[:, None]`. {_faq.shapes}"
        )
    score = crps(draws.sum(-1), observed.sum(-1), weights, fair=fair)
    size = np.abs(observed.sum(-1)).sum()
    if size == 0:
        raise ValueError(
            "`crps_sum` divides by the size of the observed sums, which are all 0; got none to compare with. "
            f"Use `crps`. {_faq.numbers}"
        )
    return float(score.sum() / size)
