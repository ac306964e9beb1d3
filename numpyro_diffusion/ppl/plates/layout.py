"""Which sites of a model are shared and which belong to objects, and whether it is a plate at all."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._prng import lean
from ..._typing import Array, Position
from ...bridge import Bridge
from ..bridge import from_model
from .arguments import SplitArguments
from .reference import Layout

__all__ = ["PlateModel", "look_at_plate"]


@dataclasses.dataclass(frozen=True)
class PlateModel:
    r"""A model of independent objects under shared sites $\phi$.

    Attributes:
        one: Bridge of the first object alone.
        layout: Of the shared sites.
        axes: Axis of objects, by object site.
        value_axes: The same of latent and deterministic sites as the model has them; `None` for shared ones.
    """

    one: Bridge
    layout: Layout
    axes: dict[str, int]
    value_axes: dict[str, int | None]


def look_at_plate(
    model: Callable, arguments: SplitArguments, bridge_type: Any, twist: Any
) -> PlateModel:
    """The model with its first object, its second one and both, compared.

    Raises:
        ValueError: If a site mixes objects, no site is shared or none belongs to objects, or a shared site is
            a diffusion site, discrete, or one on which the energy of a prior depends.
    """
    at = lambda objects: arguments.at(objects)
    make = lambda objects: from_model(
        model, *at(objects)[0], twist=twist, bridge_type=bridge_type, **at(objects)[1]
    )
    first = make(slice(0, 1))
    if first.discrete_sites:
        raise ValueError(
            f"a plate that is sampled object by object has continuous sites; got the discrete "
            f"{list(first.discrete_sites)}. Sum over them by hand, or sample all objects together with "
            f"`nd.SMC`. {_faq.discrete_site}"
        )
    second, both = make(slice(1, 2)), make(slice(0, 2))
    shapes = lambda bridge: {
        n: leaf.shape for n, leaf in jax.eval_shape(bridge.sample_base, jax.random.key(0)).items()
    }
    axes = _axes(shapes(first), shapes(both))
    shared = tuple((n, s) for n, s in shapes(first).items() if axes[n] is None)
    own = {n: axis for n, axis in axes.items() if axis is not None}
    _check_roles(first, tuple(n for n, _ in shared), own, arguments)
    z = both.sample_base(lean(jax.random.key(0)))
    part = lambda k: {
        n: leaf if axes[n] is None else jnp.take(leaf, jnp.array([k]), axes[n])
        for n, leaf in z.items()
    }
    _check_product(first, second, both, part, z)
    values = [_values(b, p) for b, p in ((first, part(0)), (second, part(1)), (both, z))]
    value_axes = _axes(*({n: v.shape for n, v in values[i].items()} for i in (0, 2)))
    for name, axis in value_axes.items():
        if axis is None and not all(_close(values[2][name], v[name]) for v in values[:2]):
            raise ValueError(
                f"the deterministic site `{name}` mixes objects, which are sampled one by one. Leave it out "
                f"of the model, and compute it from the draws of `get_samples()`. {_faq.plates}"
            )
    return PlateModel(first, Layout(shared), own, value_axes)


def _axes(one: dict[str, tuple], two: dict[str, tuple]) -> dict[str, int | None]:
    """By site the axis that has one entry an object; `None` for what does not grow with their number."""
    found: dict[str, int | None] = {}
    for name, shape in one.items():
        other = two.get(name, ())
        grown = [i for i, (a, b) in enumerate(zip(shape, other, strict=False)) if (a, b) == (1, 2)]
        alike = len(shape) == len(other) and all(
            a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)) if i not in grown
        )
        if not alike or len(grown) > 1:
            raise ValueError(
                f"site `{name}` has shape {shape} for one object and {other} for two: expected one axis with "
                "an entry an object, or none. Put what belongs to objects into a plate of the length of the "
                f"arguments that are split. {_faq.plates}"
            )
        found[name] = grown[0] if grown else None
    return found


def _check_roles(
    one: Bridge, shared: tuple[str, ...], own: dict[str, int], arguments: SplitArguments
) -> None:
    split = ", ".join(f"`{name}`" for name in arguments.split)
    if not own:
        raise ValueError(
            f"no latent site has an entry for each entry of {split}: all of {list(shared)} are shared. Take "
            "the length of the plate from the argument, `numpyro.plate(name, len(y))`; a model without "
            f"object sites needs no plate, `nd.SMC` samples it. {_faq.plates}"
        )
    if not shared:
        raise ValueError(
            f"all latent sites, {list(own)}, belong to objects, which are then independent. Sample one after "
            f"another: `nd.ppl.Sampler` of an `nd.SMC` run of one object. {_faq.plates}"
        )
    if found := [n for n in one.diffusion_sites if n in shared]:
        raise ValueError(
            f"the diffusion sites {found} are shared by all objects. A plate is sampled object by object "
            "where shared sites have densities in closed form; use `nd.SMC` for all objects "
            f"together. {_faq.plates}"
        )
    if found := [n for n in one.drivers if n in shared]:
        raise ValueError(
            f"the energy of a prior depends on the shared sites {found}, so that its density does not cancel "
            "where objects are weighed for other values of them. Use `nd.SMC` for all objects "
            f"together. {_faq.normaliser}"
        )


def _check_product(first, second, both, part, z) -> None:
    """Each site's log density is shared, or the sum over objects."""
    one, two, pair = _sites(first, part(0)), _sites(second, part(1)), _sites(both, z)
    shared_data = []
    for name, value in pair.items():
        if name not in one or name not in two:
            raise ValueError(
                f"site `{name}` is there for two objects and not for one. {_faq.plates}"
            )
        if _close(value, one[name] + two[name]):
            continue
        if not (_close(one[name], two[name]) and _close(value, one[name])):
            raise ValueError(
                f"site `{name}` mixes objects: its log density at two is {value:.6g}, and those at each "
                f"are {one[name]:.6g} and {two[name]:.6g}. A plate is sampled object by object where "
                "objects are independent given the shared sites; use `nd.SMC` for all objects "
                f"together. {_faq.plates}"
            )
        if name not in first.other_sites:
            shared_data.append(name)
    if shared_data:
        raise ValueError(
            f"the data at {shared_data} stand outside of the plate, and would count once for each object. "
            "Fit them first and pass what they say as the prior of shared sites, or use "
            f"`nd.SMC`. {_faq.plates}"
        )


def _close(value: Any, other: Any) -> bool:
    if np.shape(value) != np.shape(other):
        return False
    return bool(np.allclose(value, other, rtol=1e-3, atol=1e-3, equal_nan=True))


@eqx.filter_jit
def _rests(bridge: Bridge, z: Position) -> dict[str, Array]:
    return bridge.model.rest(z, {n: z[n] for n in bridge.diffusion_sites}).sites


def _sites(bridge: Bridge, z: Position) -> dict[str, float]:
    return {name: float(value) for name, value in _rests(bridge, z).items()}


@eqx.filter_jit
def _values(bridge: Bridge, z: Position) -> dict[str, Array]:
    return bridge.constrain(z)
