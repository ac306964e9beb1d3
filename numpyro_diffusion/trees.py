"""Serialisation of modules as plain data, without running code.

A module, or a named tuple, is its class, by name, and its fields; arrays are kept apart. Only classes of this
package, and those that a caller allows, are built.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import types
import typing
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["decode", "encode", "package_classes"]

_SOURCES = ("energies", "nets", "schedules", "tabulated", "teachers", "factors", "population")


@functools.cache
def package_classes() -> dict[str, type]:
    """Concrete modules and named tuples of this package that a file may name, by path inside it."""
    names = list(_SOURCES)
    for source in _SOURCES:
        package = importlib.import_module(f".{source}", __package__)
        names += [
            f"{source}.{info.name}"
            for info in pkgutil.iter_modules(getattr(package, "__path__", []))
        ]
    classes = {}
    for name in names:
        module = importlib.import_module(f".{name}", __package__)
        for label, cls in vars(module).items():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                whole = issubclass(cls, eqx.Module) and not inspect.isabstract(cls)
                if whole or _is_named_tuple(cls):
                    classes[f"{name}.{label}"] = cls
    return classes


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _fields(cls: Any) -> tuple[str, ...]:
    return cls._fields if _is_named_tuple(cls) else tuple(cls.__dataclass_fields__)


def _label(cls: type) -> str:
    inside = f"{cls.__module__}.{cls.__qualname__}".removeprefix(f"{__package__}.")
    return inside if inside in package_classes() else f"{cls.__module__}.{cls.__qualname__}"


def encode(value, where: str, arrays: dict[str, np.ndarray]):
    """Plain data that describe a tree; its arrays go into `arrays`, named after where they hang."""
    if isinstance(value, eqx.Module) or _is_named_tuple(type(value)):
        values = {name: getattr(value, name) for name in _fields(type(value))}
        if isinstance(value, eqx.Module):
            _check_fields(type(value), values, where)
        fields = {name: encode(v, f"{where}.{name}", arrays) for name, v in values.items()}
        return {"module": _label(type(value)), "fields": fields}
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
        raise ValueError(f"expected numbers; `{where}` is NaN. Set it, or leave it at its default.")
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        items = [encode(v, f"{where}.{i}", arrays) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode(v, f"{where}.{k}", arrays) for k, v in value.items()}}
    raise TypeError(
        f"cannot save `{where}`: expected a module, an array or plain data (numbers, strings, lists, "
        f"dicts with string keys); got {type(value).__name__}. Functions are code and are not stored: "
        "write the choice as an `eqx.Module`."
    )


def decode(node, arrays, allowed, used: set[str]):
    """The tree that plain data describe; `used` collects the names of the arrays in it."""
    if isinstance(node, list):
        return [decode(item, arrays, allowed, used) for item in node]
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
            return tuple(decode(item, arrays, allowed, used) for item in items)
        case {"dict": dict(items)}:
            return {k: decode(v, arrays, allowed, used) for k, v in items.items()}
        case {"module": str(label), "fields": dict(fields)}:
            values = {k: decode(v, arrays, allowed, used) for k, v in fields.items()}
            return _build(label, values, allowed)
    raise ValueError(f"unknown entry with keys {sorted(node)}")


def _build(label: str, values: dict[str, Any], allowed: dict[str, type]) -> Any:
    if label not in allowed:
        raise ValueError(f"class {label!r} is not one of {sorted(allowed)}")
    cls = allowed[label]
    # A file may be older than a field; what it knew nothing of has the default.
    if not _is_named_tuple(cls):
        known = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
        values = {field.name: field.default for field in known} | values
    expected = set(_fields(cls))
    if set(values) != expected:
        raise ValueError(f"{label} has fields {sorted(expected)}; got {sorted(values)}")
    if issubclass(cls, tuple):
        return cls(**values)
    _check_fields(cls, values, label)
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
    if cls.__module__.partition(".")[0] != __package__:
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
