"""Representations of one line that could be typed back: the class, and what differs from its defaults.

`one_line` is the `__repr__` of schemes, transports, twists, schedules and energies; moves name the functions
that make them. Arrays of up to eight entries are written out; what is longer, a network for instance,
stands in angle brackets with its shape, and cannot be typed back.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

__all__ = ["alike", "call", "differing", "one_line", "summed_up", "written"]

MOST = 8  # entries of an array that are written out
_MISSING = inspect.Parameter.empty


def one_line(self: Any) -> str:
    """The constructor's call that makes an object, without what is as it is by default.

    An object whose arguments are not all attributes answers for the others in `_written()`.
    """
    return call(type(self).__name__, differing(self))


def differing(self: Any) -> dict[str, str]:
    """The arguments of the constructor that are not those by default, as text."""
    defaults = _defaults(type(self))
    known = self._written() if hasattr(self, "_written") else {}
    given = {}
    for name, default in defaults.items():
        value = known[name] if name in known else getattr(self, name, _MISSING)
        if value is _MISSING or default is not _MISSING and alike(value, default):
            continue
        since = getattr(value, "written_since", None)
        given[name] = written(value) if since is None else since(default)
    return given


def call(name: str, given: dict[str, str]) -> str:
    """The text of a call with keyword arguments."""
    return f"{name}({', '.join(f'{key}={text}' for key, text in given.items())})"


def _defaults(cls: type) -> dict[str, Any]:
    """Arguments of a constructor with their defaults."""
    found = {}
    fields = getattr(cls, "__dataclass_fields__", {})
    for name, argument in inspect.signature(cls).parameters.items():
        default, field = argument.default, fields.get(name)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[name] = default
    return found


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, arrays up to rounding; of traced values, no."""
    if one is other:
        return True
    if _is_array(one) or _is_array(other):
        return _close(one, other)
    ones, others = jax.tree.flatten(one), jax.tree.flatten(other)
    try:
        if not ones[1] == others[1] or len(ones[0]) != len(others[0]):
            return False
        if ones[1] == jax.tree.structure(0):
            return type(one) is type(other) and bool(one == other)
        return all(map(alike, ones[0], others[0]))
    except (TypeError, ValueError):  # what cannot be compared
        return False


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _close(one: Any, other: Any) -> bool:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((one, other))):
        return False
    try:
        one, other = np.asarray(one), np.asarray(other)
        atol = 1e-6 * np.max(np.abs(one), initial=0.0)
        return bool(np.allclose(one, other, rtol=1e-6, atol=atol))
    except (TypeError, ValueError):
        return False


def written(value: Any) -> str:
    """A value as Python would read it, where it is short; else what it is, in angle brackets."""
    if _is_array(value) or isinstance(value, jax.ShapeDtypeStruct):
        return _array(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return summed_up(value)
    if isinstance(value, tuple | list):
        parts = ", ".join(map(written, value))
        if isinstance(value, list):
            return f"[{parts}]"
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {written(each)}' for key, each in value.items())}}}"
    if isinstance(value, eqx.Module) and type(value).__repr__ is eqx.Module.__repr__:
        return summed_up(value)
    if isinstance(value, Callable) and hasattr(value, "__name__"):
        name = value.__name__
        return name if name.isidentifier() else f"<{name.strip('<>')}>"
    text = repr(value)
    return f"<{type(value).__name__}>" if "\n" in text or text.startswith("<") else text


def _array(value: Any) -> str:
    shape = getattr(value, "shape", ())
    short = _is_array(value) and not isinstance(value, Tracer) and value.size <= MOST
    if not short or np.asarray(value).dtype.kind not in "biuf":
        return f"<{getattr(value, 'dtype', '')} {shape}>"
    return _numbers(np.asarray(value))


def _numbers(value: np.ndarray) -> str:
    if value.ndim:
        return f"[{', '.join(map(_numbers, value))}]"
    if value.dtype.kind in "biu":
        return str(value[()])
    number: Any = value[()]
    if not np.isfinite(number):
        return f"float('{number}')"
    plain = 1e-4 < abs(number) < 1e7
    return np.format_float_positional(number, trim="0") if plain else str(number)


def summed_up(value: Any) -> str:
    """What holds many numbers, by its class and how many they are."""
    leaves = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape")]
    count = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"<{type(value).__name__}, {count:,} numbers>" if leaves else f"<{type(value).__name__}>"
