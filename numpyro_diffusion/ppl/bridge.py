r"""From a NumPyro model to the bridge of densities that ends in its posterior.

The model is traced once to learn its sites. Sites with a `DiffusionPrior` are followed through the noise
levels, all other latent sites live in unconstrained space, observed sites and factors make up the
likelihood. The model is otherwise run as it is: only through handlers, and only through public API.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to

from .._typing import Array
from ..bridge import Bridge, DiffusionSite, Rest, Seen, exponent, normalizer_error
from ..energies import AbstractEnergy
from ..twists import AbstractTwist, Tweedie
from .distributions import DiffusionPrior

__all__ = ["from_model"]


def _unwrapped(fn: Any) -> Any:
    """The distribution under plates, `expand` and `to_event`."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def _is_diffusion(site: dict) -> bool:
    latent = site["type"] == "sample" and not site["is_observed"]
    return latent and isinstance(_unwrapped(site["fn"]), DiffusionPrior)


class _ModelBridge(eqx.Module):
    """The functions of a bridge over one model and one data set; data are leaves of the pytree."""

    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    sites: dict[str, DiffusionSite]
    twist: AbstractTwist
    others: tuple[str, ...] = eqx.field(static=True)

    def trace(self, values: Callable, key: Array | None = None) -> dict[str, dict]:
        """Trace of the model with latent sites given by `values(site)`; `None` lets them be drawn."""
        model = handlers.substitute(self.model, substitute_fn=values)
        if key is not None:
            model = handlers.seed(model, key)
        return handlers.trace(model).get_trace(*self.args, **self.kwargs)

    def sample_base(self, key):
        key_sites, key_model = jax.random.split(key)
        keys = jax.random.split(key_sites, max(len(self.sites), 1))
        u = {n: s.sample_base(k) for k, (n, s) in zip(keys, self.sites.items(), strict=False)}
        if not self.others:
            return u
        x_hat = self.see(u, jnp.asarray(1.0)).x_hat
        trace = self.trace(lambda site: x_hat.get(site["name"]), key_model)
        z = dict(u)
        for name in self.others:
            site = trace[name]
            z[name] = biject_to(site["fn"].support)._inverse(site["value"])
        return z

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
        log_prior, log_likelihood, sites = jnp.zeros(()), jnp.zeros(()), {}
        for name, site in self.trace(self.values(z, x_hat)).items():
            if site["type"] != "sample" or name in self.sites:
                continue
            term = _site_log_density(site)
            if site["is_observed"]:
                log_likelihood = log_likelihood + term
            else:
                transform = biject_to(site["fn"].support)
                log_det = transform.log_abs_det_jacobian(z[name], site["value"])
                term = term + jnp.sum(log_det)
                log_prior = log_prior + term
            sites[name] = term
        return Rest(log_prior, log_likelihood, sites)

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
        return exponent(self.rest, z, self.sites, clock)


def _site_log_density(site: dict) -> Array:
    """Summed log density of a site, with its scale; masks sit inside `fn`."""
    if site["intermediates"]:
        values = site["fn"].log_prob(site["value"], site["intermediates"])
    else:
        values = site["fn"].log_prob(site["value"])
    if site["scale"] is not None:
        values = site["scale"] * values
    return jnp.sum(values)


def from_model(
    model: Callable, *args: Any, twist: AbstractTwist | None = None, **kwargs: Any
) -> Bridge:
    r"""The bridge from noise to the posterior of a NumPyro model.

    At clock 0 and power 1 its density is the exponential of minus the model's own
    `potential_energy`, to rounding. A model without any `DiffusionPrior` works: its bridge is plain
    likelihood tempering.

    Args:
        model: A NumPyro model.
        *args: Its arguments, data included. Arrays may change later without recompilation.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: For a discrete or non-finite site, a subsampled plate, a scaled or masked
            diffusion site, a prior whose energy depends on other sites, or no latent site at all.
        TypeError: For a diffusion site whose prior is a score without energy.
    """
    args, kwargs = jax.tree.map(_as_jax, (args, kwargs))
    probe = _ModelBridge(model, args, kwargs, {}, Tweedie(), ())
    trace = _first_trace(probe)
    sites = {n: _diffusion_site(n, site) for n, site in trace.items() if _is_diffusion(site)}
    if sites:
        _refuse_varying_energies(probe, sites)
    others = tuple(n for n, site in trace.items() if _is_other(n, site))
    if not sites and not others:
        raise ValueError("the model has no latent site, so there is nothing to infer.")
    for name, site in trace.items():
        _check_site(name, site)
    parts = _ModelBridge(model, args, kwargs, sites, Tweedie() if twist is None else twist, others)
    return Bridge(
        sample_base=parts.sample_base,
        log_base=parts.log_base,
        see=parts.see,
        rest=parts.rest,
        carry=parts.carry,
        constrain=parts.constrain,
        times=parts.times,
        exponent=parts.exponent,
        diffusion_sites=tuple(sites),
        other_sites=others,
        target="the posterior of the model under exp(-E(., t_min))" if sites else "the posterior",
        log_normalizer_error=normalizer_error(sites),
    )


def _as_jax(leaf):
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _prior_mean(site):
    """Stand-in for a diffusion site while the model is traced: no reverse process is run."""
    if not _is_diffusion(site):
        return None
    energy = _unwrapped(site["fn"]).energy
    mean, _ = energy.moments(jnp.asarray(energy.t_min))
    return jnp.broadcast_to(mean, site["fn"].shape())


def _first_trace(probe: _ModelBridge) -> dict[str, dict]:
    """Trace the model with other latent sites drawn from their priors; name one without a sampler."""
    met = []

    def values(site):
        met.append(site["name"])
        return _prior_mean(site)

    try:
        return probe.trace(values, jax.random.key(0))
    except NotImplementedError as error:
        raise ValueError(
            f"latent site `{met[-1]}` has no sampler, for instance an improper prior. Particles start "
            "from the prior: give the site a proper one."
        ) from error


def _diffusion_site(name: str, site: dict) -> DiffusionSite:
    energy, shape = _unwrapped(site["fn"]).energy, site["fn"].shape()
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"site `{name}` has the score-only prior {type(energy).__name__}: particles cannot be "
            "weighed without a density. Train or distil an energy."
        )
    if site["scale"] is not None:
        raise ValueError(
            f"the diffusion site `{name}` is under a `scale` handler; write `power * energy` for a "
            "prior raised to a power."
        )
    return DiffusionSite(energy, tuple(shape[: len(shape) - len(energy.shape)]))


def _refuse_varying_energies(probe: _ModelBridge, sites: dict[str, DiffusionSite]) -> None:
    again = probe.trace(_prior_mean, jax.random.key(1))
    for name, site in sites.items():
        other = _unwrapped(again[name]["fn"]).energy
        if not eqx.tree_equal(site.energy, other):
            raise ValueError(
                f"the energy of site `{name}` depends on other latent sites; its normaliser would be "
                "part of the posterior and is not known. Use one fixed energy a site."
            )


def _is_other(name: str, site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not _is_diffusion(site)


def _check_site(name: str, site: dict) -> None:
    if site["type"] == "plate":
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"plate `{name}` subsamples {subsample_size} of {size}: its likelihood is random, so "
                "weights would be wrong. Use the whole plate."
            )
    if site["type"] != "sample":
        return
    if site["is_observed"]:
        _check_observed(name, site)
    elif isinstance(site["fn"], dist.MaskedDistribution) and isinstance(
        _unwrapped(site["fn"].base_dist), DiffusionPrior
    ):
        raise ValueError(
            f"the diffusion site `{name}` is masked, which would leave it without a prior; mask the "
            "observed sites instead."
        )
    elif not _is_diffusion(site) and site["fn"].is_discrete:
        raise ValueError(
            f"latent site `{name}` is discrete ({type(site['fn']).__name__}); the moves need "
            "continuous sites. Sum it out, for instance with `dist.MixtureGeneral`, or observe it."
        )


def _check_observed(name: str, site: dict) -> None:
    value, fn = np.asarray(site["value"]), site["fn"]
    if site["value"] is None or value.dtype == object or value.size == 0:
        return  # a factor
    bad = ~np.isfinite(value.astype(float))
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.MaskedDistribution):
        mask = np.asarray(fn._mask)
        bad = bad & np.broadcast_to(
            mask.reshape(mask.shape + (1,) * (bad.ndim - mask.ndim)), bad.shape
        )
    if bad.any():
        raise ValueError(
            f"observed site `{name}` has {int(bad.sum())} values that are not finite, the first at "
            f"index {tuple(int(i) for i in np.argwhere(bad)[0])}. Remove them, or mark them missing: "
            "`numpyro.sample(name, fn.mask(is_observed), obs=jnp.where(is_observed, y, 0))`."
        )
