"""Work of a function that does not depend on its arguments, computed once before loops and calls."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .._typing import PyTree
from .settled import Same, bind, literal

__all__ = ["Done", "hoist"]

# Cheap to make and large to keep: computed where they are read.
_EXPANSIONS = frozenset({"broadcast_in_dim", "iota"})
_CALLS = frozenset({"jit", "pjit"})


class Done(dict):
    """Cache of equations evaluated so far in one scope, so that `hoist` computes none of them again."""

    def bind(self, eqn: Any, values: list[Any]) -> list[Any]:
        """The results of one equation."""
        inputs = (
            literal(v) if isinstance(v, Literal) else id(x)
            for v, x in zip(eqn.invars, values, strict=True)
        )
        parameters = ((name, _quick(value)) for name, value in sorted(eqn.params.items()))
        key = (eqn.primitive.name, tuple(inputs), tuple(parameters))
        if key not in self:
            # Values and equation are kept too: an identity is one only while they live.
            self[key] = bind(eqn, values), values, eqn
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
        return Same(value)
    return type(value), value


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
            values.update(zip(slots, bind(eqn, list(map(read, inputs))), strict=True))
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
