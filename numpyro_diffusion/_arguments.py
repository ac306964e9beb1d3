"""Arguments: numbers that count something, and what of a model's arguments is data.

Numerical arrays become JAX arrays, which may change between runs without compilation. Everything else, tables
and text among it, reaches the model as it is.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _faq
from ._numbers import positive

__all__ = [
    "as_arrays",
    "as_jax",
    "check_callable",
    "check_counts",
    "check_instance",
    "is_data",
    "is_numeric",
    "named_arguments",
    "plain",
    "positive",
    "whole_number",
    "whole_numbers",
    "whole_or_none",
    "whole_shape",
]


def is_numeric(dtype: Any) -> bool:
    """Test whether JAX has arrays of this type."""
    if getattr(dtype, "kind", None) in ("m", "M"):  # NumPy counts time spans among the integers
        return False
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def is_data(leaf: Any) -> bool:
    """Test whether a leaf of the arguments is an array that a compiled program can take."""
    if isinstance(leaf, jax.Array):
        return True
    plain = isinstance(leaf, np.ndarray | np.generic) and not isinstance(leaf, np.ma.MaskedArray)
    return plain and is_numeric(leaf.dtype)


def as_jax(array: np.ndarray, what: str) -> jax.Array:
    """A numerical array in a type and byte order that JAX has, with the same numbers.

    Args:
        array: A NumPy array.
        what: It is, for messages.

    Raises:
        ValueError: If it holds integers beyond those of the session.
    """
    dtype = array.dtype.newbyteorder("=")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        dtype = np.dtype(np.float64 if array.dtype.kind == "f" else np.complex128)
    out = jnp.asarray(array.astype(dtype, copy=False))
    if array.dtype.kind in "iu" and out.dtype.itemsize < array.dtype.itemsize:
        limits = jnp.iinfo(out.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(
                f"{what} holds integers beyond {limits.max}, which {out.dtype} cannot. Turn on 64 bits, "
                '`jax.config.update("jax_enable_x64", True)`, or make them '
                f"floats. {_faq.arguments}"
            )
    return out


def named_arguments(model: Callable, args: tuple, kwargs: Any) -> list[tuple[str, Any]]:
    """The arguments of a model with their names; those that `*args` takes are called `arg0`, `arg1`, ..."""
    try:
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = named[: len(args)] + [f"arg{i}" for i in range(len(named), len(args))]
    return [*zip(names, args, strict=True), *kwargs.items()]


def as_arrays(model: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Convert numerical NumPy arrays among the arguments to JAX arrays.

    Raises:
        TypeError: For iterators, which give their values once, and for dicts that have no order.
        ValueError: For integers that the session cannot hold.
    """
    done = [_as_arrays(name, value) for name, value in named_arguments(model, args, kwargs)]
    return tuple(done[: len(args)]), dict(zip(kwargs, done[len(args) :], strict=True))


def _as_arrays(name: str, value: Any) -> Any:
    def one(leaf):
        if isinstance(leaf, Iterator):
            raise TypeError(
                f"argument `{name}` holds a {type(leaf).__name__}, which gives its values once, while the "
                f"model is run several times. Make it a list or an array. {_faq.arguments}"
            )
        is_array = isinstance(leaf, np.ndarray) and is_data(leaf)
        return as_jax(leaf, f"argument `{name}`") if is_array else leaf

    try:
        jax.tree.structure(value, is_leaf=lambda leaf: isinstance(leaf, Iterator))
    except ValueError as error:
        raise TypeError(
            f"argument `{name}` holds a dict whose keys have no order. Use keys of one type, such "
            f"as strings. {_faq.arguments}"
        ) from error
    return jax.tree.map(one, value, is_leaf=lambda leaf: isinstance(leaf, Iterator))


_MOST = 2**31 - 1  # JAX counts in 32 bits unless told otherwise


def whole_number(name: str, value: Any, least: int, remedy: str = "") -> int:
    """An argument that counts something, as a Python integer.

    Args:
        name: Of the argument, for messages.
        value: What came.
        least: Smallest allowed value.
        remedy: A sentence for the end of the message.

    Raises:
        ValueError: If it is no integer (a Boolean is none, nor is 2.0), too small, or beyond 32 bits.
    """
    remedy = remedy and f" {remedy}"
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:  # `operator.index` takes integers of Python, NumPy and JAX, and nothing else
        number = None
    if number is None:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}; got "
            f"{value!r}.{remedy} {_faq.numbers}"
        )
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}; got {number}.{remedy} {_faq.numbers}")
    if number > _MOST:
        raise ValueError(f"`{name}` must be at most {_MOST}; got {number}.{remedy} {_faq.numbers}")
    return number


def plain(value: Any) -> Any:
    """An integer of NumPy or JAX as one of Python, for what a program is compiled for; the rest as it is."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        return value
    kind = getattr(value, "dtype", None)
    return int(value) if kind is not None and jnp.issubdtype(kind, jnp.integer) else value


def whole_numbers(least: int, **values: Any) -> list[int]:
    """Several arguments that count something and have one smallest value, as Python integers."""
    return [whole_number(name, value, least) for name, value in values.items()]


def whole_shape(value: Any) -> tuple[int, ...]:
    """The argument `shape`, of one example: integers of at least 1, or one of them for a vector.

    Raises:
        ValueError: If it is something else.
    """
    sizes = value if isinstance(value, Iterable) and np.ndim(value) else (value,)  # type: ignore[arg-type]
    remedy = "It is that of one example, such as (8, 8), or the length of a vector."
    return tuple(whole_number("shape", size, 1, remedy) for size in sizes)


def whole_or_none(name: str, value: Any, least: int, remedy: str = "") -> int | None:
    """Check a whole number, or `None` for a default choice; `remedy` says which."""
    return None if value is None else whole_number(name, value, least, remedy)


def check_counts(owner: Any, remedy: str = "", **least: int) -> None:
    """Refuse fields of an object that count something and are no integers of at least so much.

    Args:
        owner: An object that is being made; the message names its class.
        remedy: A sentence for the end of the message.
        **least: Smallest value by field.
    """
    for name, smallest in least.items():
        value, label = getattr(owner, name), f"{name}` of `{type(owner).__name__}"
        whole_number(label, value, smallest, remedy)


def check_callable(name: str, value: Any, form: str) -> None:
    """An argument that must be a function, of what to what."""
    if not callable(value):
        raise TypeError(
            f"`{name}` must be a function, {form}; got {type(value).__name__}. {_faq.kinds}"
        )


def check_instance(name: str, value: Any, kind: type, example: str, optional: bool = True) -> None:
    """Refuse an argument of another class, or the class itself; `None` is allowed where it is optional."""
    if not (value is None and optional) and not isinstance(value, kind):
        raise TypeError(
            f"`{name}` must be an instance of `{kind.__name__}`, such as `{example}`; got "
            f"{value!r}. {_faq.kinds}"
        )
