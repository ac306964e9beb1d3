"""How records show themselves: a line without long arrays, and a small page in notebooks.

Named tuples with results in them say `__repr__, _repr_html_ = record, record_page`.
"""

from typing import Any

import jax
import numpy as np

from ._html import page
from ._written import call, written

__all__ = ["record", "record_page"]

_MOST = 100  # characters of a field: what is longer, such as names of all sites, is cut


def record(self: Any) -> str:
    """`Class(field=value, ...)` on one line: short values as they are, arrays by type and shape."""
    return call(type(self).__name__, _fields(self))


def record_page(self: Any) -> str:
    """HTML of a record: a row a field, and above them its verdict where it has one."""
    verdict = getattr(self, "verdict", "")
    said = {} if not isinstance(verdict, str) or not verdict else {"verdict": verdict}
    return page(type(self).__name__, said | _fields(self))


def _fields(value: Any) -> dict[str, str]:
    return {name: _short(each) for name, each in zip(value._fields, value, strict=True)}


def _arrays(value: Any) -> bool:
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value))


def _short(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    plain = isinstance(value, tuple) and hasattr(value, "_fields") and not _arrays(value)
    text = call(type(value).__name__, _fields(value)) if plain else written(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 4]} ..."
