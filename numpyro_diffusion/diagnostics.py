r"""What a run says about itself: errors, warnings, tables, a verdict in words, and the ArviZ object.

Independent clouds of particles take the place of chains. Everything here reads a finished
`SMCResult` whose leaves lead with an axis of clouds, and nothing here changes a number.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
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
    planned = _num_levels(result)

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
            place = f"{by_level[worst]} of {total} particles at level {worst + 1} (of {planned})"
            if len(levels) > 1:
                place += f", the worst of {len(levels)} levels from {levels[0]} to {levels[-1]}"
            places.append(place)
        if places:
            sentences.append(f"site `{site}`: " + " and ".join(places))
    return "; ".join(sentences)


def _num_levels(result: SMCResult) -> int:
    return jax.tree.leaves(result.levels)[0].shape[0]


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
        low, high = means[rest].min(), means[rest].max()
        line = f"  {site}: {len(means) - shown} more, means in [{low:.3g}, {high:.3g}]"
        if np.isfinite(hats[rest]).any():
            line += f", worst r_hat {np.nanmax(hats[rest]):.2f}"
        rows.append([line])
    return rows


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def verdict(result: SMCResult) -> str:
    """A judgement on a run in plain words, with remedies; one finding a line."""
    log_evidence = np.atleast_1d(np.asarray(result.log_evidence, float))
    if result.trace is None:
        return "Not finished: no level was run. `resume()` goes on."
    trace = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(log_evidence), -1), result.trace)
    num_particles = np.asarray(result.log_weights).shape[-1]
    findings = [
        _unfinished(result),
        _dead_values(result),
        _collapse(trace.unique_ancestors, num_particles),
        _steep_level(trace.conditional_ess),
        _uneven_weights(trace.ess),
        _disagreement(log_evidence),
        _acceptance("moves", getattr(trace.info, "acceptance", None), "num_moves"),
        _acceptance(
            "moves of the other sites",
            getattr(trace.info, "other_acceptance", None),
            "num_other_moves",
        ),
    ]
    findings = [finding for finding in findings if finding]
    if findings:
        return "\n".join(findings)
    return _all_well(trace, log_evidence, num_particles)


def _all_well(trace, log_evidence: np.ndarray, num_particles: int) -> str:
    ess, ancestors = trace.ess[:, -1].min(), int(trace.unique_ancestors[:, -1].min())
    words = (
        f"Nothing to worry about: at least {ancestors} of {num_particles} starting particles have "
        f"offspring, the final effective sample size is at least {ess:.0%} of a cloud"
    )
    if len(log_evidence) < 2:
        return words + ". But one cloud cannot be checked against another: run two or more."
    return words + f", and the clouds agree on the evidence within {np.ptp(log_evidence):.2f} nats."


def _unfinished(result: SMCResult) -> str:
    if result.completed:
        return ""
    return (
        f"Not finished: {result.num_levels_run} of {_num_levels(result)} levels were run, so the "
        "particles follow a law on the way to the target. `resume()` goes on."
    )


def _dead_values(result: SMCResult) -> str:
    found = [
        (what, non_finite(result, kind)) for kind, what in (("nan", "NaN"), ("infinite", "+inf"))
    ]
    lines = [f"Log density {what} at {where}." for what, where in found if where]
    if lines and lines[-1].startswith("Log density +inf"):
        lines.append("No weight is right for a particle of infinite density: bound the likelihood.")
    return " ".join(lines)


def _collapse(ancestors: np.ndarray, num_particles: int) -> str:
    few = max(2, min(10, num_particles // 20))
    cloud = int(np.argmin(ancestors[:, -1]))
    left = int(ancestors[cloud, -1])
    if left > few:
        return ""
    level = int(np.argmax(ancestors[cloud] <= few)) + 1
    return (
        f"Cloud {cloud} collapsed at level {level}: {left} of {num_particles} starting particles have "
        "offspring at the end, so modes may be lost and errors are too small. Try more particles, more "
        "moves a level, or more levels (a higher `conditional_ess`)."
    )


def _steep_level(shares: np.ndarray) -> str:
    worst, typical = shares.min(0), float(np.median(shares))
    level = int(np.argmin(worst))
    if worst[level] >= 0.5 * typical:
        return ""
    return (
        f"Level {level + 1} kept {worst[level]:.0%} of a cloud's effective sample size, where a "
        f"typical level keeps {typical:.0%}: the levels are too far apart there. Try a larger pilot "
        "cloud (`num_pilot`) or a higher `conditional_ess`."
    )


def _uneven_weights(ess: np.ndarray) -> str:
    share = float(ess[:, -1].min())
    if share >= 0.2:
        return ""
    return (
        f"The final effective sample size is {share:.1%} of a cloud: few particles carry the answer. "
        "Try more levels (a higher `conditional_ess`) or more moves."
    )


def _disagreement(log_evidence: np.ndarray) -> str:
    spread = float(np.std(log_evidence))
    if spread <= 0.5:
        return ""
    return (
        f"The clouds disagree on the log evidence: their standard deviation is {spread:.1f} nats, so "
        "neither it nor its error means much, and modes may be missing from some clouds. Try more "
        "particles or more moves."
    )


def _acceptance(what: str, rates: np.ndarray | None, option: str) -> str:
    if rates is None or np.all(rates == 1):  # there was nothing to move
        return ""
    by_level = rates.mean(0)
    level, typical = int(np.argmin(by_level)), float(np.median(by_level))
    if by_level[level] < 0.1:
        return (
            f"The {what} accept {by_level[level]:.0%} at level {level + 1} ({typical:.0%} typically): "
            f"their step is too large there. Try a larger pilot cloud (`num_pilot`) or more `{option}`."
        )
    if typical > 0.95:
        return (
            f"The {what} accept {typical:.0%}: their steps are smaller than need be. Try a larger "
            f"pilot cloud (`num_pilot`) or more `{option}`."
        )
    return ""


def array_arguments(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], observed: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays among a model's arguments that are not observed values, by parameter name.

    Args:
        model: A function.
        args: Its arguments; those that `*args` takes are called `arg0`, `arg1`, ...
        kwargs: Its keyword arguments.
        observed: Values by observed site.
    """
    try:
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = named[: len(args)] + [f"arg{i}" for i in range(len(named), len(args))]
    values = {**dict(zip(names, args, strict=True)), **kwargs}
    known = [np.asarray(value) for value in observed.values()]
    arrays = {name: np.asarray(value) for name, value in values.items() if _is_numeric(value)}
    return {n: a for n, a in arrays.items() if not any(_same(a, other) for other in known)}


def _is_numeric(value: Any) -> bool:
    if not isinstance(value, np.ndarray | jax.Array):
        return False
    return jnp.issubdtype(value.dtype, np.number) or jnp.issubdtype(value.dtype, np.bool_)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


_SAMPLE_DIMS = {
    "observed_data": (),
    "constant_data": (),
    "weighted_particles": ("chain", "particle"),
}


def to_arviz(
    groups: Mapping[str, Mapping[str, Any]],
    result: SMCResult,
    level_times: np.ndarray | None,
    attributes: Mapping[str, Any],
) -> Any:
    """The ArviZ object of a run: `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

    Values of `observed_data` and `constant_data` have no sample dimensions, those of
    `weighted_particles` lead with `(chain, particle)`, all others with `(chain, draw)`. Points whose
    log likelihood is 0 in every draw are masked data: they are left out, which changes no LOO, and the
    others keep their flat index. A group `smc_trace` with dimensions `(chain, level)` is added; levels
    count from 1.

    Args:
        groups: Arrays by group and variable.
        result: Result with an axis of clouds.
        level_times: Schedule time at the end of each level, if there is one.
        attributes: Kept on the object and on its posterior, as text and numbers.
    """
    import arviz
    import xarray

    attributes = {name: _plain(value) for name, value in attributes.items()}
    attributes["inference_library"] = "numpyro_diffusion"
    with contextlib.suppress(PackageNotFoundError):  # run from a source tree
        attributes["inference_library_version"] = version("numpyro-diffusion")
    datasets = {}
    for group, values in groups.items():
        leading = _SAMPLE_DIMS.get(group, ("chain", "draw"))
        variables = {name: (leading, np.asarray(value)) for name, value in values.items()}
        seen = _leave_out_masked(variables) if group == "log_likelihood" else {}
        datasets[group] = _dataset(xarray, variables).assign_coords(seen)
    datasets["smc_trace"] = _dataset(xarray, _trace_variables(result, level_times))
    datasets["posterior"].attrs.update(attributes)
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=attributes, **datasets)
    tree = xarray.DataTree.from_dict({f"/{group}": each for group, each in datasets.items()})
    tree.attrs.update(attributes)
    return tree


def _leave_out_masked(variables: dict) -> dict[str, np.ndarray]:
    """Drop masked points in place; returns what is left of each such site, by dimension."""
    seen = {}
    for name, (leading, values) in list(variables.items()):
        counts = np.any(values != 0, axis=(0, 1))
        if not counts.any():
            del variables[name]
        elif not counts.all():
            dim = name.replace("/", ".") + "_seen"
            seen[dim] = np.flatnonzero(counts)
            variables[name] = ((*leading, dim), values[:, :, counts])
    return seen


def _trace_variables(
    result: SMCResult, level_times
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    trace, levels, info = result.trace, result.levels, result.trace.info
    by_level = {
        "t": level_times,
        "clock": getattr(levels, "next_clock", None),
        "power": getattr(levels, "next_power", None),
    }
    by_cloud_and_level = {
        "ess": trace.ess,
        "conditional_ess": trace.conditional_ess,
        "log_evidence_increment": trace.log_evidence_increment,
        "unique_ancestors": trace.unique_ancestors,
        "acceptance": getattr(info, "acceptance", None),
        "other_acceptance": getattr(info, "other_acceptance", None),
        "resampled": trace.resampled,
    }
    by_cloud = {
        "log_evidence": result.log_evidence,
        "log_evidence_error": result.log_evidence_error,
    }
    parts = (
        (("level",), by_level),
        (("chain", "level"), by_cloud_and_level),
        (("chain",), by_cloud),
    )
    return {
        name: (dims, np.asarray(value))
        for dims, values in parts
        for name, value in values.items()
        if value is not None
    }


def _dataset(xarray, variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]]) -> Any:
    """Dataset whose names, types and dimensions netCDF can hold."""
    arrays, coords = {}, {}
    for site, (leading, values) in variables.items():
        name = site.replace("/", ".")  # a path separator in netCDF
        own = tuple(f"{name}_dim_{i}" for i in range(values.ndim - len(leading)))
        dims = (*leading, *own)
        arrays[name] = (dims, _storable(values))
        coords |= {
            d: np.arange(n) + (d == "level") for d, n in zip(dims, values.shape, strict=True)
        }
    return xarray.Dataset(arrays, coords)


def _storable(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.int8)
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 4 and values.dtype.kind == "f":
        return values.astype(np.float32)  # half precision, bfloat16 among it
    return values


def _plain(value: Any) -> str | int | float:
    if isinstance(value, bool | np.bool_):
        return int(value)
    return value if isinstance(value, str | int | float) else str(value)
