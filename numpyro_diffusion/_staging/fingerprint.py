"""Fingerprints of functions: a short text that is the same in another process."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["fingerprint"]


def fingerprint(fn: Callable[..., Any] | None, *args) -> str | None:
    """Digest of the program that JAX traces from a function, with all constants in it.

    Numbers that a function takes from a closure, a global or an attribute are constants of the program, so
    that changing one shows. What a host callback does inside does not.

    Args:
        fn: The function; `None` gives `None`.
        args: Arguments, of which shapes and types count.
    """
    if fn is None:
        return None
    # A new function each time: JAX keeps the program of one that it has seen, with the constants of then.
    program = jax.make_jaxpr(lambda *args: fn(*args))(*args)
    state = hashlib.sha256()
    state.update(re.sub(r" at 0x[0-9a-f]+", "", str(program.jaxpr)).encode())
    for constant in _constants(program):
        state.update(f"{constant.dtype}{constant.shape}".encode() + constant.tobytes())
    return state.hexdigest()[:16]


def _constants(value) -> Iterator[np.ndarray]:
    """Arrays in a program and in the programs inside it; scalars stand in the text."""
    if isinstance(value, ClosedJaxpr):
        for constant in value.consts:
            if isinstance(constant, jax.Array) and jnp.issubdtype(
                constant.dtype, jax.dtypes.prng_key
            ):
                constant = jax.random.key_data(constant)
            yield np.asarray(constant)
        value = value.jaxpr
    if isinstance(value, Jaxpr):
        for equation in value.eqns:
            yield from _constants(tuple(equation.params.values()))
    if isinstance(value, tuple | list):
        for item in value:
            yield from _constants(item)
