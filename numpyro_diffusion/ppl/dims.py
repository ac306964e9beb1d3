"""Names of dimensions that NumPyro knows: plates, and `infer={"event_dims": [...]}` of a site."""

from typing import Any

import numpy as np

__all__ = ["plate_dims"]


def plate_dims(trace: dict[str, dict]) -> dict[str, list[str | None]]:
    """Names of the dimensions of each site's value, `None` for one without, of sites that have any.

    Of a deterministic site the plates are its dimensions if there are as many and of their sizes.

    Args:
        trace: Of a model, as `look` sees it.
    """
    found = {}
    for name, site in trace.items():
        if site["type"] not in ("sample", "deterministic"):
            continue
        shape = np.shape(site["value"])
        dims = _of_sample(site) if site["type"] == "sample" else _of_deterministic(site, shape)
        if len(dims) == len(shape) and any(dims):
            found[name] = dims
    return found


def _plates(site: dict) -> dict[int, Any]:
    return {frame.dim: frame for frame in site["cond_indep_stack"]}


def _of_sample(site: dict) -> list[str | None]:
    plates, num_batch = _plates(site), len(site["fn"].batch_shape)
    batch = [plates[dim].name if dim in plates else None for dim in range(-num_batch, 0)]
    given = list((site.get("infer") or {}).get("event_dims", ()))
    num_event = len(site["fn"].event_shape)
    return batch + (given if len(given) == num_event else [None] * num_event)


def _of_deterministic(site: dict, shape: tuple[int, ...]) -> list[str | None]:
    frames = [frame for _, frame in sorted(_plates(site).items())]
    return [f.name for f in frames] if tuple(f.size for f in frames) == shape else []
