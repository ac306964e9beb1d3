"""Names of a run's variables in summaries and exports."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["free_name", "real_parts", "variable_names"]

# Dimensions of an ArviZ object, which no variable beside them may be called, and the weights of a cloud.
_RESERVED = frozenset({"chain", "draw", "particle", "log_weight"})


def variable_names(sites: Iterable[str]) -> dict[str, str]:
    """A name in an ArviZ object for each site, all different.

    A slash separates groups of a file, so it becomes a dot; a name that is taken, by another site or by a
    dimension, gets an underscore at its end.
    """
    sites = list(dict.fromkeys(sites))
    names, taken = {}, set(_RESERVED)
    for site in sorted(sites, key=lambda site: "/" in site):  # who can keep its name does
        names[site] = free_name(site.replace("/", "."), taken)
        taken.add(names[site])
    return {site: names[site] for site in sites}


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with as many underscores at its end as it takes."""
    while name in taken:
        name += "_"
    return name


def real_parts(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Split complex values into real ones, `x_real` and `x_imag`, which tables and files can hold."""
    parts: dict[str, np.ndarray] = {}
    for name, value in values.items():
        value = np.asarray(value)
        if not np.iscomplexobj(value):
            parts[name] = value
            continue
        for part, of in (("real", np.real(value)), ("imag", np.imag(value))):
            parts[free_name(f"{name}_{part}", (*values, *parts))] = of
    return parts
