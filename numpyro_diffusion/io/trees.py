"""Serialisation of modules as plain data, without running code.

A module, or a named tuple, is its class, by label (see `class_names`), and its fields; arrays are kept apart.
Only classes of this package, and those that a caller allows, are built.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .labels import is_named_tuple, is_ours, label_of

__all__ = ["decode", "encode"]


def _fields(cls: Any) -> tuple[str, ...]:
    return cls._fields if is_named_tuple(cls) else tuple(cls.__dataclass_fields__)


def encode(value, where: str, arrays: dict[str, np.ndarray]):
    """Plain data that describe a tree; its arrays go into `arrays`, named after where they hang."""
    return _encode(value, where, arrays, {})


def _encode(value, where: str, arrays: dict[str, np.ndarray], classes: dict[str, type]):
    if isinstance(value, eqx.Module) or is_named_tuple(type(value)):
        values = {name: getattr(value, name) for name in _fields(type(value))}
        if isinstance(value, eqx.Module):
            _check_fields(type(value), values, where)
        label = _label(type(value), where, classes)
        inside = lambda name, v: _encode(v, f"{where}.{name}", arrays, classes)
        return {"module": label, "fields": {n: inside(n, v) for n, v in values.items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (jax.Array, np.ndarray)) and not jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        if where in arrays:  # a dict with the keys "a.b" and "a", which holds "b"
            where = f"{where}#{len(arrays)}"
        arrays[where] = np.array(value, order="C")
        return {"array": where, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(
            f"expected numbers; `{where}` is NaN. Set it, or leave it at its default. {_faq.saving}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        items = [_encode(v, f"{where}.{i}", arrays, classes) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        items = {k: _encode(v, f"{where}.{k}", arrays, classes) for k, v in value.items()}
        return {"dict": items}
    raise TypeError(
        f"cannot save `{where}`: expected a module, an array or plain data (numbers, strings, lists, "
        f"dicts with string keys); got {type(value).__name__}. Functions are code and are not stored: "
        f"write the choice as an `eqx.Module`. {_faq.saving}"
    )


def _label(cls: type, where: str, classes: dict[str, type]) -> str:
    """The label of a class, of which there is only one in a file."""
    try:
        label = label_of(cls)
    except TypeError as error:
        raise TypeError(f"cannot save `{where}`: {_faq.bare(error)} {_faq.saving}") from None
    if classes.setdefault(label, cls) is not cls:
        raise TypeError(
            f"cannot save `{where}`: expected classes of different names; got two that are called {label!r}. "
            f"Rename one, or build both from one class. {_faq.saving}"
        )
    return label


def decode(node, arrays, find: Callable[[str], type], used: set[str]):
    """The tree that plain data describe; `used` collects the names of the arrays in it.

    `find` gives the class that a label stands for, see `class_finder`.
    """
    if isinstance(node, list):
        return [decode(item, arrays, find, used) for item in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"array": str(name), "dtype": dtype, "shape": shape}:
            array = arrays[name]
            if str(array.dtype) != dtype or list(array.shape) != shape:
                raise ValueError(
                    f"`{name}` should be {dtype}{shape} and is {array.dtype}{list(array.shape)}"
                )
            if name in used:
                raise ValueError(f"`{name}` hangs in two places")
            used.add(name)
            return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        case {"float": "inf" | "-inf" as value}:
            return float(value)
        case {"tuple": list(items)}:
            return tuple(decode(item, arrays, find, used) for item in items)
        case {"dict": dict(items)}:
            return {k: decode(v, arrays, find, used) for k, v in items.items()}
        case {"module": str(label), "fields": dict(fields)}:
            values = {k: decode(v, arrays, find, used) for k, v in fields.items()}
            return _build(find(label), values)
        case {"module": label, "fields": _} if not isinstance(label, str):
            raise ValueError(f"a class is named by a string; got {label!r:.80}")
    raise ValueError(f"unknown entry with keys {sorted(node)}")


def _build(cls: type, values: dict[str, Any]) -> Any:
    # A file may be older than a field; what it knew nothing of has the default.
    if not is_named_tuple(cls):
        known = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
        values = {field.name: field.default for field in known} | values
    expected = set(_fields(cls))
    if set(values) != expected:
        raise ValueError(f"{cls.__name__} has fields {sorted(expected)}; got {sorted(values)}")
    if issubclass(cls, tuple):
        return cls(**values)
    _check_fields(cls, values, cls.__name__)
    # As Equinox unflattens a module: its fields are set, its constructor is not run.
    module = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(module, name, value)
    for base in reversed(cls.__mro__):
        if "__check_init__" in vars(base):
            vars(base)["__check_init__"](module)
    return module


def _check_fields(cls: type, values: dict[str, Any], where: str):
    """Hold plain fields of a class of this package against its types; those of a user may be loose."""
    if not is_ours(cls):
        return
    hints = _hints(cls)
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            raise ValueError(
                f"`{where}.{name}` is {value!r:.40}, where {cls.__name__} expects {hints[name]}"
            )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fits(value, hint) -> bool:
    """Whether a plain value may stand where a field says `hint`; what is not understood fits."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str | tuple | list | dict | None):
        return True
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in inside)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inside = inside[:1] * len(value) if inside[1:] == (...,) else inside
        return all(map(_fits, value, inside))
    if inspect.isclass(hint) and issubclass(hint, eqx.Module):
        return False
    return True
