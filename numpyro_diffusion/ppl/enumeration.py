r"""All values of the discrete sites of a model, and which of them must be run together.

A model is run once for each joint value of the discrete sites that are *shared*. Sites with many entries, as
in a plate, need not be: where every log density depends on one entry $i$ of them at most, the sum factorises,

$$\sum_k \prod_i f_i(k_i) = \prod_i \sum_v f_i(v),$$

and as many runs as an entry has values are enough, in each of which all entries have the same value. Whether
a model factorises, and which log density depends on which entry, is found by changing entries: of each half
of them in turn, as the bits of their numbers say, so that about $2 \log_2 N$ changes tell all $N$ apart.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal

from .._staging import Settled
from .._typing import Array

__all__ = ["NUM_PLACES", "Enumeration", "Key", "enumeration"]

Key = tuple[str, str]  # the kind of a term, and its site

_MOST = 1024  # runs of a model
NUM_PLACES = 4  # where entries are changed


class Enumeration(NamedTuple):
    """Runs of a model that cover all values of its discrete sites.

    Attributes:
        supports: Values of an entry, by site.
        shapes: Shape of each site.
        shared: By shared site all joint values, of shape `(num_shared, *shape)`.
        groups: Of each group of sites that share their entries, all joint values of one entry, by site.
        owners: By term that depends on discrete sites, of each of its entries the entry of each group on
            which it depends, -1 for none: shape `(num_groups, size)`.
    """

    supports: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    shared: dict[str, np.ndarray]
    groups: tuple[dict[str, np.ndarray], ...]
    owners: dict[Key, np.ndarray]

    @property
    def num_shared(self) -> int:
        """Joint values of the shared sites; 1 if there are none."""
        return max((len(values) for values in self.shared.values()), default=1)

    @property
    def num_values(self) -> list[int]:
        """Joint values of one entry, by group."""
        return [len(next(iter(group.values()))) for group in self.groups]

    @property
    def num_entries(self) -> list[int]:
        """Entries of each group."""
        return [math.prod(self.shapes[next(iter(group))]) for group in self.groups]

    def values(self, shared: Any, each: Any) -> dict[str, Array]:
        """Values of all sites in one run: a joint value of the shared ones, and one of every entry."""
        found = {name: jnp.asarray(values)[shared] for name, values in self.shared.items()}
        for group, count in zip(self.groups, self.num_values, strict=True):
            for name, values in group.items():
                value = jnp.asarray(values)[jnp.minimum(each, count - 1)]
                found[name] = jnp.broadcast_to(value, self.shapes[name])
        return found

    def each_run(self, function: Callable[[dict[str, Array]], Any]) -> Any:
        """A function of the discrete sites in all runs; leaves lead with `(num_shared, num_values)`."""
        count = max(self.num_values, default=1)
        over_values = lambda c: jax.vmap(lambda v: function(self.values(c, v)))(jnp.arange(count))
        return jax.vmap(over_values)(jnp.arange(self.num_shared))


def enumeration(
    sites: dict[str, tuple[np.ndarray, tuple[int, ...]]],
    program: Settled,
    data: Any,
    points: Callable[[], tuple[Any, Any]],
) -> Enumeration:
    """Find the runs that a model needs.

    Args:
        sites: By discrete site the values of an entry, and the shape.
        program: Terms of the model, by key, given data, other sites, diffusion sites and discrete sites.
        data: The data.
        points: Other sites and diffusion sites at `NUM_PLACES` places.

    Raises:
        ValueError: If there are more than 1024.
    """
    supports = {name: values for name, (values, _) in sites.items()}
    shapes = {name: shape for name, (_, shape) in sites.items()}
    by_size: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        by_size.setdefault(math.prod(shape), []).append(name)
    grouped = [names for size, names in by_size.items() if size > 1]
    together: str = ""
    if grouped:
        groups = tuple(_joint({n: (supports[n], ()) for n in names}) for names in grouped)
        single = {n: (supports[n], shapes[n]) for n in by_size.get(1, [])}
        if _count(single) * max(math.prod(len(supports[n]) for n in g) for g in grouped) <= _MOST:
            found = Enumeration(supports, shapes, _joint(single), groups, {})
            owners, together = _owners(found, program, data, points)
            if not together:
                return found._replace(owners=owners)
    if _count(sites) > _MOST:
        raise ValueError(_too_many(sites, together))
    shared = _joint(sites)
    nothing = {key: np.zeros((0, size), int) for key, size in _dependent(program, shared).items()}
    return Enumeration(supports, shapes, shared, (), nothing)


def _count(sites: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> int:
    return math.prod(len(values) ** math.prod(shape) for values, shape in sites.values())


def _joint(sites: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """All joint values of some sites, by site, with one leading axis."""
    each = [values for values, shape in sites.values() for _ in range(math.prod(shape))]
    rows = list(itertools.product(*each))
    found, start = {}, 0
    for name, (values, shape) in sites.items():
        size = math.prod(shape)
        column = np.array([row[start : start + size] for row in rows], values.dtype)
        found[name] = column.reshape(len(rows), *shape)
        start += size
    return found


def _too_many(sites: dict[str, Any], together: str) -> str:
    names = ", ".join(f"`{name}`" for name in sites)
    sizes = " x ".join(
        f"{len(values)}^{math.prod(shape)}" if math.prod(shape) > 1 else str(len(values))
        for values, shape in sites.values()
    )
    why = ""
    if together:
        why = (
            " Entries of one site are summed one by one where each log density depends on one of them alone; "
            f"`{together}` depends on several, or was not finite where that was looked at."
        )
    return (
        f"the discrete sites {names} have {sizes} joint values, more than the {_MOST} that are summed out."
        f"{why} Give each datum its own entry in a plate, leave out values that cannot be, or sum over some "
        "sites by hand, as `dist.MixtureGeneral` does."
    )


def _dependent(program: Settled, discrete: dict[str, Any]) -> dict[Key, int]:
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


def _owners(
    found: Enumeration, program: Settled, data: Any, points: Callable
) -> tuple[dict[Key, np.ndarray], str]:
    """Owners of all terms, and the site of one that depends on several entries, if there is one."""
    sizes = _dependent(program, found.supports)
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
