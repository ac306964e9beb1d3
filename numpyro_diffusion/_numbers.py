"""Arguments that are numbers: one in a range, an array of them, or what a user's function answers with."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _faq
from ._typing import Array

__all__ = ["number", "one_number", "positive", "real_array", "several_examples"]


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    remedy: str = "",
    traced: bool = False,
) -> Any:
    """An argument that is one finite number in a range, as a Python float.

    Args:
        name: Of the argument, for messages.
        value: What came.
        above: The number must be larger.
        least: Or no smaller.
        below: The number must be smaller.
        most: Or no larger.
        remedy: A sentence for the end of the message.
        traced: Let a number that `jit` or `grad` traces pass as it is.

    Raises:
        ValueError: If it is none (a Boolean is none, nor is text), not finite, or out of range.
    """
    if isinstance(value, Tracer) and traced and value.shape == ():
        return value
    try:
        plain = not isinstance(value, bool | np.bool_ | str | bytes) and np.ndim(value) == 0
        found = float(value) if plain else math.nan
    except (TypeError, ValueError):  # a tracer's error is a TypeError
        found = math.nan
    right = (
        math.isfinite(found)
        and (above is None or found > above)
        and (least is None or found >= least)
        and (below is None or found < below)
        and (most is None or found <= most)
    )
    if right:
        return found
    bounds = {"above": above, "of at least": least, "below": below, "at most": most}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    got = (
        "a traced number; call this outside of `jit`" if isinstance(value, Tracer) else repr(value)
    )
    raise ValueError(
        f"`{name}` must be a finite number{words and ' '}{words}; got {got}.{remedy and ' '}{remedy} "
        f"{_faq.numbers}"
    )


def positive(name: str, value: Any) -> float:
    """An argument that is a finite number above 0, as a Python float.

    Raises:
        ValueError: If it is not.
    """
    return number(name, value, above=0)


def real_array(name: str, value: Any, form: str, *, finite: bool = True) -> np.ndarray:
    """An argument that holds real numbers which are known, as an array of float64.

    Args:
        name: Of the argument, for messages.
        value: What came.
        form: Its shape in words, for messages: "of shape (num, ...), one row an example".
        finite: Whether NaN and infinities are refused.

    Raises:
        TypeError: For numbers that `jit`, `vmap` or `grad` traces, and for what is no real number: a complex
            one would lose a part, and text is none.
        ValueError: If some are not finite.
    """
    wrong = f"`{name}` must be {'finite ' if finite else ''}real numbers {form}; got "
    leaves = jax.tree.leaves(value)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TypeError(
            wrong
            + f"traced ones. Call this outside of `jit`, `vmap` and `grad`. {_faq.real_numbers}"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            wrong + f"{type(value).__name__} whose parts differ in shape. {_faq.real_numbers}"
        ) from error
    if not (array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, np.floating)):
        what = type(value).__name__ if array.dtype == object else str(array.dtype)
        raise TypeError(wrong + f"{what}. {_faq.real_numbers}")
    array = array.astype(float)
    bad = int((~np.isfinite(array)).sum())
    if finite and bad:
        raise ValueError(wrong + f"shape {array.shape} with {bad} NaN or infinite. {_faq.finite}")
    return array


def several_examples(data: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Clean data, the argument `data`, as float64: at least two finite examples along the first axis.

    Args:
        data: What came.
        shape: Of one example; any with an axis of its own if `None`.

    Raises:
        TypeError: For what is no array of known real numbers.
        ValueError: If the shape is another, or examples are too few or not finite.
    """
    form = "(num, ...)" if shape is None else f"(num, {', '.join(map(str, shape))})"
    of = "" if shape is None else f" of shape {shape}"
    array = real_array("data", data, f"of shape {form}, one example a row", finite=False)
    fits = array.ndim > 1 if shape is None else array.ndim > 0 and array.shape[1:] == shape
    bad = np.flatnonzero(~np.isfinite(array).all(tuple(range(1, array.ndim)))) if fits else []
    if not fits or len(array) < 2:
        remedy = "Stack them along the first axis"
        remedy += "; single numbers are `data[:, None]`." if array.ndim == 1 else "."
        got = f"shape {array.shape}"
    elif len(bad):
        remedy = "Drop or impute them."
        got = (
            f"{len(bad)} of {len(array)} with NaN or infinite numbers, the first is number {bad[0]}"
        )
    else:
        return array
    raise ValueError(
        f"`data` must hold at least 2 finite examples{of}, an array of shape {form} in the units of the "
        f"prior; got {got}. {remedy} {_faq.examples}"
    )


def one_number(what: str, value: Any) -> Array:
    """What a function of the user's answers with, where one real number is wanted, as a floating array.

    Args:
        what: It is, for messages: "a reward".
        value: What came, traced or not.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it has axes.
    """
    try:
        array = jnp.asarray(None if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what} is one number, of shape (); got {type(value).__name__}. Return a JAX scalar. "
            f"{_faq.kinds}"
        ) from error
    if array.shape != ():
        raise ValueError(
            f"{what} is one number, of shape (); got shape {array.shape}. Sum it. {_faq.shapes}"
        )
    if jnp.issubdtype(array.dtype, np.complexfloating):
        raise TypeError(
            f"{what} is a real number; got {array.dtype}. Take its real part. {_faq.kinds}"
        )
    floating = jnp.issubdtype(array.dtype, np.floating)
    return array if floating else array.astype(jnp.result_type(float))
