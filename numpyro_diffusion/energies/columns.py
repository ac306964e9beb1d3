r"""Columns of a table that a diffusion prior models badly, named before training and in the audit.

A diffusion adds the same noise to every column and is a density in all of them. Columns that never change,
that are drowned in the least noise, that are in units far apart, or that hold a few values only are
distributions that it cannot follow, or that samplers cannot.
"""

import warnings
from typing import Any

import numpy as np

from .. import _faq

__all__ = ["check_columns", "few_values"]

MOST_VALUES = 20
ROWS_A_VALUE = 5
GAP = 4.0  # noise levels between two values, from which on hardly a chain crosses: 2 nats
SHARE = 0.05  # of the rows on either side of such a gap
RATIO = 100.0  # of the standard deviations of two columns


def few_values(data: Any, noise: float) -> dict[int, int]:
    r"""Columns of few values, far apart beside the noise: numbers of values by column, of flat examples.

    At most 20 values, at least five rows a value, and a gap of more than four noise levels with 5 % of the
    rows on either side. The density in such a gap is at most $2 e^{-2}$ of that of its ends where these are
    alike.

    Args:
        data: Examples of shape `(num, *shape)`.
        noise: The least noise level, in units of the data.
    """
    found = {}
    columns = np.asarray(data, float).reshape(len(data), -1).T
    for index, column in enumerate(columns):
        values, counts = np.unique(column, return_counts=True)
        if not 2 <= len(values) <= min(MOST_VALUES, len(column) / ROWS_A_VALUE):
            continue
        below = np.cumsum(counts)[:-1] / len(column)
        populated = (below >= SHARE) & (below <= 1 - SHARE)
        if np.any(populated & (np.diff(values) > GAP * noise)):
            found[index] = len(values)
    return found


def check_columns(data: np.ndarray, noise_min: float, noise_max: float) -> None:
    """Refuse noise that does not cover the data; warn of columns that a diffusion takes badly.

    Args:
        data: Finite examples of shape `(num, *shape)`; columns are named where the shape is `(n,)`.
        noise_min: Least noise level.
        noise_max: Largest noise level.

    Raises:
        ValueError: If `noise_max` is below the standard deviation of a column.
    """
    flat = np.asarray(data, float).reshape(len(data), -1)
    spread = flat.std(0)
    if spread.size and spread.max() > noise_max:
        raise ValueError(
            f"`noise_max` must drown the data, several times their largest distance; got {noise_max:.3g} "
            f"beside a standard deviation of {spread.max():.3g} in column {int(spread.argmax())}. Raise it, "
            f"or standardise the columns: `standardize=True`. {_faq.schedules}"
        )
    if data.ndim != 2:
        return  # pixels that never change are no mistake
    varies = spread > 1e-9 * np.maximum(np.abs(flat).max(0), 1e-300)
    found = []
    if not varies.all():
        found.append(f"{named(np.flatnonzero(~varies))} never change: drop them")
    drowned = varies & (spread < noise_min)
    if drowned.any():
        found.append(
            f"{named(np.flatnonzero(drowned))} vary by less than `noise_min`={noise_min:.3g}, so that noise "
            "hides them: lower it, or use `standardize=True`"
        )
    known = spread[varies]
    if known.size and known.max() > RATIO * known.min():
        found.append(
            f"standard deviations run from {known.min():.3g} to {known.max():.3g}, and the noise is the "
            "same in every column: use `standardize=True`"
        )
    few = few_values(flat, noise_min)
    if few:
        found.append(
            f"{named(few)} hold few values, far apart beside `noise_min`={noise_min:.3g}: the prior has a "
            "spike at each, between which NUTS does not move. Leave them out and make them the `condition`, "
            "or raise `noise_min` to about a quarter of the gap, or sample with `SMC`"
        )
    if found:
        warnings.warn(
            "a diffusion prior takes this table badly: " + "; ".join(found) + f". {_faq.examples}",
            stacklevel=4,
        )


def named(columns: Any) -> str:
    """`column 3`, or `columns 1, 2, 5 and 4 more`."""
    columns = [int(column) for column in columns]
    shown = ", ".join(map(str, columns[:8]))
    more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    return f"column{'s'[: len(columns) != 1]} {shown}{more}"
