"""Functions as programs, compared by what they compute; every array that they read is data."""

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from .._typing import PyTree

__all__ = ["Same", "Settled", "bind", "literal", "settle"]

_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


class _Program:
    """A jaxpr without its constants, equal to every other that does the same."""

    def __init__(self, jaxpr: Jaxpr, out_tree: Any):
        self.jaxpr, self.out_tree = jaxpr, out_tree
        self.key = (_key(jaxpr), out_tree)
        self.hash = hash(self.key)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return isinstance(other, _Program) and self.hash == other.hash and self.key == other.key


class Settled(eqx.Module):
    """A function as the program that it was when it was traced; call it with arguments of the same shapes.

    Attributes:
        constants: Arrays that the function read besides its arguments.
        program: The program.
    """

    constants: list[Any]
    program: _Program = eqx.field(static=True)

    def __call__(self, *args: PyTree) -> PyTree:
        leaves = jax.tree.leaves(args)
        wanted = [v.aval for v in self.program.jaxpr.invars]
        leaves = [_like(leaf, aval) for leaf, aval in zip(leaves, wanted, strict=True)]
        out = jaxpr_as_fun(ClosedJaxpr(self.program.jaxpr, self.constants))(*leaves)
        return jax.tree.unflatten(self.program.out_tree, out)


def _like(leaf: Any, aval: Any) -> Any:
    return leaf if getattr(leaf, "dtype", None) == aval.dtype else jnp.asarray(leaf, aval.dtype)


def settle(function: Callable, *examples: PyTree) -> Settled:
    """The program of a function of arrays, given arguments or their shapes."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    # Scalars and NumPy arrays among the constants are data like any others.
    constants = [
        leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in closed.consts
    ]
    return Settled(constants, _Program(closed.jaxpr, jax.tree.structure(shapes)))


def _key(jaxpr: Jaxpr, depth: int = 0) -> Hashable:
    """What a jaxpr does, without the names of its variables.

    Functions with derivatives of their own are told apart by their derivatives too, once.
    """
    number: dict[Any, int] = {}

    def named(v):
        return number.setdefault(v, len(number))

    def read(v):
        return literal(v) if isinstance(v, Literal) else named(v)

    inputs = tuple((named(v), str(v.aval)) for v in (*jaxpr.constvars, *jaxpr.invars))
    steps = tuple(
        (
            e.primitive.name,
            tuple(map(read, e.invars)),
            tuple((named(v), str(v.aval)) for v in e.outvars),
            _custom(e, depth)
            if e.primitive.name in _CUSTOM
            else tuple(
                (name, _parameter(value, depth)) for name, value in sorted(e.params.items())
            ),
        )
        for e in jaxpr.eqns
    )
    return len(jaxpr.constvars), inputs, steps, tuple(map(read, jaxpr.outvars))


def literal(v: Literal) -> Hashable:
    return "literal", str(v.aval), np.asarray(v.val).tobytes()


def _custom(eqn: Any, depth: int) -> Hashable:
    """A function with a derivative of its own: what it does, and what its derivative does."""
    inner = next(p for p in eqn.params.values() if isinstance(p, ClosedJaxpr))
    primal = _parameter(inner, depth + 1)
    if depth:  # a derivative that calls the function itself would have no end
        return primal
    avals = [v.aval for v in eqn.invars]
    moves = [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]

    def pullback(values, cotangents):
        def function(*moving):
            whole = list(values)
            for i, value in zip(moves, moving, strict=True):
                whole[i] = value
            out = bind(eqn, whole)
            return [o for o in out if jnp.issubdtype(o.dtype, jnp.inexact)]

        return jax.vjp(function, *(values[i] for i in moves))[1](cotangents)

    out = [v.aval for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    shapes = lambda avals: [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    closed = jax.make_jaxpr(pullback)(shapes(avals), shapes(out))
    return primal, _parameter(closed, depth + 1)


def _parameter(value: Any, depth: int) -> Hashable:
    if isinstance(value, Jaxpr):
        return _key(value, depth)
    if isinstance(value, ClosedJaxpr):
        return _key(value.jaxpr, depth), tuple(_array(leaf) for leaf in value.consts)
    if isinstance(value, tuple | list):
        return tuple(_parameter(v, depth) for v in value)
    if isinstance(value, dict):
        return tuple((str(k), _parameter(v, depth)) for k, v in value.items())
    if isinstance(value, np.ndarray | jax.Array):
        return _array(value)
    try:
        hash(value)
    except TypeError:
        return Same(value)
    return type(value), value


def _array(leaf: Any) -> Hashable:
    if isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return Same(leaf)
    values = np.asarray(leaf)
    return values.shape, str(values.dtype), values.tobytes()


class Same:
    """Equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, Same) and other.value is self.value


def bind(eqn: Any, values: list[Any]) -> list[Any]:
    """The results of one equation."""
    parameters = eqn.primitive.get_bind_params(eqn.params)
    functions, parameters = parameters if isinstance(parameters, tuple) else ((), parameters)
    out = eqn.primitive.bind(*functions, *values, **parameters)
    return list(out) if eqn.primitive.multiple_results else [out]
