r"""`from_model`: the bridge of a NumPyro model.

The model is looked at once to learn its sites, and then traced once to programs. Sites with a
`DiffusionPrior` are followed through the noise levels, all other latent sites live in unconstrained space,
observed sites and factors make up the likelihood. The model is otherwise run as it is: only through handlers,
and only through public API.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import as_arrays
from .._staging import brief_jit, settle
from .._typing import Position
from ..bridge import Bridge, DensityBridge, DiffusionSite, check_bridge_type, seen_shapes
from ..twists import AbstractTwist, Tweedie
from .checks import (
    check_model,
    diffusion_site,
    refuse_rebuilt_energies,
    refuse_unknown_normalizers,
    values_needed,
)
from .choice_sites import taken_apart
from .dependence import energies_depend_on, refuse_impossible
from .look import look
from .model_bridge import LiveModel, typical_sites
from .runs import NUM_PLACES
from .site_checks import check_site
from .sites import is_diffusion, is_discrete, is_other, site_shape

__all__ = ["from_model", "taken_apart"]


def from_model(
    model: Callable,
    *args: Any,
    twist: AbstractTwist | None = None,
    bridge_type: type[Bridge] = DensityBridge,
    initial: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Bridge:
    r"""The bridge from noise to the posterior of a NumPyro model.

    At clock 0 and power 1 its density is the exponential of minus the model's own
    `potential_energy`, to rounding. A model without any `DiffusionPrior` works: its bridge is plain
    likelihood tempering. An energy may depend on other latent sites if it is normalised; a choice
    among finitely many values on which one depends becomes a uniform variable. A
    `TransformedDistribution` of a diffusion prior is taken apart: the diffusion site is then `x_base`,
    and `x` its transform. Of data with an `obs_mask`, all draws beside seen data keep their own distribution,
    where `potential_energy` leaves them without one.

    All other discrete latent sites are summed out: the density is that of the marginal model. All their
    joint values are run together, at most 1024; entries of a site on which no term of the model depends
    together, as in a plate of independent objects, are summed one by one, at a cost that is linear in
    their number.

    Args:
        model: A NumPyro model.
        *args: Its arguments, data included. Arrays may change later without recompilation.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        bridge_type: `nd.bridge.PathBridge` for `Twisted`: priors are the distributions of reverse samplers,
            and denoisers are enough. Any scheme names its own, `scheme.bridge_type`.
        initial: By diffusion site, the distribution of $x_t / \alpha_t$ at `t_max` from which particles
            start: a NumPyro distribution over one example. The Gaussian of the energy's moments by default.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: For a discrete site without a finite list of values, or too many joint ones, a value that
            is not finite, a subsampled plate, a scaled or masked latent site, a prior whose energy depends
            on other sites and is not normalised, no latent site at all, or a model that needs the values of
            its arguments, not only their shapes.
        TypeError: If `initial` is no dictionary;
            for a diffusion site whose prior is a score without energy, unless in path space; for
            what is no function; for densities that are complex; for what is no type of bridge.
    """
    check_model(model)
    check_bridge_type(bridge_type)
    if not isinstance(initial, dict | None):
        raise TypeError(
            "`initial` is a dictionary of distributions by diffusion site; got "
            f"{type(initial).__name__}. A proposal for all sites is for `nd.SMC(model, "
            f"initial=proposal)`. {_faq.kinds}"
        )
    args, kwargs = as_arrays(model, args, kwargs)
    live = LiveModel((), (), (), model, args, kwargs)
    trace = look(live, 0.0)
    while new := _energy_choices(live, trace):
        live = dataclasses.replace(live, chosen=(*live.chosen, *new))
        trace = look(live, 0.0)
    again = look(live, 1.0)
    sites = {
        n: diffusion_site(n, site, bridge_type, (initial or {}).get(n))
        for n, site in trace.items()
        if is_diffusion(site)
    }
    unknown = sorted(set(initial or {}) - set(sites))
    if unknown:
        raise ValueError(
            f"`initial` names {unknown}, but the diffusion sites of the model are "
            f"{sorted(sites)}. {_faq.names}"
        )
    refuse_rebuilt_energies(sites, again)
    others = tuple(n for n, site in trace.items() if is_other(site))
    for name, site in trace.items():
        check_site(name, site, trace)
    discrete = {
        n: (np.asarray(site["support"]), site_shape(site))
        for n, site in trace.items()
        if is_discrete(site)
    }
    if not sites and not others:
        raise ValueError(f"{_nothing_to_move(tuple(discrete))} {_faq.blocks}")
    size = sum(math.prod(site.shape) for site in sites.values())
    twist = (Tweedie() if twist is None else twist).of_size(size)
    live = dataclasses.replace(
        live, diffusion=tuple(sites), others=others, discrete=tuple(discrete)
    )
    with values_needed(live.discrete):
        settled = live.settled(*seen_shapes(sites, twist), discrete, _places(sites))
        path_space = bridge_type is not DensityBridge
        refuse_unknown_normalizers(sites, {name for name, _ in settled.varying}, path_space)
        if settled.drivers:  # what needs one energy, such as scales, has that of typical values
            sites, share = typical_sites(settled, sites)
            refuse_impossible(settled.drivers, share)
        choices = tuple(n for n in others if "choice" in trace[n]["infer"])
        settled = dataclasses.replace(settled, choices=choices)
        if twist.num_directions and isinstance(settled.observed, str):
            raise ValueError(f"{_faq.bare(settled.observed)} {_faq.operator}")
        return bridge_type.over(settled, sites, twist)


def _energy_choices(live: LiveModel, trace: dict[str, dict]) -> tuple[str, ...]:
    """Discrete sites on which an energy depends: not summed out, but choices of uniform variables."""
    named = lambda test: tuple(n for n, site in trace.items() if test(site))
    discrete = named(is_discrete)
    if any(trace[n]["support"] is None for n in discrete):
        return ()  # refused in a moment
    diffusion = named(is_diffusion)
    if not (discrete and diffusion):
        return ()
    live = dataclasses.replace(live, diffusion=diffusion, others=named(is_other), discrete=discrete)
    shapes: Any = {n: jax.ShapeDtypeStruct(site_shape(trace[n]), float) for n in diffusion}
    labels = {n: jnp.zeros(site_shape(trace[n]), trace[n]["support"].dtype) for n in discrete}
    with values_needed(discrete):
        z = jax.eval_shape(live.draw_others, shapes, jax.random.key(0))
        return energies_depend_on(live.energy_leaves, z, shapes, labels)


def _places(sites: dict[str, DiffusionSite]) -> Position:
    """Values of the diffusion sites around their priors' means, near and far."""
    numbers = np.random.default_rng(0)  # fixed: equal models get equal bridges
    scales = np.geomspace(0.3, 3.0, NUM_PLACES)

    def at(site):
        normals = numbers.standard_normal((NUM_PLACES, *site.shape))
        scaled = scales.reshape(-1, *(1,) * len(site.shape)) * normals
        return site.centre + site.scale * scaled.astype(site.dtype)

    # One program, and equal ones are compiled once.
    return _values(settle(lambda: {name: at(site) for name, site in sites.items()}))


_values = brief_jit(lambda program: program())


def _nothing_to_move(discrete: tuple[str, ...]) -> str:
    if not discrete:
        return "the model has no latent site, so there is nothing to infer."
    names = ", ".join(f"`{name}`" for name in discrete)
    return (
        f"all latent sites of the model are discrete ({names}), so there is nothing to sample: their sum is "
        "a number. Ask NumPyro for it: `numpyro.contrib.funsor.infer_discrete`, or "
        "`numpyro.infer.DiscreteGibbs` for many."
    )
