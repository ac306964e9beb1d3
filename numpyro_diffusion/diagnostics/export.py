"""Export of a run to ArviZ: arrays, names and types that netCDF can hold."""

import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from .._arguments import is_numeric, named_arguments
from ..smc import SMCResult
from .dims import Dims
from .names import free_name

__all__ = ["array_arguments", "to_arviz"]

_SAMPLE_DIMS = {
    "observed_data": (),
    "constant_data": (),
    "object_stats": (),
    "weighted_particles": ("chain", "particle"),
}
_VERSIONS = {
    "inference_library_version": "numpyro-diffusion",
    "numpyro_version": "numpyro",
    "jax_version": "jax",
    "blackjax_version": "blackjax",
}
_OF_LOO = (
    "errors of LOO and of comparisons by it are those of the data for given draws; the Monte Carlo error of "
    "the draws comes on top"
)


def to_arviz(
    groups: Mapping[str, Mapping[str, Any]],
    result: SMCResult | None,
    level_times: np.ndarray | None,
    attributes: Mapping[str, Any],
    marks: Mapping[str, Mapping[str, str]] | None = None,
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    pred_dims: Mapping[str, Any] | None = None,
    known_dims: Mapping[str, Any] | None = None,
) -> Any:
    """The ArviZ object of a run: `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

    Values of `observed_data`, `constant_data` and `object_stats` have no sample dimensions, those of
    `weighted_particles` lead with `(chain, particle)`, all others with `(chain, draw)`. Points whose
    log likelihood is 0 in every draw are masked data: they are left out, which changes no LOO, and the
    others keep their flat index. A group `smc_trace` with dimensions `(chain, level)` is added; levels
    count from 1.

    Args:
        groups: Arrays by group and variable, as `variable_names` calls them.
        result: Result with an axis of clouds; `None` where there are no levels to tell of.
        level_times: Schedule time at the end of each level, if there is one.
        attributes: Kept on the object and on its posterior, as text, numbers and arrays of them.
        marks: Attributes of single groups.
        coords: Values along dimensions, by name.
        dims: Names of the dimensions of variables after chains and draws.
        pred_dims: The same in the groups of predictions alone.
        known_dims: The same as the model knows them, where names are free.

    Raises:
        ValueError: If names or coordinates do not fit the shapes.
    """
    import arviz
    import xarray

    named = Dims.of(dims, known_dims, coords, groups)

    attributes = {name: _plain(value) for name, value in attributes.items()}
    attributes["inference_library"] = "numpyro_diffusion"
    for name, package in _VERSIONS.items():
        with contextlib.suppress(PackageNotFoundError):  # run from a source tree
            attributes[name] = version(package)
    attributes["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    datasets = {}
    for group, values in groups.items():
        leading = _SAMPLE_DIMS.get(group, ("chain", "draw"))
        names = {name: name.replace("/", ".") for name in values}  # a path separator in netCDF
        variables = {names[n]: (leading, np.asarray(value)) for n, value in values.items()}
        seen = _leave_out_masked(variables) if group == "log_likelihood" else {}
        own = named.but(pred_dims) if group.endswith("_predictive") else named
        datasets[group] = _dataset(xarray, variables, own).assign_coords(seen)
    if "log_likelihood" in datasets:
        datasets["log_likelihood"].attrs["errors"] = _OF_LOO
    if result is not None:
        datasets["smc_trace"] = _dataset(xarray, _trace_variables(result, level_times), Dims())
    for group, attrs in (marks or {}).items():
        if group in datasets:
            datasets[group].attrs.update(attrs)
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
            dim = free_name(f"{name}_seen", variables)
            seen[dim] = np.flatnonzero(counts)
            variables[name] = ((*leading, dim), values[:, :, counts])
    return seen


def _trace_variables(
    result: SMCResult, level_times
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    trace, levels, info = result.trace, result.levels, result.trace.info
    # By cloud too, though alike in all: `arviz.concat` joins what has a dimension `chain`.
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
        "zero_density": _largest(getattr(info, "zero", None)),
        "resampled": trace.resampled,
    }
    by_cloud = {
        "log_evidence": result.log_evidence,
        "log_evidence_error": result.log_evidence_error,
    }
    shape = np.shape(trace.ess)
    known = {n: np.broadcast_to(v, shape) for n, v in by_level.items() if v is not None}
    parts = ((("chain", "level"), known | by_cloud_and_level), (("chain",), by_cloud))
    return {
        name: (dims, np.asarray(value))
        for dims, values in parts
        for name, value in values.items()
        if value is not None
    }


def _largest(shares: Mapping[str, Any] | None) -> np.ndarray | None:
    """The largest share of any site."""
    return np.max([np.asarray(share) for share in shares.values()], 0) if shares else None


def _dataset(
    xarray, variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]], named: Dims
) -> Any:
    """Dataset whose names, types and dimensions netCDF can hold."""
    dims = named.of_group(variables)
    arrays = {name: (dims[name], _storable(values)) for name, (_, values) in variables.items()}
    sizes = {
        d: n for own, values in arrays.values() for d, n in zip(own, values.shape, strict=True)
    }
    return xarray.Dataset(arrays, {d: named.along(d, n) for d, n in sizes.items()})


def _storable(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.int8)
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 4 and values.dtype.kind == "f":
        return values.astype(np.float32)  # half precision, bfloat16 among it
    return values


def _plain(value: Any) -> str | int | float | np.ndarray:
    if isinstance(value, bool | np.bool_):
        return int(value)
    return value if isinstance(value, str | int | float | np.ndarray) else str(value)


def array_arguments(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], observed: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The numerical arrays and tables among a model's arguments that are not observed values, by name.

    Args:
        model: A function.
        args: Its arguments; those that `*args` takes are called `arg0`, `arg1`, ...
        kwargs: Its keyword arguments.
        observed: Values by observed site.
    """
    known = [np.asarray(value) for value in observed.values()]
    arrays = {n: _numbers(v) for n, v in named_arguments(model, args, kwargs)}
    return {
        n: a
        for n, a in arrays.items()
        if a is not None and not any(_same(a, other) for other in known)
    }


def _numbers(value: Any) -> np.ndarray | None:
    """An array or a table as a NumPy array, if it holds numbers."""
    if isinstance(value, np.generic) or not hasattr(value, "__array__"):
        return None
    if isinstance(value, jax.Array) and not is_numeric(value.dtype):  # keys are no arrays of NumPy
        return None
    array = np.asarray(value)
    return array if is_numeric(array.dtype) else None


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
