"""Staging of functions as programs: traced once, compared by what they compute, common work hoisted.

`settle` traces a function of arrays and keeps the program. Two programs are equal if they do the same, so
that one compiled form serves both, and every array that the function read when it was traced is data: a
program is never older than what it was made from. `hoist` computes now what does not depend on the
arguments, so that neither loops nor repeated calls do it again.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from ._typing import PyTree

__all__ = ["Done", "Settled", "brief_jit", "hoist", "settle"]

# Cheap to make and large to keep: computed where they are read.
_EXPANSIONS = frozenset({"broadcast_in_dim", "iota"})
_CALLS = frozenset({"jit", "pjit"})
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
        return _literal(v) if isinstance(v, Literal) else named(v)

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


def _literal(v: Literal) -> Hashable:
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
            out = _bind(eqn, whole)
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
        return _Same(value)
    return type(value), value


def _array(leaf: Any) -> Hashable:
    if isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _Same(leaf)
    values = np.asarray(leaf)
    return values.shape, str(values.dtype), values.tobytes()


class _Same:
    """Equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, _Same) and other.value is self.value


class Done(dict):
    """Cache of equations evaluated so far in one scope, so that `hoist` computes none of them again."""

    def bind(self, eqn: Any, values: list[Any]) -> list[Any]:
        """The results of one equation."""
        inputs = (
            _literal(v) if isinstance(v, Literal) else id(x)
            for v, x in zip(eqn.invars, values, strict=True)
        )
        parameters = ((name, _quick(value)) for name, value in sorted(eqn.params.items()))
        key = (eqn.primitive.name, tuple(inputs), tuple(parameters))
        if key not in self:
            # Values and equation are kept too: an identity is one only while they live.
            self[key] = _bind(eqn, values), values, eqn
        return self[key][0]


def _quick(value: Any) -> Hashable:
    """What identifies a parameter while its equation lives."""
    if isinstance(value, ClosedJaxpr):
        return id(value.jaxpr), tuple(map(id, value.consts))
    if isinstance(value, tuple | list):
        return tuple(map(_quick, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    parameters = eqn.primitive.get_bind_params(eqn.params)
    functions, parameters = parameters if isinstance(parameters, tuple) else ((), parameters)
    out = eqn.primitive.bind(*functions, *values, **parameters)
    return list(out) if eqn.primitive.multiple_results else [out]


class _Later:
    """A result of an equation that waits for the arguments."""


class _Known:
    """A result of an equation whose inputs are known; computed when it is asked for."""

    def __init__(self, work: "_Work | None", place: int = 0, value: Any = None):
        self.work, self.place, self.here = work, place, value

    def value(self, done: Done) -> Any:
        return self.here if self.work is None else self.work.results(done)[self.place]


class _Work:
    def __init__(self, eqn: Any, inputs: list[_Known]):
        self.eqn, self.inputs, self.found, self.slots = eqn, inputs, None, None

    def results(self, done: Done) -> list[Any]:
        if self.found is None:
            self.found = done.bind(self.eqn, [ref.value(done) for ref in self.inputs])
        return self.found


def hoist(function: Callable, *examples: PyTree, done: Done | None = None) -> Callable:
    """Return the same function, with everything that does not depend on its arguments computed once, here.

    What the function reads besides its arguments, parameters of a network or the time of a level, counts as
    known. Inside loops and branches nothing is looked for.

    Args:
        function: Of pytrees of arrays.
        *examples: Arguments, or their shapes.
        done: What was computed before in this scope, to be shared and added to.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    out_tree, jaxpr = jax.tree.structure(shapes), closed.jaxpr
    done = Done() if done is None else done
    steps: list[tuple[Any, list[Any], list[Any]]] = []
    known = [_Known(None, value=x) for x in closed.consts]
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, known, strict=True))
    arguments = [_Later() for _ in jaxpr.invars]
    env.update(zip(jaxpr.invars, arguments, strict=True))
    outputs = [_ready(ref, steps, done) for ref in _sort(jaxpr, env, steps, done)]

    def rest(*args):
        values = dict(zip(arguments, jax.tree.leaves(args), strict=True))
        read = lambda ref: values[ref] if isinstance(ref, _Later) else ref.here
        for eqn, inputs, slots in steps:
            values.update(zip(slots, _bind(eqn, list(map(read, inputs))), strict=True))
        return jax.tree.unflatten(out_tree, list(map(read, outputs)))

    return rest


def _sort(jaxpr: Jaxpr, env: dict[Any, Any], steps: list, done: Done) -> list[Any]:
    """Append to `steps` what has to wait; returns the outputs, known or waiting."""
    read = lambda v: _Known(None, value=v.val) if isinstance(v, Literal) else env[v]
    for eqn in jaxpr.eqns:
        inputs = list(map(read, eqn.invars))
        known = [isinstance(ref, _Known) for ref in inputs]
        if all(known) and not eqn.effects:
            work = _Work(eqn, inputs)
            results = [_Known(work, i) for i in range(len(eqn.outvars))]
        elif eqn.primitive.name in _CALLS and _knows_work(eqn.params["jaxpr"], known):
            inner = eqn.params["jaxpr"]
            constants = [_Known(None, value=x) for x in inner.consts]
            inside = dict(zip(inner.jaxpr.constvars, constants, strict=True))
            inside.update(zip(inner.jaxpr.invars, inputs, strict=True))
            results = _sort(inner.jaxpr, inside, steps, done)
        else:
            results = [_Later() for _ in eqn.outvars]
            steps.append((eqn, [_ready(ref, steps, done) for ref in inputs], results))
        env.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _ready(ref: Any, steps: list, done: Done) -> Any:
    """A known value, computed; one that is large and cheap waits and is made where it is read."""
    if isinstance(ref, _Later) or ref.work is None:
        return ref
    work = ref.work
    if work.eqn.primitive.name in _EXPANSIONS:
        if work.slots is None:
            work.slots = [_Later() for _ in work.eqn.outvars]
            steps.append((work.eqn, [_ready(r, steps, done) for r in work.inputs], work.slots))
        return work.slots[ref.place]
    return _Known(None, value=ref.value(done))


def _knows_work(inner: ClosedJaxpr, known: list[bool]) -> bool:
    """Whether some of the work of a call depends on known inputs alone."""
    pairs = zip(inner.jaxpr.invars, known, strict=True)
    sure = {v for v, yes in pairs if yes} | set(inner.jaxpr.constvars)
    for eqn in inner.jaxpr.eqns:
        inputs = [isinstance(v, Literal) or v in sure for v in eqn.invars]
        if all(inputs):
            sure.update(eqn.outvars)
            if eqn.primitive.name not in _EXPANSIONS:
                return True
        elif eqn.primitive.name in _CALLS and _knows_work(eqn.params["jaxpr"], inputs):
            return True
    return False


# Fewer passes of the compiler; the program is then about half as fast. Options change with XLA's versions:
# one that it refuses is dropped, for all programs.
_IN_A_HURRY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def brief_jit(function: Callable) -> Callable:
    """`equinox.filter_jit` for a program that runs once: on CPUs the compiler is told to hurry.

    Options that the compiler does not know are left out.
    """
    usual = eqx.filter_jit(function)
    hurried, options = usual, {}

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal hurried, options
        if jax.default_backend() != "cpu":
            return usual(*args, **kwargs)
        if options != _IN_A_HURRY:
            options = dict(_IN_A_HURRY)
            hurried = eqx.filter_jit(function, compiler_options=options)  # type: ignore[call-overload]
        try:
            return hurried(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if f"'{name}'" in str(error)]
            if not unknown:
                raise
            for name in unknown:
                _IN_A_HURRY.pop(name, None)
            return call(*args, **kwargs)

    return call
