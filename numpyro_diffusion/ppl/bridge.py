r"""From a NumPyro model to the bridge of densities that ends in its posterior.

The model is traced once to learn its sites. Sites with a `DiffusionPrior` are followed through the noise
levels, all other latent sites live in unconstrained space, observed sites and factors make up the
likelihood. The model is otherwise run as it is: only through handlers, and only through public API.
"""

import copy
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.reparam import TransformReparam

from .._typing import Array
from ..bridge import Bridge, DiffusionSite, Rest, Seen, Tempering, normalizer_error
from ..energies import AbstractEnergy
from ..twists import AbstractTwist, Tweedie
from .distributions import DiffusionPrior

__all__ = ["from_model", "taken_apart"]


def _unwrapped(fn: Any) -> Any:
    """The distribution under plates, masks, `expand` and `to_event`."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _unmasked(fn: Any) -> Any:
    """The same distribution without any mask."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        wrapper = copy.copy(fn)
        wrapper.base_dist = _unmasked(fn.base_dist)
        return wrapper
    return fn


def _counts(fn: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of a value enter its log density: those that no mask leaves out."""
    if isinstance(fn, dist.MaskedDistribution):
        mask = np.reshape(fn._mask, np.shape(fn._mask) + (1,) * fn.event_dim)
        return np.broadcast_to(mask, shape) & _counts(fn.base_dist, shape)
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        return _counts(fn.base_dist, shape)
    return np.ones(shape, bool)


def _shape(site: dict) -> tuple[int, ...]:
    return site["fn"].shape(site["kwargs"]["sample_shape"])


def taken_apart(model: Callable) -> Callable:
    """The model in which `x = f(diffusion)` is a diffusion site `x_base` and its transform `x`."""

    def config(site):
        fn = _unwrapped(site["fn"])
        transformed = isinstance(fn, dist.TransformedDistribution)
        if site["value"] is None and transformed and _is_prior(fn.base_dist):
            return TransformReparam()
        return None

    return handlers.reparam(model, config=config)


def _is_prior(fn: Any) -> bool:
    return isinstance(_unwrapped(fn), DiffusionPrior)


def _is_diffusion(site: dict) -> bool:
    latent = site["type"] == "sample" and not site["is_observed"]
    return latent and _is_prior(site["fn"])


class _ModelBridge(eqx.Module):
    """The functions of a bridge over one model and one data set; data are leaves of the pytree."""

    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    sites: dict[str, DiffusionSite]
    twist: AbstractTwist
    others: tuple[str, ...] = eqx.field(static=True)
    tempering: Tempering

    def trace(self, values: Callable, key: Array | None = None) -> dict[str, dict]:
        """Trace of the model with latent sites given by `values(site)`; `None` lets them be drawn."""
        model = handlers.substitute(taken_apart(self.model), substitute_fn=values)
        if key is not None:
            model = handlers.seed(model, key)
        return handlers.trace(model).get_trace(*self.args, **self.kwargs)

    def sample_base(self, key):
        key_sites, key_model = jax.random.split(key)
        keys = jax.random.split(key_sites, max(len(self.sites), 1))
        u = {n: s.sample_base(k) for k, (n, s) in zip(keys, self.sites.items(), strict=False)}
        if not self.others:
            return u
        return {**u, **self.draw_others(self.see(u, jnp.asarray(1.0)).x_hat, key_model)}

    def draw_others(self, x, key):
        """The other sites from their prior, unconstrained, given the diffusion sites."""
        trace = self.trace(lambda site: x.get(site["name"]), key)
        sites = {name: trace[name] for name in self.others}
        return {n: biject_to(s["fn"].support)._inverse(s["value"]) for n, s in sites.items()}

    def towards_the_data(self):
        """The same with its tempering found."""
        others = _typical_others(self) if self.others else {}
        tempering = Tempering.towards_the_data(self.rest, self.sites, others)
        return eqx.tree_at(lambda parts: parts.tempering, self, tempering)

    def log_base(self, z):
        return sum((s.log_base(z[n]) for n, s in self.sites.items()), jnp.zeros(()))

    def see(self, z, clock):
        parts = {n: s.see(self.twist, z[n], clock) for n, s in self.sites.items()}
        log_densities = {n: value for n, (value, _) in parts.items()}
        x_hat = {n: x for n, (_, x) in parts.items()}
        return Seen(sum(log_densities.values(), jnp.zeros(())), x_hat, log_densities)

    def values(self, z, x_hat) -> Callable:
        """What `substitute` puts at each latent site; supports may depend on other sites."""

        def value(site):
            name = site["name"]
            if name in x_hat:
                return x_hat[name]
            if site["type"] == "sample" and name in z and not site["is_observed"]:
                return biject_to(site["fn"].support)(z[name])
            return None

        return value

    def rest(self, z, x_hat):
        log_prior, log_likelihood, log_peak, num_data = (jnp.zeros(()),) * 4
        sites = {}
        for name, site in self.trace(self.values(z, x_hat)).items():
            if site["type"] != "sample" or name in self.sites:
                continue
            if site["is_observed"]:
                term = _log_density(site, site["fn"])
                log_likelihood = log_likelihood + term
                peak, number = _peak(site)
                log_peak, num_data = log_peak + peak, num_data + number
            else:
                # Without the mask of `obs_mask`: where a datum is seen the draw beside it is free, and
                # keeps its own normalised law, which changes neither evidence nor posterior.
                term = _log_density(site, _unmasked(site["fn"]))
                transform = biject_to(site["fn"].support)
                log_det = transform.log_abs_det_jacobian(z[name], site["value"])
                term = term + jnp.sum(log_det)
                log_prior = log_prior + term
            sites[name] = term
        return Rest(log_prior, log_likelihood, log_peak, num_data, sites)

    def carry(self, z, clock, next_clock):
        carried, log_det = dict(z), jnp.zeros(())
        for name, site in self.sites.items():
            carried[name], one = site.carry(z[name], clock, next_clock)
            log_det = log_det + one
        return carried, log_det

    def constrain(self, z):
        x = {n: z[n] for n in self.sites}
        trace = self.trace(self.values(z, x))
        keep = (*self.sites, *self.others)
        return {
            name: site["value"]
            for name, site in trace.items()
            if name in keep or site["type"] == "deterministic"
        }

    def times(self, clock):
        return {n: s.time(clock) for n, s in self.sites.items()}

    def exponent(self, z, clock):
        return self.tempering(self.rest, z, clock)


@eqx.filter_jit
def _typical_others(parts: _ModelBridge):
    """A few draws of the other sites beside the prior mean of the diffusion sites."""
    x = {name: site.centre for name, site in parts.sites.items()}
    keys = jax.random.split(jax.random.key(0), 8)
    return jax.vmap(lambda key: parts.draw_others(x, key))(keys)


def _log_density(site: dict, fn: Any) -> Array:
    """Summed log density of a site under `fn`, with its scale."""
    if site["intermediates"]:
        values = fn.log_prob(site["value"], site["intermediates"])
    else:
        values = fn.log_prob(site["value"])
    if site["scale"] is not None:
        values = site["scale"] * values
    return jnp.sum(values)


def _peak(site: dict) -> tuple[Array, Array]:
    """Log density of an observed site at its own centre, and how many numbers it holds.

    Both 0 where this means nothing: for factors, discrete data and laws without a mean.
    """
    nothing, fn = (jnp.zeros(()), jnp.zeros(())), site["fn"]
    if isinstance(_unwrapped(fn), dist.Unit) or fn.is_discrete:
        return nothing
    try:
        centre = jnp.broadcast_to(fn.mean, jnp.shape(site["value"]))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return nothing
    known = jnp.all(jnp.isfinite(centre))
    centre = jnp.where(known, centre, site["value"])  # so that no gradient meets a NaN
    log_peak = _log_density({**site, "value": centre, "intermediates": []}, fn)
    numbers = _numbers(fn, jnp.shape(centre))
    number = jnp.sum(numbers if site["scale"] is None else site["scale"] * numbers)
    known = known & jnp.isfinite(log_peak)
    return jnp.where(known, log_peak, 0.0), jnp.where(known, number, 0.0)


def _numbers(fn: Any, shape: tuple[int, ...]) -> Array:
    """How many numbers are behind each entry of a log density: 0 where a mask leaves it out."""
    batch = shape[: len(shape) - fn.event_dim]
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.where(fn._mask, _numbers(fn.base_dist, shape), 0.0)
    if isinstance(fn, dist.Independent):
        inner = _numbers(fn.base_dist, shape)
        return jnp.sum(inner, tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(_numbers(fn.base_dist, shape), batch)
    return jnp.full(batch, float(np.prod(shape[len(batch) :], initial=1.0)))


def from_model(
    model: Callable, *args: Any, twist: AbstractTwist | None = None, **kwargs: Any
) -> Bridge:
    r"""The bridge from noise to the posterior of a NumPyro model.

    At clock 0 and power 1 its density is the exponential of minus the model's own
    `potential_energy`, to rounding. A model without any `DiffusionPrior` works: its bridge is plain
    likelihood tempering. A `TransformedDistribution` of a diffusion prior is taken apart: the
    diffusion site is then `x_base`, and `x` its transform. Of data with an `obs_mask`, all draws
    beside seen data keep their own law, where `potential_energy` leaves them without one.

    Args:
        model: A NumPyro model.
        *args: Its arguments, data included. Arrays may change later without recompilation.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: For a discrete or non-finite site, a subsampled plate, a scaled or masked latent
            site, a prior whose energy depends on other sites, no latent site at all, or a model that
            needs the values of its arguments, not only their shapes.
        TypeError: For a diffusion site whose prior is a score without energy.
    """
    args, kwargs = jax.tree.map(_as_jax, (args, kwargs))
    none = Tempering({}, {})
    probe = _ModelBridge(model, args, kwargs, {}, Tweedie(), (), none)
    trace = _first_trace(probe)
    sites = {n: _diffusion_site(n, site) for n, site in trace.items() if _is_diffusion(site)}
    if sites:
        _refuse_varying_energies(probe, sites)
    others = tuple(n for n, site in trace.items() if _is_other(n, site))
    if not sites and not others:
        raise ValueError("the model has no latent site, so there is nothing to infer.")
    for name, site in trace.items():
        _check_site(name, site, trace)
    twist = Tweedie() if twist is None else twist
    parts = _ModelBridge(model, args, kwargs, sites, twist, others, none)
    _check_compiles(parts)
    parts = parts.towards_the_data()
    return Bridge.of(
        parts,
        diffusion_sites=tuple(sites),
        other_sites=others,
        target="the posterior of the model under exp(-E(., t_min))" if sites else "the posterior",
        log_normalizer_error=normalizer_error(sites),
    )


def _as_jax(leaf):
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _stand_in(site, deviations: float = 0.0):
    """Stand-in for a diffusion site while the model is traced: no reverse process is run."""
    if not _is_diffusion(site):
        return None
    energy = _unwrapped(site["fn"]).energy
    mean, variance = energy.moments(jnp.asarray(energy.t_min))
    return jnp.broadcast_to(mean + deviations * jnp.sqrt(variance), _shape(site))


def _first_trace(probe: _ModelBridge) -> dict[str, dict]:
    """Trace the model with other latent sites drawn from their priors; name one without a sampler."""
    met = []

    def values(site):
        met.append(site["name"])
        return _stand_in(site)

    try:
        return probe.trace(values, jax.random.key(0))
    except NotImplementedError as error:
        raise ValueError(
            f"latent site `{met[-1]}` has no sampler, for instance an improper prior. Particles start "
            "from the prior: give the site a proper one."
        ) from error


def _diffusion_site(name: str, site: dict) -> DiffusionSite:
    energy, shape = _unwrapped(site["fn"]).energy, _shape(site)
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"site `{name}` has the score-only prior {type(energy).__name__}: particles cannot be "
            "weighed without a density. Train or distil an energy."
        )
    return DiffusionSite(energy, tuple(shape[: len(shape) - len(energy.shape)]))


def _refuse_varying_energies(probe: _ModelBridge, sites: dict[str, DiffusionSite]) -> None:
    again = probe.trace(lambda site: _stand_in(site, 1.0), jax.random.key(1))
    for name, site in sites.items():
        other = _unwrapped(again[name]["fn"]).energy
        if not eqx.tree_equal(site.energy, other):
            raise ValueError(
                f"the energy of site `{name}` depends on other latent sites, or is built anew from new "
                "functions whenever the model runs; its normaliser would be part of the posterior and "
                "is not known. Use one fixed energy a site, made outside the model."
            )


def _is_other(name: str, site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not _is_diffusion(site)


def _check_site(name: str, site: dict, trace: dict[str, dict]) -> None:
    if site["type"] == "plate":
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"plate `{name}` subsamples {subsample_size} of {size}: its likelihood is random, so "
                "weights would be wrong. Use the whole plate."
            )
    if site["type"] == "sample" and site["is_observed"]:
        _check_observed(name, site)
    elif site["type"] == "sample":
        _check_latent(name, site, trace)


def _check_latent(name: str, site: dict, trace: dict[str, dict]) -> None:
    if site["fn"].is_discrete:
        raise ValueError(
            f"latent site `{name}` is discrete ({type(site['fn']).__name__}); the moves need "
            "continuous sites. Sum it out, for instance with `dist.MixtureGeneral`, or observe it."
        )
    # NumPyro splits `y` with an `obs_mask` into `y_observed` and `y_unobserved`.
    partner = trace.get(name.removesuffix("_unobserved") + "_observed", {})
    if not partner.get("is_observed") and not _counts(site["fn"], site["fn"].shape()).all():
        raise ValueError(
            f"the latent site `{name}` is masked, which would leave it without a prior; mask the "
            "observed sites instead."
        )
    if site["scale"] is not None:
        raise ValueError(
            f"the latent site `{name}` is under a `scale` handler: particles start from its prior, not "
            "from a power of it. Scale the observed sites only; for a diffusion prior raised to a "
            "power write `power * energy`."
        )


def _check_compiles(parts: _ModelBridge) -> None:
    """Trace the model with abstract arguments, as `jit` will."""

    def density(parts, key):
        z = parts.sample_base(key)
        return parts.rest(z, parts.see(z, jnp.asarray(1.0)).x_hat)

    try:
        eqx.filter_eval_shape(density, parts, jax.random.key(0))
    except _NEEDS_VALUES as error:
        raise ValueError(
            "the model needs the values of its array arguments, not only their shapes, so it cannot be "
            "compiled for all data at once: this comes from an `if`, a NumPy function or an index made "
            "from an argument. Pass sizes and switches as Python numbers, and use `jax.numpy`."
        ) from error


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _check_observed(name: str, site: dict) -> None:
    value = np.asarray(site["value"])
    if site["value"] is None or value.dtype == object or value.size == 0:
        return  # a factor
    expected = _shape(site)
    try:
        fits = np.broadcast_shapes(value.shape, expected) in (value.shape, expected)
    except ValueError:
        fits = False
    if (
        not fits
    ):  # shapes that stretch each other would be summed over more terms than there are data
        raise ValueError(
            f"observed site `{name}` expects values of shape {expected}; got {value.shape}. Reshape the "
            "data, or what its distribution is made of."
        )
    bad = ~np.isfinite(value.astype(float))
    bad = bad & _counts(site["fn"], bad.shape)
    if bad.any():
        raise ValueError(
            f"observed site `{name}` has {int(bad.sum())} values that are not finite, the first at "
            f"index {tuple(int(i) for i in np.argwhere(bad)[0])}. Remove them, or mark them missing: "
            "`numpyro.sample(name, fn.mask(is_observed), obs=jnp.where(is_observed, y, 0))`."
        )
