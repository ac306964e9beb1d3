r"""What a run says about itself: errors, warnings, tables, a verdict in words, and the ArviZ object.

Independent clouds of particles take the place of chains. Everything here reads a finished
`SMCResult` whose leaves lead with an axis of clouds, and nothing here changes a number.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .smc import SMCResult

__all__ = [
    "array_arguments",
    "log_evidence_error",
    "non_finite",
    "r_hat",
    "summary_table",
    "to_arviz",
    "verdict",
]


def log_evidence_error(result: SMCResult) -> float:
    r"""Standard error of the log of the mean of the clouds' evidences, in nats.

    The larger of two estimates with $W_c \propto \hat Z_c$: across $C \ge 2$ clouds,
    $\mathrm{sd}(C W_c) / \sqrt C$, and from their genealogies, $\sqrt{\sum_c (W_c s_c)^2}$. A few
    clouds say little about their own spread; a genealogy knows nothing of a mode that was lost.

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
    return max(error, float(np.std(count * share, ddof=1) / np.sqrt(count)))


def non_finite(result: SMCResult, kind: str) -> str:
    """Where log densities were NaN or +inf, in words; empty if nowhere.

    Args:
        result: Result of a scheme that reports the shares `nan` and `infinite` by site.
        kind: `"nan"` or `"infinite"`.

    Returns:
        For instance "site `y`: 12 of 2048 particles at level 4 (of 31)".
    """
    start = getattr(result.initial_info, kind, {})
    later = getattr(getattr(result.trace, "info", None), kind, {})
    total = np.asarray(result.log_weights).size
    each = np.asarray(result.log_weights).shape[-1]

    def counts(share, ndim):
        share = np.asarray(share, float)
        share = share if share.ndim == ndim else share[None]
        return np.rint(each * share).astype(int).sum(0)

    sentences = []
    for site in {**start, **later}:
        places = []
        at_start = int(counts(start[site], 1)) if site in start else 0
        if at_start:
            places.append(f"{at_start} of {total} particles at the start")
        by_level = counts(later[site], 2) if site in later else np.zeros(0, int)
        levels = np.flatnonzero(by_level) + 1
        if len(levels):
            worst = int(np.argmax(by_level))
            place = (
                f"{by_level[worst]} of {total} particles at level {worst + 1} (of {len(by_level)})"
            )
            if len(levels) > 1:
                place += f", the worst of {len(levels)} levels from {levels[0]} to {levels[-1]}"
            places.append(place)
        if places:
            sentences.append(f"site `{site}`: " + " and ".join(places))
    return "; ".join(sentences)


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
        grouped: Values by site, leading with `(num_clouds, num_draws)`.
        prob: Probability of the central interval.
        max_rows: Rows a site; the rest is summed up in one line.
    """
    if not 0 < prob < 1:
        raise ValueError(f"`prob` is the probability of an interval, in (0, 1); got {prob}.")
    tails = (1 - prob) / 2, (1 + prob) / 2
    heads = ["mean", "sd", "median", *(f"{100 * q:.1f}%" for q in tails), "mcse", "r_hat"]
    rows: list[list[str]] = []
    for site, values in grouped.items():
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
        line = f"  {site}: {len(means) - shown} more, means in [{means[rest].min():.3g}, {means[rest].max():.3g}]"
        if np.isfinite(hats[rest]).any():
            line += f", worst r_hat {np.nanmax(hats[rest]):.2f}"
        rows.append([line])
    return rows


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def verdict(result: SMCResult) -> str:
    """A judgement on the run in plain words."""
    return "fine" if result.completed else "not completed"


def array_arguments(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], observed: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays among a model's arguments, by parameter name, that are not observed values."""
    try:
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = plain[: len(args)] + [f"arg{i}" for i in range(len(plain), len(args))]
    known = [np.asarray(value) for value in observed.values()]
    arrays = {}
    for name, value in [*zip(names, args, strict=True), *kwargs.items()]:
        if not isinstance(value, np.ndarray | jax.Array) or jnp.issubdtype(
            value.dtype, jax.dtypes.prng_key
        ):
            continue
        value = np.asarray(value)
        if value.dtype.kind not in "biuf" or any(_same(value, other) for other in known):
            continue
        arrays[name] = value
    return arrays


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def to_arviz(
    groups: Mapping[str, Mapping[str, Any]],
    result: SMCResult,
    level_times: np.ndarray | None,
    attributes: Mapping[str, Any],
) -> Any:
    """The ArviZ object of a run."""
    raise NotImplementedError
