"""Trees of modules as plain data, and back, without running code.

A module is its class, by name, and its fields; arrays are kept apart. Only classes of this package, and those
that a caller allows, are built.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["decode", "encode", "package_classes"]

_SOURCES = ("energies", "nets", "schedules", "tabulated", "teachers", "factors", "population")


@functools.cache
def package_classes() -> dict[str, type[eqx.Module]]:
    """Concrete modules of this package that a file may name, by path inside the package."""
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
            if (
                inspect.isclass(cls)
                and issubclass(cls, eqx.Module)
                and cls.__module__ == module.__name__
            ):
                if not inspect.isabstract(cls):
                    classes[f"{name}.{label}"] = cls
    return classes


def _label(cls: type) -> str:
    inside = f"{cls.__module__}.{cls.__qualname__}".removeprefix(f"{__package__}.")
    return inside if inside in package_classes() else f"{cls.__module__}.{cls.__qualname__}"


def encode(value, where: str, arrays: dict[str, np.ndarray]):
    """Plain data that describe a tree; its arrays go into `arrays`, named after where they hang."""
    if isinstance(value, eqx.Module):
        fields = {
            name: encode(getattr(value, name), f"{where}.{name}", arrays)
            for name in value.__dataclass_fields__
        }
        return {"module": _label(type(value)), "fields": fields}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (jax.Array, np.ndarray)) and not jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        arrays[where] = np.array(value, order="C")
        return {"array": where, "dtype": str(value.dtype), "shape": list(value.shape)}
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
            used.add(name)
            return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        case {"float": str(value)}:
            return float(value)
        case {"tuple": list(items)}:
            return tuple(decode(item, arrays, allowed, used) for item in items)
        case {"dict": dict(items)}:
            return {k: decode(v, arrays, allowed, used) for k, v in items.items()}
        case {"module": str(label), "fields": dict(fields)}:
            values = {k: decode(v, arrays, allowed, used) for k, v in fields.items()}
            return _build(label, values, allowed)
    raise ValueError(f"unknown entry with keys {sorted(node)}")


def _build(label: str, values: dict[str, Any], allowed: dict[str, type[eqx.Module]]) -> eqx.Module:
    if label not in allowed:
        raise ValueError(f"class {label!r} is not one of {sorted(allowed)}")
    cls = allowed[label]
    # A file may be older than a field; what it knew nothing of has the default.
    has_default = lambda field: field.default is not dataclasses.MISSING
    defaults = {field.name: field.default for field in filter(has_default, dataclasses.fields(cls))}
    values = defaults | values
    expected = set(cls.__dataclass_fields__)
    if set(values) != expected:
        raise ValueError(f"{label} has fields {sorted(expected)}; got {sorted(values)}")
    # As Equinox unflattens a module: its fields are set, its constructor is not run.
    module = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(module, name, value)
    for base in reversed(cls.__mro__):
        if "__check_init__" in vars(base):
            vars(base)["__check_init__"](module)
    return module
