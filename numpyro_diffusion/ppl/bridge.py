r"""`from_model`: the bridge of a NumPyro model.

The model is looked at once to learn its sites, and then traced once to programs. Sites with a
`DiffusionPrior` are followed through the noise levels, all other latent sites live in unconstrained space,
observed sites and factors make up the likelihood. The model is otherwise run as it is: only through handlers,
and only through public API.
"""

import math
from collections.abc import Callable
from typing import Any

from .._arguments import as_arrays
from ..bridge import Bridge, Tempering, normalizer_error
from ..twists import AbstractTwist, Tweedie
from .checks import (
    check_model,
    check_site,
    diffusion_site,
    refuse_rebuilt_energies,
    refuse_unknown_normalizers,
    values_needed,
)
from .look import look
from .model_bridge import LiveModel, ModelBridge
from .sites import is_diffusion, is_other, taken_apart

__all__ = ["from_model", "taken_apart"]


def from_model(
    model: Callable,
    *args: Any,
    twist: AbstractTwist | None = None,
    path_space: bool = False,
    initial: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Bridge:
    r"""The bridge from noise to the posterior of a NumPyro model.

    At clock 0 and power 1 its density is the exponential of minus the model's own
    `potential_energy`, to rounding. A model without any `DiffusionPrior` works: its bridge is plain
    likelihood tempering. An energy may depend on other latent sites if it is normalised, and one
    choice among finitely many values becomes a uniform variable. A `TransformedDistribution` of a diffusion
    prior is taken apart: the diffusion site is then `x_base`, and `x` its transform. Of data with an
    `obs_mask`, all draws beside seen data keep their own law, where `potential_energy` leaves them
    without one.

    Args:
        model: A NumPyro model.
        *args: Its arguments, data included. Arrays may change later without recompilation.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        path_space: For `Twisted`: priors are the laws of reverse samplers, and denoisers are enough.
        initial: By diffusion site, the law of $x_t / \alpha_t$ at `t_max` from which particles start: a
            NumPyro distribution over one example. The Gaussian of the energy's moments by default.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: For a discrete or non-finite site, a subsampled plate, a scaled or masked latent
            site, a prior whose energy depends on other sites and is not normalised, no latent site at all,
            or a model that needs the values of its arguments, not only their shapes.
        TypeError: For a diffusion site whose prior is a score without energy, unless in path space; for
            what is no function; for densities that are complex.
    """
    check_model(model)
    args, kwargs = as_arrays(model, args, kwargs)
    live = LiveModel(model, args, kwargs)
    trace, again = (look(live, deviations) for deviations in (0.0, 1.0))
    sites = {
        n: diffusion_site(n, site, path_space, (initial or {}).get(n))
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
    live = LiveModel(model, args, kwargs, tuple(sites), others)
    with values_needed():
        parts = ModelBridge(live, sites, twist, Tempering({}, {})).towards_the_data()
    varying = {name for name, _ in parts.functions.varying}  # type: ignore[union-attr]
    refuse_unknown_normalizers(sites, varying, path_space)
    if twist.num_directions and isinstance(parts.functions.laws, str):  # type: ignore[union-attr]
        raise ValueError(parts.functions.laws)  # type: ignore[union-attr]
    prior = "the reverse sampler's law" if path_space else "exp(-E(., t_min))"
    return Bridge.of(
        parts,
        diffusion_sites=tuple(sites),
        other_sites=others,
        target=f"the posterior of the model under {prior}" if sites else "the posterior",
        log_normalizer_error=normalizer_error(sites),
        exact_prior=bool(sites) and all(site.exact for site in sites.values()),
        path_space=path_space,
        powers={name: site.powers for name, site in sites.items() if site.powers},
        drivers=parts.drivers,
        choices=tuple(n for n in others if "choice" in trace[n]["infer"]),
        evaluations=max((twist.evaluations(site.energy) for site in sites.values()), default=1),
    )
