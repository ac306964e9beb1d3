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

from .._arguments import as_arrays
from ..bridge import Bridge, DensityBridge, check_bridge_type, seen_shapes
from ..twists import AbstractTwist, Tweedie
from .checks import (
    check_model,
    check_site,
    diffusion_site,
    refuse_rebuilt_energies,
    refuse_unknown_normalizers,
    values_needed,
)
from .dependence import refuse_impossible
from .look import look
from .model_bridge import LiveModel, typical_sites
from .sites import is_diffusion, is_other, taken_apart

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
    likelihood tempering. An energy may depend on other latent sites if it is normalised, and one
    choice among finitely many values becomes a uniform variable. A `TransformedDistribution` of a
    diffusion prior is taken apart: the diffusion site is then `x_base`, and `x` its transform. Of data with
    an `obs_mask`, all draws beside seen data keep their own law, where `potential_energy` leaves
    them without one.

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
        ValueError: For a discrete or non-finite site, a subsampled plate, a scaled or masked latent
            site, a prior whose energy depends on other sites and is not normalised, no latent site at all,
            or a model that needs the values of its arguments, not only their shapes.
        TypeError: For a diffusion site whose prior is a score without energy, unless in path space; for
            what is no function; for densities that are complex; for what is no type of bridge.
    """
    check_model(model)
    check_bridge_type(bridge_type)
    args, kwargs = as_arrays(model, args, kwargs)
    live = LiveModel((), (), model, args, kwargs)
    trace, again = (look(live, deviations) for deviations in (0.0, 1.0))
    sites = {
        n: diffusion_site(n, site, bridge_type, (initial or {}).get(n))
        for n, site in trace.items()
        if is_diffusion(site)
    }
    unknown = sorted(set(initial or {}) - set(sites))
    if unknown:
        raise ValueError(
            f"`initial` names {unknown}, but the diffusion sites of the model are {sorted(sites)}."
        )
    refuse_rebuilt_energies(sites, again)
    others = tuple(n for n, site in trace.items() if is_other(site))
    if not sites and not others:
        raise ValueError("the model has no latent site, so there is nothing to infer.")
    for name, site in trace.items():
        check_site(name, site, trace)
    size = sum(math.prod(site.shape) for site in sites.values())
    twist = (Tweedie() if twist is None else twist).of_size(size)
    live = LiveModel(tuple(sites), others, model, args, kwargs)
    with values_needed():
        settled = live.settled(*seen_shapes(sites, twist))
        path_space = bridge_type is not DensityBridge
        refuse_unknown_normalizers(sites, {name for name, _ in settled.varying}, path_space)
        if settled.drivers:  # what needs one energy, such as scales, has that of typical values
            sites, share = typical_sites(settled, sites)
            refuse_impossible(settled.drivers, share)
        choices = tuple(n for n in others if "choice" in trace[n]["infer"])
        settled = dataclasses.replace(settled, choices=choices)
        if twist.num_directions and isinstance(settled.observed, str):
            raise ValueError(settled.observed)
        return bridge_type.over(settled, sites, twist)
