"""A run in numbers: the error of its evidence, R-hat, and a table of marginal posteriors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..smc import SMCResult
from .names import real_parts

__all__ = ["log_evidence_error", "r_hat", "summary_table"]


def log_evidence_error(result: SMCResult) -> float:
    r"""Standard error of the log of the mean of the clouds' evidences, in nats.

    The larger of two estimates with $W_c \propto \hat Z_c$: from the clouds' genealogies,
    $\sqrt{\sum_c (W_c s_c)^2}$, and across $C \ge 2$ clouds $\mathrm{sd}(C W_c) / \sqrt C$. A few
    clouds say little about their own spread; a genealogy knows nothing of a mode that was lost. Where one
    cloud counts for all ($1 / \sum_c W_c^2 < 3/2$) the latter is near 1 however far apart the clouds are, and
    $\mathrm{sd}(\log \hat Z_c) / \sqrt C$ stands for it: next to nothing is known then.

    Args:
        result: Result with an axis of clouds.
    """
    log_evidence = np.atleast_1d(np.asarray(result.log_evidence, float))
    own = np.atleast_1d(np.asarray(result.log_evidence_error, float))
    share = np.exp(log_evidence - log_evidence.max())
    share = share / share.sum()
    error = float(np.sqrt(np.sum((share * own) ** 2)))
    count = len(share)
    if count < 2:
        return error
    spread = np.std(count * share, ddof=1)
    if np.sum(share**2) > 2 / 3:
        spread = max(spread, np.std(log_evidence, ddof=1))
    return float(max(error, spread / np.sqrt(count)))


def r_hat(values: np.ndarray) -> np.ndarray:
    r"""$\hat R$ of each scalar, from values that lead with `(num_clouds, num_draws)`.

    Clouds are compared whole: there is no drift within a cloud that halves would show. NaN for one
    cloud or a constant.

    References:
        Gelman & Rubin (1992), Inference from Iterative Simulation, Statistical Science.
    """
    values = np.asarray(values, float)
    clouds, draws = values.shape[:2]
    if clouds < 2 or draws < 2:
        return np.full(values.shape[2:], np.nan)
    within = values.var(1, ddof=1).mean(0)
    between = values.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((draws - 1) / draws + between / within)


def summary_table(grouped: Mapping[str, Any], prob: float = 0.9, max_rows: int = 24) -> str:
    """Table of marginal posteriors, one row a scalar.

    Columns: mean, sd, median, central interval, `mcse` (standard error of the mean, from the spread
    of the clouds) and `r_hat` across clouds.

    Args:
        grouped: Values by site, leading with `(num_clouds, num_draws)`; complex ones in two parts.
        prob: Probability of the central interval.
        max_rows: Rows a site; the rest is summed up in one line.
    """
    if not 0 < prob < 1:
        raise ValueError(f"`prob` is the probability of an interval, in (0, 1); got {prob}.")
    tails = (1 - prob) / 2, (1 + prob) / 2
    heads = ["mean", "sd", "median", *(f"{100 * q:.1f}%" for q in tails), "mcse", "r_hat"]
    rows: list[list[str]] = []
    for site, values in real_parts(grouped).items():
        rows += _site_rows(site, np.asarray(values, float), tails, max_rows)
    width = max([len(row[0]) for row in rows if len(row) > 1], default=0)
    lines = [" " * width + "".join(f"{head:>11}" for head in heads)]
    for name, *cells in rows:
        lines.append(f"{name:>{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _site_rows(site: str, values: np.ndarray, tails, max_rows: int) -> list[list[str]]:
    clouds, draws = values.shape[:2]
    event = values.shape[2:]
    flat = values.reshape(clouds, draws, -1)
    pooled = flat.reshape(clouds * draws, -1)
    means, hats = pooled.mean(0), np.atleast_1d(r_hat(flat))
    errors = (
        flat.mean(1).std(0, ddof=1) / np.sqrt(clouds) if clouds > 1 else np.full(len(means), np.nan)
    )
    shown = min(len(means), max(max_rows, 0))
    columns = [means, pooled.std(0), *np.quantile(pooled, [0.5, *tails], axis=0), errors, hats]
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


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"
