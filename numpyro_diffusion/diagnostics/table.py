"""Summary tables: R-hat, effective sample sizes and marginal posteriors.

R-hat is ArviZ's. Its `summary` is not used, since clouds here count by their evidence; nor is rich, since a
table is a string that goes to logs, files and notebooks alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _faq
from .._arguments import whole_number
from ..smc.widening import skew_widening, skewness_of_sum, widening
from .families import beyond, family_sums, variances_of_means
from .names import real_parts

__all__ = ["means_and_errors", "probability_table", "r_hat", "summary_table"]


def r_hat(values: np.ndarray) -> np.ndarray:
    r"""$\hat R$ of each scalar, from values that lead with `(num_chains, num_draws)`: that of ArviZ.

    The larger of two of split clouds: for ranks, which sees means, and for ranks of distances from the
    median, which sees scales. Draws stand in the order of their ancestry, so halves of a cloud are families
    apart. NaN for one cloud, fewer than four draws, or a constant.

    References:
        Vehtari, Gelman, Simpson, Carpenter & Burkner (2021), Rank-normalization, folding, and localization,
        Bayesian Analysis.
    """
    values = np.asarray(values, float)
    clouds, draws = values.shape[:2]
    flat = values.reshape(clouds, draws, -1)
    if clouds < 2 or draws < 4:
        return np.full(values.shape[2:], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [_arviz_r_hat(flat[..., i]) for i in range(flat.shape[-1])]
    return np.array(each, float).reshape(values.shape[2:])


def _arviz_r_hat(values: np.ndarray) -> float:
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return float("nan")
    try:  # ArviZ 1.x
        from arviz_stats.base import array_stats  # type: ignore[import-not-found]
    except ImportError:
        import arviz

        return float(arviz.rhat(values))
    return float(array_stats.rhat(values, chain_axis=0, draw_axis=1))


def summary_table(
    grouped: Mapping[str, Any],
    prob: float = 0.9,
    max_rows: int = 24,
    shares: np.ndarray | None = None,
    families: np.ndarray | None = None,
) -> str:
    r"""Table of marginal posteriors, one row a scalar.

    Columns: mean, sd, median, central interval, `mcse` (standard error of the mean) and `r_hat` across
    clouds. Two estimates of the error are made, and the larger is shown: the spread of the clouds' means,
    and, if `families` are given, $\sqrt{\frac{N}{N-1} \sum_{c,e} (W_c S_{c,e})^2}$ with $W_c$ the shares and
    $S_{c,e}$ the sum over the draws of family $e$ of cloud $c$, of $N$ draws, of $(f - \bar f) / N$. A few
    clouds may agree by chance, and families know nothing of a mode that was lost. As in `log_evidence_error`
    the second is widened where families are few or the $W_c S_{c,e}$ skewed, and the first where clouds are
    further apart than their families explain.

    Args:
        grouped: Values by site, leading with `(num_chains, num_draws)`; complex ones in two parts.
        prob: Probability of the central interval.
        max_rows: Rows a site; the rest is summed up in one line.
        shares: What each cloud counts in all columns but `r_hat`, summing to 1; alike by default.
        families: The starting particle of its cloud from which each draw descends, of shape
            `(num_chains, num_draws)`.
    """
    if not 0 < prob < 1:
        raise ValueError(
            f"`prob` is the probability of an interval, in (0, 1); got {prob}. {_faq.numbers}"
        )
    tails = (1 - prob) / 2, (1 + prob) / 2
    heads = ["mean", "sd", "median", *(f"{100 * q:.1f}%" for q in tails), "mcse", "r_hat"]
    rows: list[list[str]] = []
    for site, values in real_parts(grouped).items():
        rows += _site_rows(site, np.asarray(values, float), tails, max_rows, shares, families)
    width = max([len(row[0]) for row in rows if len(row) > 1], default=0)
    lines = [" " * width + "".join(f"{head:>11}" for head in heads)]
    for name, *cells in rows:
        lines.append(f"{name:>{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _site_rows(
    site: str, values: np.ndarray, tails, max_rows: int, shares, families
) -> list[list[str]]:
    clouds, draws = values.shape[:2]
    event = values.shape[2:]
    flat = values.reshape(clouds, draws, -1)
    shares = np.full(clouds, 1 / clouds) if shares is None else np.asarray(shares, float)
    means, errors = means_and_errors(flat, shares, families)
    hats = np.atleast_1d(r_hat(flat))
    deviations = np.sqrt(shares @ ((flat - means) ** 2).mean(1))
    weights = np.repeat(shares / draws, draws)
    quantiles = _quantiles(flat.reshape(clouds * draws, -1), weights, [0.5, *tails])
    shown = min(len(means), max(max_rows, 0))
    columns = [means, deviations, *quantiles, errors, hats]
    rows = []
    for i in range(shown):
        index = ",".join(str(j) for j in np.unravel_index(i, event)) if event else ""
        cells = ["-" if np.isnan(column[i]) else _number(column[i]) for column in columns]
        rows.append([f"{site}[{index}]" if event else site, *cells])
    if shown < len(means):
        rest = slice(shown, None)
        low, high = means[rest].min(), means[rest].max()
        line = f"  {site}: {len(means) - shown} more, means in [{low:.3g}, {high:.3g}]"
        if np.isfinite(hats[rest]).any():
            line += f", worst r_hat {np.nanmax(hats[rest]):.2f}"
        rows.append([line])
    return rows


def means_and_errors(
    values: np.ndarray, shares: np.ndarray, families: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Means of values `(clouds, draws, scalars)` and their standard errors, as in `summary_table`."""
    clouds, by_cloud = len(values), values.mean(1)
    means = shares @ by_cloud
    if clouds < 2:
        return means, np.full(len(means), np.nan)
    factor = clouds / (clouds - 1)  # of a ratio of sums over clouds
    spread = np.sqrt(factor * np.sum((shares[:, None] * (by_cloud - means)) ** 2, 0))
    if families is None:
        return means, spread
    own, refuted = _family_errors(values, means, shares, families)
    return means, np.maximum(np.where(refuted, widening(clouds - 1), 1.0) * spread, own)


def _family_errors(
    values: np.ndarray, means: np.ndarray, shares: np.ndarray, families: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of means over all clouds by families of draws, and whether the clouds refute them."""
    clouds, draws, _ = values.shape
    if draws < 2:
        return np.zeros(len(means)), np.full(len(means), True)  # there is but the spread
    even = np.full((clouds, draws), 1 / draws)
    by_family = [
        (family_sums((value - means) / draws, family), family_sums(one, family))
        for value, one, family in zip(values, even, families, strict=True)
    ]
    freedom = sum(1 / np.sum(part**2) - 1 for _, part in by_family)
    sums, parts = (
        np.concatenate([share * each[i] for share, each in zip(shares, by_family, strict=True)])
        for i in (0, 1)
    )
    wider = widening(1 / np.sum(parts**2) - 1) * skew_widening(skewness_of_sum(sums))
    own = np.sqrt(np.sum(sums**2, 0) * draws / (draws - 1)) * wider
    return own, beyond(*variances_of_means(values, even, families), clouds, float(freedom))


def _quantiles(values: np.ndarray, weights: np.ndarray, levels: list[float]) -> np.ndarray:
    """Quantiles of each column of weighted values; NumPy's, up to its interpolation, for equal weights."""
    if np.ptp(weights) == 0:
        return np.quantile(values, levels, axis=0)
    order = np.argsort(values, axis=0)
    ranked = np.take_along_axis(values, order, 0)
    middle = np.cumsum(weights[order], 0) - 0.5 * weights[order]
    each = [np.interp(levels, middle[:, i], ranked[:, i]) for i in range(values.shape[1])]
    return np.array(each).reshape(-1, len(levels)).T


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def probability_table(probabilities: Mapping[str, Any], max_rows: int = 24) -> str:
    """Probabilities of the values of discrete sites, the first of each being that of the smallest value.

    Args:
        probabilities: By site, values as the last axis.
        max_rows: Rows a site.
    """
    max_rows = whole_number("max_rows", max_rows, 0)
    lines = ["probabilities of values, in order:"]
    for site, values in probabilities.items():
        values = np.asarray(values, float)
        rows = values.reshape(-1, values.shape[-1])
        for i, row in enumerate(rows[:max_rows]):
            index = ",".join(str(j) for j in np.unravel_index(i, values.shape[:-1]))
            name = f"{site}[{index}]" if values.ndim > 1 else site
            shown = "  ".join(f"{p:.3f}" for p in row[:max_rows])
            lines.append(f"  {name}: {shown}" + ("  ..." if len(row) > max_rows else ""))
        if len(rows) > max_rows:
            lines.append(f"  {site}: {len(rows) - max_rows} more")
    return "\n".join(lines)
