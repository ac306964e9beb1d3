"""The conditional model of the diffusion sites given all other sites.

Other sites are data like any others, and reach the model by the keyword argument through which NumPyro's
`Gibbs` conditions its blocks. Bridge, levels and whatever a pilot measures are made once, before the chain
starts, and of the data alone: no value of the chain enters them, so that each pass has the same target.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from numpyro import handlers
from numpyro.infer import init_to_sample
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, conditioned, latent_sample_sites

from ... import _faq
from ..._arguments import as_arrays
from ..._typing import PRNGKey
from ...bridge import Bridge, DensityBridge, PathBridge
from ...schemes import TunedScheme
from ...schemes.kernels import Kernels
from ...schemes.levels import Level
from ...schemes.pilot import PilotError
from ...schemes.retrace import needed, way_back
from ...twists import AbstractTwist
from ..bridge import from_model
from ..model_bridge import LiveModel, chosen_sites
from ..sites import is_diffusion, stand_in, unwrapped
from ..tracing import Watched, tracing

__all__ = ["Problem", "prepare", "traced"]


class Problem(NamedTuple):
    """Particles over the diffusion sites of a block.

    Attributes:
        kernels: Over a bridge given some values of the other sites; see `given`.
        levels: Frozen.
        sites: The diffusion sites.
        others: Other latent sites of the block.
        model: Which may be conditioned on all other sites by keyword.
    """

    kernels: Kernels
    levels: Level
    sites: tuple[str, ...]
    others: tuple[str, ...]
    model: Callable

    def given(self, args: tuple, kwargs: dict[str, Any]) -> Kernels:
        """Return the same problem at other data, and at the present values of the other sites."""
        bridge = given(self.model, self.kernels.bridge, args, kwargs)
        return dataclasses.replace(self.kernels, bridge=bridge)


def given(model: Callable, bridge: Bridge, args: tuple, kwargs: dict[str, Any]) -> Bridge:
    """The bridge of a model at other arguments of the same shapes; energies may depend on them."""
    args, kwargs = as_arrays(model, args, kwargs)
    live = LiveModel(
        bridge.diffusion_sites, bridge.other_sites, (), model, args, kwargs, chosen_sites(bridge)
    )
    bridge = dataclasses.replace(bridge, model=live)
    if isinstance(bridge, DensityBridge):  # in path space the law of the steps is fixed
        trace = live.trace(stand_in, jax.random.key(0))
        energy = lambda name: unwrapped(trace[name]["fn"]).energy
        sites = {n: dataclasses.replace(s, energy=energy(n)) for n, s in bridge.sites.items()}
        tempering = dataclasses.replace(bridge.tempering, sites=sites)
        bridge = dataclasses.replace(bridge, sites=sites, tempering=tempering)
    return bridge


def traced(model: Callable, key: PRNGKey, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Trace the model with latent sites drawn from their priors, apart from diffusion sites: no sampler is
    run.
    """

    def value(site):
        return stand_in(site) if is_diffusion(site) else init_to_sample(site)

    model = handlers.seed(Watched(conditioned(model)), key)
    model = handlers.substitute(model, substitute_fn=value)
    with tracing:
        return handlers.trace(model).get_trace(*args, **kwargs)


_conditioned = functools.lru_cache(maxsize=32)(conditioned)


def once_conditioned(model: Callable) -> Callable:
    """Return the same function each time, so that new data find the programs that were compiled for old
    ones.
    """
    try:
        return _conditioned(model)
    except TypeError:  # a model that cannot be hashed
        return conditioned(model)


def refuse_unknown_normalizers(
    model: Callable,
    sites: tuple[str, ...],
    values: dict[str, Any],
    args: tuple,
    kwargs: dict[str, Any],
    bridge_type: type[Bridge],
) -> None:
    """Refuse energies that depend on the values of other sites, unless their normaliser is known."""
    found = {}

    def look(values):
        trace = traced(model, jax.random.key(0), args, {**kwargs, GIBBS_SITES_KWARG: values})
        for name in sites:
            energy = unwrapped(trace[name]["fn"]).energy
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(energy)):
                found[name] = bridge_type is PathBridge or energy.log_normalizer is None
        return jnp.zeros(())

    jax.vmap(look, axis_size=1)(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], values))
    for name in (name for name, refused in found.items() if refused):
        raise ValueError(
            f"the energy of site `{name}` depends on other sites, whose posterior then holds its normaliser; "
            "that is not known. Give it one, `energy.with_log_normalizer(...)`, and use a scheme that needs "
            f"energies; or use one fixed prior, made outside the model. {_faq.normaliser}"
        )


def prepare(
    name: str,
    check: Callable[[tuple[str, ...], tuple[str, ...]], None],
    model: Callable,
    scheme: TunedScheme,
    twist: AbstractTwist,
    args: tuple,
    kwargs: dict[str, Any],
) -> Problem:
    """Bridge and levels for the diffusion sites that `kwargs` do not condition on.

    A pilot chooses the levels for the joint posterior of all continuous sites, so that they suit those values
    that the chain will visit.

    Args:
        name: Of the kernel, for messages.
        check: Told of the diffusion sites and the other sites of the block, to refuse them.
        model: The model.
        scheme: How particles are run.
        twist: What the likelihood sees at noisy levels.
        args: Of the model; concrete.
        kwargs: Of the model, with the values of the sites of other blocks, of which only the names matter.

    Raises:
        ValueError: If there is no diffusion site, or a site is discrete; see also
            `from_model`.
        TypeError: For a prior that is a score alone, unless the scheme is in path space.
    """
    plain = {k: v for k, v in kwargs.items() if k != GIBBS_SITES_KWARG}
    trace = traced(model, jax.random.key(0), args, plain)
    latent = [n for n in latent_sample_sites(trace) if n not in kwargs.get(GIBBS_SITES_KWARG, {})]
    sites = tuple(n for n in latent if is_diffusion(trace[n]))
    others = tuple(n for n in latent if n not in sites)
    if not sites:
        raise ValueError(
            f"`{name}` moves sites with a `DiffusionPrior`, and there is none among {latent}. Use NUTS or "
            f"`MoveKernel` for them. {_faq.blocks}"
        )
    for n in others:
        if trace[n]["fn"].is_discrete:
            raise ValueError(
                f"latent site `{n}` is discrete; `{name}` cannot move it. Give it a block of its own: "
                f"`Gibbs([(DiscreteGibbs(model), ['{n}']), ...])`, or sum it out with "
                f"`nd.SMC`. {_faq.discrete_site}"
            )
    check(sites, others)
    rest = [n for n in latent_sample_sites(trace) if n not in sites]
    values = {n: trace[n]["value"] for n in rest}
    refuse_unknown_normalizers(model, sites, values, args, plain, scheme.bridge_type)
    options: Any = {"twist": twist, "bridge_type": scheme.bridge_type}

    def bridge_given(names):
        chosen = {GIBBS_SITES_KWARG: {n: values[n] for n in names}}
        return from_model(once_conditioned(model), *args, **options, **{**plain, **chosen})

    bridge = joint = bridge_given(rest)
    kernels = scheme.kernels(bridge)
    way_back(kernels.transport)  # refuses a scheme that cannot go back, before a pilot runs
    discrete = [n for n in rest if trace[n]["fn"].is_discrete or is_diffusion(trace[n])]
    if len(discrete) < len(rest):
        try:
            joint = bridge_given(discrete)
        except ValueError:  # another site is in the way, which the chain has no trouble with
            if (
                scheme.bridge_type is PathBridge
            ):  # where the prior itself might be another for other values
                raise
            joint = bridge
    try:
        levels = needed(kernels, scheme(joint, jax.random.key(0)).levels)
    except PilotError as error:
        error.add_note(
            f"`{name}` leaves the posterior as it is at any levels, so that fewer will do: "
            "`scheme=nd.ReverseDiffusion(moves=0, pilot=nd.schemes.Pilot(conditional_ess=0.9))`."
        )
        raise
    # Precision is measured along the same direction as by the pilot, whose curvatures depend on it, and the
    # pilot's floors are for the edges that it knew.
    bridge = dataclasses.replace(bridge, tempering=joint.tempering, edges=joint.edges)
    kernels = dataclasses.replace(kernels, bridge=bridge)
    return Problem(kernels, levels, sites, others, once_conditioned(model))
