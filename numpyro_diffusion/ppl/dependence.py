"""Which arrays of the energies of a model depend on its latent sites, and on which."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
from jax.extend.core import Literal

from .. import _faq
from .._typing import Array, Position

__all__ = ["arrays_of", "energies_depend_on", "refuse_impossible", "varying_leaves", "with_arrays"]


def arrays_of(energy: Any) -> list[Array]:
    """The arrays of an energy, in the order of its tree."""
    return jax.tree.leaves(eqx.partition(energy, eqx.is_array)[0])


def with_arrays(energy: Any, new: dict[int, Array]) -> Any:
    """The same energy with other arrays at some places of `arrays_of`."""
    arrays, rest = eqx.partition(energy, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    leaves = [new.get(i, leaf) for i, leaf in enumerate(leaves)]
    return eqx.combine(jax.tree.unflatten(structure, leaves), rest)


def varying_leaves(
    leaves: Callable, draws: Callable, data: Any, z: Position, x: Position
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Arrays of energies that depend on latent sites, as `(site, place)`, and the sites they depend on.

    Args:
        leaves: `(data, z, x) -> {site: arrays}`, of the energies.
        draws: `(data, x, key) -> z`: the other sites from their prior.
        data: Of the model.
        z: The other sites, or their shapes.
        x: The diffusion sites, or their shapes.

    Raises:
        ValueError: If an energy depends on a diffusion site, directly or through the prior of another site.
    """
    found = _dependence(lambda z, x: leaves(data, z, x), {"z": z, "x": x})
    varying = {place: names for place, names in found.items() if names}
    drivers = {name for names in varying.values() for kind, name in names if kind == "z"}
    followed = _dependence(lambda x, key: draws(data, x, key), {"x": x, "key": jax.random.key(0)})
    behind = {n for (n, _), names in followed.items() for kind, _ in names if kind == "x"} & drivers
    for (site, _), names in varying.items():
        through = {name for kind, name in names if kind == "x"} or {
            name for kind, name in names if kind == "z" and name in behind
        }
        if through:
            raise ValueError(
                f"the energy of site `{site}` depends on a diffusion site, through {sorted(through)}; "
                "particles come from noise all at once, and the site that it depends on is then "
                "still noise. Use one "
                "fixed energy a site, or one that depends on other sites alone; couple diffusion sites by "
                f"`numpyro.factor`. {_faq.normaliser}"
            )
    return tuple(sorted(varying)), tuple(sorted(drivers))


def energies_depend_on(
    leaves: Callable, z: Position, x: Position, labels: dict[str, Array]
) -> tuple[str, ...]:
    """The discrete sites on which energies depend.

    Args:
        leaves: `(z, x) -> {site: arrays}`, of the energies; `x` holds labels, too.
        z: The other sites, or their shapes.
        x: The diffusion sites, or their shapes.
        labels: The discrete sites.

    Raises:
        ValueError: If one is more than a single choice.
    """
    function = lambda z, x, k: leaves(z, {**x, **k})
    found = _dependence(function, {"z": z, "x": x, "k": labels})
    pairs = sorted({(n, site) for (site, _), names in found.items() for k, n in names if k == "k"})
    for name, site in pairs:
        if labels[name].shape != ():
            raise ValueError(
                f"the energy of site `{site}` depends on the discrete site `{name}` of shape "
                f"{labels[name].shape}; it may depend on single choices. Give each entry a site of "
                f"its own. {_faq.discrete_site}"
            )
    return tuple(dict.fromkeys(name for name, _ in pairs))


def refuse_impossible(drivers: tuple[str, ...], share: Any) -> None:
    """Refuse priors of parameters under which an energy has no density.

    Args:
        drivers: The sites on which energies depend.
        share: Of draws of their prior at which an energy is NaN.

    Raises:
        ValueError: If there are any. Taken for a density of 0 they would cut the prior off, without its norm.
    """
    if isinstance(share, Tracer) or not float(share) > 0:
        return
    raise ValueError(
        f"{100 * float(share):.0f} % of the draws of {list(drivers)} from the prior give a diffusion site no "
        "density (NaN): a power that is not positive, a label without a normaliser, or a value outside the "
        "grid of a table. Let the prior end there, as `dist.LogNormal`, `dist.Uniform` and "
        f"`dist.TruncatedNormal` do, or tabulate a wider grid. {_faq.table_range}"
    )


def _dependence(function: Callable, inputs: dict[str, Any]) -> dict[tuple[str, int], frozenset]:
    """By output `(name, place)` the inputs `(kind, name)` that it depends on; rather too many than too few.

    Args:
        function: Of the values of `inputs`, in their order, to a dictionary of arrays or lists of arrays.
        inputs: Dictionaries of arrays or shapes, or a key.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs.values())
    names = [
        (kind, getattr(path[0], "key", "") if path else "")
        for kind, value in inputs.items()
        for path, _ in jax.tree_util.tree_flatten_with_path(value)[0]
    ]
    jaxpr, none = closed.jaxpr, frozenset()
    reached = {v: frozenset([n]) for v, n in zip(jaxpr.invars, names, strict=True)}
    read = lambda v: none if isinstance(v, Literal) else reached.get(v, none)
    for eqn in jaxpr.eqns:
        union = none.union(*(read(v) for v in eqn.invars))
        reached.update(dict.fromkeys(eqn.outvars, union))
    places = [
        (name, place)
        for name, value in sorted(shapes.items())
        for place in range(len(jax.tree.leaves(value)))
    ]
    return {where: read(v) for where, v in zip(places, jaxpr.outvars, strict=True)}
