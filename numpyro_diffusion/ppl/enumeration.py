r"""All values of the discrete sites of a model, and which of them must be run together.

A model is run once for each joint value of the discrete sites that are *shared*. Sites with many entries, as
in a plate, need not be: where every log density depends on one entry $i$ of them at most, the sum factorises,

$$\sum_k \prod_i f_i(k_i) = \prod_i \sum_v f_i(v),$$

and as many runs as an entry has values are enough, in each of which all entries have the same value. Whether
a model factorises, and which log density depends on which entry, is found by changing entries: of each half
of them in turn, as the bits of their numbers say, so that about $2 \log_2 N$ changes tell all $N$ apart.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _faq
from .._staging import Settled
from .owners import dependent_terms, owners_of
from .runs import Enumeration

__all__ = ["enumeration"]


_MOST = 1024  # runs of a model


def enumeration(
    sites: dict[str, tuple[np.ndarray, tuple[int, ...]]],
    program: Settled,
    data: Any,
    points: Callable[[], tuple[Any, Any]],
) -> Enumeration:
    """Find the runs that a model needs.

    Args:
        sites: By discrete site the values of an entry, and the shape.
        program: Terms of the model, by key, given data, other sites, diffusion sites and discrete sites.
        data: The data.
        points: Other sites and diffusion sites at `NUM_PLACES` places.

    Raises:
        ValueError: If there are more than 1024.
    """
    supports = {name: values for name, (values, _) in sites.items()}
    shapes = {name: shape for name, (_, shape) in sites.items()}
    by_size: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        by_size.setdefault(math.prod(shape), []).append(name)
    grouped = [names for size, names in by_size.items() if size > 1]
    together: str = ""
    if grouped:
        groups = tuple(_joint({n: (supports[n], ()) for n in names}) for names in grouped)
        single = {n: (supports[n], shapes[n]) for n in by_size.get(1, [])}
        if _count(single) * max(math.prod(len(supports[n]) for n in g) for g in grouped) <= _MOST:
            found = Enumeration(supports, shapes, _joint(single), groups, {})
            owners, together = owners_of(found, program, data, points)
            if not together:
                return found._replace(owners=owners)
    if _count(sites) > _MOST:
        raise ValueError(f"{_too_many(sites, together)} {_faq.many_values}")
    shared = _joint(sites)
    nothing = {
        key: np.zeros((0, size), int) for key, size in dependent_terms(program, shared).items()
    }
    return Enumeration(supports, shapes, shared, (), nothing)


def _count(sites: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> int:
    return math.prod(len(values) ** math.prod(shape) for values, shape in sites.values())


def _joint(sites: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """All joint values of some sites, by site, with one leading axis."""
    each = [values for values, shape in sites.values() for _ in range(math.prod(shape))]
    rows = list(itertools.product(*each))
    found, start = {}, 0
    for name, (values, shape) in sites.items():
        size = math.prod(shape)
        column = np.array([row[start : start + size] for row in rows], values.dtype)
        found[name] = column.reshape(len(rows), *shape)
        start += size
    return found


def _too_many(sites: dict[str, Any], together: str) -> str:
    names = ", ".join(f"`{name}`" for name in sites)
    sizes = " x ".join(
        f"{len(values)}^{math.prod(shape)}" if math.prod(shape) > 1 else str(len(values))
        for values, shape in sites.values()
    )
    why = ""
    if together:
        why = (
            " Entries of one site are summed one by one where each log density depends on one of them alone; "
            f"`{together}` depends on several, or was not finite where that was looked at."
        )
    return (
        f"the discrete sites {names} have {sizes} joint values, more than the {_MOST} that are summed out."
        f"{why} Give each datum its own entry in a plate, leave out values that cannot be, or sum over some "
        "sites by hand, as `dist.MixtureGeneral` does."
    )
