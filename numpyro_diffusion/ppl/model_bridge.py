"""The functions of a bridge over one NumPyro model and one data set."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to

from .._typing import Array, Position
from ..bridge import DiffusionSite, Rest, Seen, Tempering, curvature, krylov
from ..twists import AbstractTwist
from .observed import observed_laws
from .sites import log_density, log_peak_and_number, taken_apart, unmasked

__all__ = ["ModelBridge"]


class ModelBridge(eqx.Module):
    """The functions of a bridge over one model and one data set; data are leaves of the pytree."""

    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    sites: dict[str, DiffusionSite]
    twist: AbstractTwist
    others: tuple[str, ...] = eqx.field(static=True)
    tempering: Tempering
    typical: Position = eqx.field(default_factory=dict)

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
        return self.beside(u, jnp.asarray(1.0), key_model)

    def sample_prior(self, key):
        key_sites, key_model = jax.random.split(key)
        keys = jax.random.split(key_sites, max(len(self.sites), 1))
        u = {n: s.sample_prior(k) for k, (n, s) in zip(keys, self.sites.items(), strict=False)}
        return self.beside(u, jnp.asarray(0.0), key_model)

    def beside(self, u, clock, key):
        """The diffusion sites together with draws of the others from their prior."""
        if not self.others:
            return u
        return {**u, **self.draw_others(self.see(u, clock).x_hat, key)}

    def draw_others(self, x, key):
        """The other sites from their prior, unconstrained, given the diffusion sites."""
        trace = self.trace(lambda site: x.get(site["name"]), key)
        sites = {name: trace[name] for name in self.others}
        return {n: biject_to(s["fn"].support)._inverse(s["value"]) for n, s in sites.items()}

    def towards_the_data(self):
        """The same with its tempering and typical values of the other sites found."""
        others = _typical_others(self) if self.others else {}
        typical = jax.tree.map(lambda leaf: jnp.median(leaf, 0), others)
        parts = dataclasses.replace(self, typical=typical)
        if not self.twist.takes_gradients:
            return dataclasses.replace(parts, tempering=Tempering.without_gradients(self.sites))
        tempering = Tempering.towards_the_data(self.rest, self.sites, others)
        return dataclasses.replace(parts, tempering=tempering)

    def log_base(self, z):
        return sum((s.log_base(z[n]) for n, s in self.sites.items()), jnp.zeros(()))

    def see(self, z, clock):
        seen = Seen.of({n: s.see(self.twist, z[n], clock) for n, s in self.sites.items()})
        unready = bool(self.others) and not self.typical  # while the bridge is made
        if unready or not self.twist.num_directions:
            return seen
        log_likelihood = lambda x: self.rest(self.typical, x).log_likelihood
        gradient = jax.grad(log_likelihood)
        bend = lambda x: curvature(lambda x: self.observed(self.typical, x), log_likelihood, x)
        u = {name: z[name] for name in self.sites}
        roots = krylov(self.sites, self.twist.num_directions, gradient, bend, u, seen.x_hat, clock)
        return seen._replace(roots=roots)

    def observed(self, z, x):
        return observed_laws(self.trace(self.values(z, x)))

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
                term = log_density(site, site["fn"])
                log_likelihood = log_likelihood + term
                peak, number = log_peak_and_number(site)
                log_peak, num_data = log_peak + peak, num_data + number
            else:
                # Without the mask of `obs_mask`: where a datum is seen the draw beside it is free, and
                # keeps its own normalised law, which changes neither evidence nor posterior.
                term = log_density(site, unmasked(site["fn"]))
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

    def noise(self, clock):
        return {n: s.noise(clock) for n, s in self.sites.items()}

    def exponent(self, z, clock):
        return self.tempering(self.rest, z, clock)


@eqx.filter_jit
def _typical_others(parts: ModelBridge):
    """A few draws of the other sites beside the prior mean of the diffusion sites."""
    x = {name: site.centre for name, site in parts.sites.items()}
    keys = jax.random.split(jax.random.key(0), 8)
    return jax.vmap(lambda key: parts.draw_others(x, key))(keys)
