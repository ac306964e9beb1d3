"""Which entry of discrete sites each log density of a model depends on, found by changing entries."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal

from .._staging import Settled
from .runs import NUM_PLACES, Enumeration, Key

__all__ = ["dependent_terms", "owners_of"]


def dependent_terms(program: Settled, discrete: dict[str, Any]) -> dict[Key, int]:
    """The terms that depend on discrete sites, of which a program takes the values last, and their sizes."""
    jaxpr = program.program.jaxpr
    reached = set(jaxpr.invars[len(jaxpr.invars) - len(discrete) :])
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
    out = jax.tree.unflatten(program.program.out_tree, _sizes(jaxpr, reached))
    return {key: size for key, size in out.items() if size >= 0}


def _sizes(jaxpr: Jaxpr, reached: set) -> list[int]:
    """Sizes of the outputs that were reached, -1 for the others."""
    found = lambda v: not isinstance(v, Literal) and v in reached
    return [math.prod(v.aval.shape) if found(v) else -1 for v in jaxpr.outvars]  # type: ignore[attr]


def owners_of(
    found: Enumeration, program: Settled, data: Any, points: Callable
) -> tuple[dict[Key, np.ndarray], str]:
    """Owners of all terms, and the site of one that depends on several entries, if there is one."""
    sizes = dependent_terms(program, found.supports)
    z, x = points()
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((data, z, x, program.constants))):
        return {}, "the model under `jit`"  # no value is known
    numbers = np.random.default_rng(0)
    owners = {key: np.full((len(found.groups), size), -1) for key, size in sizes.items()}
    for g, group in enumerate(found.groups):
        base, changed = _changes(found, group, numbers)
        differs, known = jax.device_get(_differences(program, data, z, x, base, changed))
        for key in sizes:
            # Bits of the owner's number, and of its complement.
            ones, zeros = differs[key].reshape(2, -1, sizes[key])
            moves = (ones | zeros).any(0)
            one = (ones ^ zeros).all(0)
            if not known[key].all() or (moves & ~one).any():
                return {}, key[1]
            number = (ones << np.arange(len(ones))[:, None]).sum(0)
            owners[key][g] = np.where(moves, number, -1)
    for key, each in owners.items():
        if ((each >= 0).sum(0) > 1).any():
            return {}, key[1]
    return owners, ""


def _changes(found: Enumeration, group: dict[str, np.ndarray], numbers: Any) -> tuple[Any, Any]:
    """Values of all sites at each place, and with half of the entries of a group changed, for every half.

    Leaves lead with the places, and with halves, places and changes. Every entry meets all its values.
    """
    places = NUM_PLACES
    size = math.prod(found.shapes[next(iter(group))])
    count = len(next(iter(group.values())))
    base: dict[str, np.ndarray] = {}
    if found.shared:
        row = numbers.integers(found.num_shared, size=places)
        base |= {name: values[row] for name, values in found.shared.items()}
    for other in found.groups:
        index = numbers.integers(len(next(iter(other.values()))), size=(places, size))
        if other is not group:
            index = index[:, :1]
        base |= {
            name: np.broadcast_to(
                values[index].reshape(places, *found.shapes[name])
                if other is group
                else values[index].reshape(places, *(1,) * len(found.shapes[name])),
                (places, *found.shapes[name]),
            )
            for name, values in other.items()
        }
        if other is group:
            start = index
    bits = max(1, math.ceil(math.log2(size)))
    half = (np.arange(size) >> np.arange(bits)[:, None]) & 1
    halves = np.concatenate([half, 1 - half]).astype(bool)
    shifts = np.arange(1, max(count, 2))
    index = (start[None, :, None, :] + shifts[:, None]) % count
    index = np.where(halves[:, None, None, :], index, start[None, :, None, :])
    changed = {
        name: values[index].reshape(*index.shape[:3], *found.shapes[name])
        for name, values in group.items()
    }
    return base, changed


@eqx.filter_jit
def _differences(program: Settled, data: Any, z: Any, x: Any, base: Any, changed: Any) -> Any:
    """By term, which entries differ in the runs of each half, and which were finite somewhere."""

    def at(z, x, base):
        return program(data, z, x, base)

    before = jax.lax.map(lambda place: at(*place), (z, x, base))
    known = jax.tree.map(lambda leaf: jnp.isfinite(leaf).any(0).ravel(), before)

    def half(changed):
        def place(place):
            z, x, base, before, changed = place

            def one(changed):
                after = at(z, x, {**base, **changed})
                other = lambda a, b: (a != b) & ~(jnp.isnan(a) & jnp.isnan(b))
                return jax.tree.map(other, before, after)

            return jax.tree.map(lambda leaf: leaf.any(0), jax.lax.map(one, changed))

        each = jax.lax.map(place, (z, x, base, before, changed))
        return jax.tree.map(lambda leaf: leaf.any(0).ravel(), each)

    return jax.lax.map(half, changed), known
