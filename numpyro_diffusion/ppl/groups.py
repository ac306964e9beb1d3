"""ArviZ groups of a run: draws, predictions and data by site."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import log_likelihood as log_likelihood_of

from .. import _faq, diagnostics
from .._prng import lean
from .._typing import Array, PRNGKey
from ..bridge import Bridge
from ..energies.reverse import is_composed
from ..smc import SMCResult
from .choice_sites import taken_apart
from .dims import plate_dims
from .draws import constrained, drawn_by_cloud, pooled_log_weights, take
from .each import each_draw
from .log_prior import left_out, log_priors
from .look import look
from .model_bridge import LiveModel, chosen_sites

__all__ = [
    "Run",
    "arviz_groups",
    "level_times",
    "observed_values",
    "pointwise",
    "predictions",
    "prior_marks",
    "renamed",
]


class Run(NamedTuple):
    """A finished run and what it was a run of.

    Attributes:
        model: The user's model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        bridge: The bridge to its posterior.
        result: With an axis of clouds, and discrete sites among the positions.
        keys: PRNG keys `resample`, `prior` and `predict`.
    """

    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    bridge: Bridge
    result: SMCResult
    keys: dict[str, PRNGKey]


def arviz_groups(
    run: Run, predictive: bool, log_likelihood: bool, num_prior: int, log_prior: bool = True
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str | None]]]:
    """Arrays by group and variable, and the dimensions whose names the model knows, by variable.

    Groups without any variable are left out.

    Sites that cannot keep their names in an ArviZ object are renamed, and complex ones are parted.

    Args:
        run: The run.
        predictive: Include posterior predictive and prior draws.
        log_likelihood: Include the pointwise log likelihood.
        num_prior: Number of prior draws.
        log_prior: Include the log prior density of each latent site.
    """
    model, args, kwargs, bridge, result, keys = run
    index = drawn_by_cloud(keys["resample"], result)
    samples = constrained(bridge, take(index, result.positions), num_axes=2)
    latent_sites = (*bridge.diffusion_sites, *bridge.other_sites, *bridge.discrete_sites)
    latent = {n: samples[n] for n in latent_sites}
    trace = look(LiveModel((), (), (), run.model, run.args, run.kwargs), 0.0)
    observed = observed_values(trace)
    groups: dict[str, Any] = {"posterior": samples}
    if predictive:
        groups |= predictions(run, latent, tuple(samples), tuple(observed), num_prior)
    if log_likelihood and observed:
        apart = taken_apart(model, chosen_sites(bridge))
        groups["log_likelihood"] = pointwise(apart, args, kwargs, latent, observed)
    if log_prior and latent:
        groups["log_prior"] = log_priors(run, latent)
    groups["observed_data"] = observed
    groups["constant_data"] = diagnostics.array_arguments(model, args, kwargs, observed)
    groups["weighted_particles"] = constrained(bridge, result.positions, num_axes=2)
    dims = {n: d for n, d in plate_dims(trace).items() if n not in groups["constant_data"]}
    groups = renamed({n: diagnostics.real_parts(g) for n, g in groups.items() if g})
    groups["sample_stats"] = _sample_stats(index, result)
    groups["weighted_particles"]["log_weight"] = pooled_log_weights(result)
    dims = {n.replace("/", "."): d for n, d in dims.items()}
    return {n: jax.tree.map(np.asarray, g) for n, g in groups.items()}, dims


def renamed(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same groups under names that an ArviZ object can hold, in all groups alike."""
    names = diagnostics.variable_names(name for group in groups.values() for name in group)
    changed = {n: new for n, new in names.items() if new != n.replace("/", ".")}
    if changed:
        listed = ", ".join(f"`{name}` is `{new}`" for name, new in changed.items())
        warnings.warn(
            f"in the ArviZ object {listed}: the name is that of a dimension there, or of another site. "
            f"{_faq.names}",
            stacklevel=4,  # the caller of `SMC.to_arviz`
        )
    return {g: {names[n]: value for n, value in group.items()} for g, group in groups.items()}


def observed_values(trace: dict[str, dict]) -> dict[str, Any]:
    """Observed values by site."""
    return {
        n: s["value"]
        for n, s in trace.items()
        if s["type"] == "sample"
        and s["is_observed"]
        and s["value"] is not None
        and np.size(s["value"])
    }


def _sample_stats(index: Array, result: SMCResult) -> dict[str, Array]:
    """Of each draw: which particle it is, its oldest ancestor, and its log density if known."""
    stats = {"particle": index, "ancestor": take(index, result.state.ancestors)}
    log_density = getattr(result.state.particles, "log_density", None)
    if log_density is not None:
        stats["lp"] = take(index, log_density)
    return stats


def predictions(run: Run, latent, sites, observed, num_prior: int) -> dict[str, Any]:
    """Draws of the prior and of new data; data among the arguments stay where they are."""
    model = handlers.uncondition(taken_apart(run.model, chosen_sites(run.bridge)))

    def of_model(names):
        def one(key, values):
            # The values alone: densities are not asked for.
            given = handlers.substitute(handlers.mask(model, mask=False), data=values)
            trace = handlers.trace(handlers.seed(given, key))
            found = trace.get_trace(*run.args, **run.kwargs)
            return {name: found[name]["value"] for name in names}

        return one

    keys = _split(run.keys["prior"], (num_prior,))
    drawn = each_draw(of_model((*sites, *observed)), (num_prior,), keys, {})
    groups = {
        "prior": {n: drawn[n][None] for n in sites},
        "prior_predictive": {n: drawn[n][None] for n in observed},
    }
    if observed:
        axes = np.shape(next(iter(latent.values())))[:2]
        keys = _split(run.keys["predict"], axes)
        groups["posterior_predictive"] = each_draw(of_model(observed), axes, keys, latent)
    return groups


def pointwise(
    model: Callable, args: tuple, kwargs: dict[str, Any], latent: dict[str, Any], observed: Any
) -> dict[str, Array]:
    """The pointwise log likelihood of some observed sites at draws `(num_chains, num_draws)`."""

    def one(values):
        found = log_likelihood_of(model, values, *args, batch_ndims=0, **kwargs)
        return {name: found[name] for name in observed}

    return each_draw(one, np.shape(next(iter(latent.values())))[:2], latent)


@partial(jax.jit, static_argnums=1)
def _split(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    return jax.random.split(lean(key), shape)


def level_times(run: Run) -> np.ndarray | None:
    """Schedule time of the first diffusion site at the end of each level, if there is one."""
    clock = getattr(run.result.levels, "next_clock", None)
    if clock is None or not run.bridge.diffusion_sites:
        return None
    times = _times(run.bridge.times, jnp.asarray(clock))
    return np.asarray(times[run.bridge.diffusion_sites[0]])


@eqx.filter_jit
def _times(times: Callable, clock: Array) -> dict[str, Array]:
    return jax.vmap(times)(clock)


def prior_marks(run: Run) -> dict[str, dict[str, str]]:
    """Attributes of the groups of the prior: of which distribution draws are, and sites without a density."""
    scores = left_out(run)
    words = f"{', '.join(scores)}: known by scores alone, which have no density"
    return _draws_marks(run.bridge) | ({"log_prior": {"left_out": words}} if scores else {})


def _draws_marks(bridge: Bridge) -> dict[str, dict[str, str]]:
    composed = [name for name, site in bridge.sites.items() if is_composed(site.energy)]
    if not composed:
        return {}
    words = (
        f"the reverse process of the composed prior at {', '.join(composed)}, which is another "
        "distribution than "
        "the prior of the posterior"
    )
    return {"prior": {"draws": words}, "prior_predictive": {"draws": words}}
