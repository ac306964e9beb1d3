"""A NumPyro model and one data set, as a bridge asks them: run anew, or traced to programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to

from .._arguments import is_data
from .._prng import lean, threefry
from .._staging import Settled, brief_jit, settle
from .._typing import Array, Position
from ..bridge import AbstractModel, Edge, Rest
from .dependence import arrays_of, varying_leaves, with_arrays
from .observed import observed_laws
from .sites import (
    log_densities,
    log_density,
    log_peaks_and_numbers,
    never_zero,
    taken_apart,
    unmasked,
    unwrapped,
)
from .tracing import tracing

__all__ = ["LiveModel", "SettledModel", "typical_sites"]


@brief_jit
def typical_sites(model: "SettledModel", sites: dict[str, Any]) -> tuple[dict[str, Any], Array]:
    """The diffusion sites under the energies of the median of a few draws of the others.

    And the share of the draws under which a site has no density at its centre.
    """
    x = {name: site.centre for name, site in sites.items()}
    keys = jax.random.split(lean(jax.random.key(0)), 64)
    draws = jax.vmap(lambda key: model.draw_others(x, key))(keys)

    def impossible(z):
        def value(site, u):
            u = u.reshape(-1, *site.energy.shape)[0]
            return site.energy.log_density(u, jnp.asarray(site.energy.t_min, u.dtype))

        at = model.sites_at(sites, z)
        return jnp.any(jnp.stack([jnp.isnan(value(s, x[n])) for n, s in at.items()]))

    typical = jax.tree.map(lambda leaf: jnp.median(leaf, 0), draws)
    return model.sites_at(sites, typical), jnp.mean(jax.vmap(impossible)(draws))


class _NumPyroModel(AbstractModel):
    def target(self, prior):
        return f"the posterior of the model under {prior}" if self.diffusion else "the posterior"


class LiveModel(_NumPyroModel):
    """A NumPyro model at one data set, run anew for every answer."""

    diffusion: tuple[str, ...] = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)
    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]

    def trace(self, values: Callable, key: Array | None = None) -> dict[str, dict]:
        """Trace of the model with latent sites given by `values(site)`; `None` lets them be drawn."""
        model = handlers.substitute(taken_apart(self.model, drawn=False), substitute_fn=values)
        if key is not None:
            model = handlers.seed(model, key)
        with tracing:
            return handlers.trace(model).get_trace(*self.args, **self.kwargs)

    def draw_others(self, x, key):
        """The other sites from their prior, unconstrained, given the diffusion sites."""
        trace = self.trace(lambda site: x.get(site["name"]), key)
        sites = {name: trace[name] for name in self.others}
        return {n: biject_to(s["fn"].support)._inverse(s["value"]) for n, s in sites.items()}

    def laws(self, z):
        return lambda x: observed_laws(self.trace(self.values(z, x)))

    def values(self, z, x_hat) -> Callable:
        """Values that `substitute` puts at each latent site; supports may depend on other sites."""

        def value(site):
            name = site["name"]
            if name in x_hat:
                return x_hat[name]
            if site["type"] == "sample" and name in z and not site["is_observed"]:
                return biject_to(site["fn"].support)(z[name])
            return None

        return value

    def rest(self, z, x_hat):
        log_prior, log_peak, num_data = (jnp.zeros(()),) * 3
        smooth, edges, sites = [], {}, {}
        for name, site in self.trace(self.values(z, x_hat)).items():
            if site["type"] != "sample" or name in self.diffusion:
                continue
            if site["is_observed"]:
                terms = log_densities(site, site["fn"])
                peaks, numbers = log_peaks_and_numbers(site)
                if never_zero(site["fn"]):
                    smooth.append(jnp.sum(terms))
                    log_peak = log_peak + jnp.sum(peaks)
                    num_data = num_data + jnp.sum(numbers)
                else:
                    edges[name] = Edge(terms, peaks, numbers)
                term = jnp.sum(terms)
            else:
                # Without the mask of `obs_mask`: where a datum is seen the draw beside it is free, and
                # keeps its own normalised law, which changes neither evidence nor posterior.
                term = log_density(site, unmasked(site["fn"]))
                transform = biject_to(site["fn"].support)
                log_det = transform.log_abs_det_jacobian(z[name], site["value"])
                term = term + jnp.sum(log_det)
                log_prior = log_prior + term
            sites[name] = term
        total = sum(smooth, jnp.zeros(())) if smooth else None
        return Rest(log_prior, total, log_peak, num_data, edges, sites)

    def constrain(self, z):
        trace = self.trace(self.values(z, {n: z[n] for n in self.diffusion}))
        keep = (*self.diffusion, *self.others)
        return {
            name: site["value"]
            for name, site in trace.items()
            if name in keep or site["type"] == "deterministic"
        }

    def energy_leaves(self, z, x) -> dict[str, list[Array]]:
        """The arrays of the energy of each diffusion site, in the order of the tree."""
        trace = self.trace(self.values(z, x))
        return {name: arrays_of(unwrapped(trace[name]["fn"]).energy) for name in self.diffusion}

    def settled(self, u: Position, x_hat: Position) -> "SettledModel":
        """The programs of this model.

        Args:
            u: Diffusion sites, or their shapes.
            x_hat: What the model sees of them, or its shapes.
        """
        dynamic, static = eqx.partition((self.args, self.kwargs), is_data)
        data = jax.tree.leaves(dynamic)
        with_data = lambda data: dataclasses.replace(
            self, **self._arguments(jax.tree.structure(dynamic), static, data)
        )
        draws = lambda data, x, key: with_data(data).draw_others(x, key)
        draw = settle(draws, data, x_hat, lean(jax.random.key(0)))
        z = jax.eval_shape(draws, data, x_hat, jax.random.key(0))
        leaves = lambda data, z, x: with_data(data).energy_leaves(z, x)
        varying, drivers = varying_leaves(leaves, draws, data, z, x_hat)
        chosen = lambda d, z, x: [leaves(d, z, x)[name][i] for name, i in varying]
        observed: Settled | str
        try:
            observed = settle(lambda d, z, x: with_data(d).laws(z)(x), data, z, x_hat)
        except (
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # a law that is not known; only some twists ask for it
            observed = str(error)
        return SettledModel(
            self.diffusion,
            self.others,
            data,
            draw,
            settle(lambda d, z, x: with_data(d).rest(z, x), data, z, x_hat),
            settle(lambda d, z: with_data(d).constrain(z), data, {**u, **z}),
            observed,
            varying,
            settle(chosen, data, z, x_hat) if varying else None,
            drivers,
        )

    @staticmethod
    def _arguments(structure, static, data):
        args, kwargs = eqx.combine(jax.tree.unflatten(structure, data), static)
        return {"args": args, "kwargs": kwargs}


class SettledModel(_NumPyroModel):
    """The programs of a NumPyro model, and one data set.

    Equal programs compile once, whatever function they came from; what the model read when it was traced is
    data or part of the program.
    """

    diffusion: tuple[str, ...] = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)
    data: list[Array]
    draw: Settled
    density: Settled
    values: Settled
    observed: Settled | str
    varying: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    energies: Settled | None = None
    drivers: tuple[str, ...] = eqx.field(static=True, default=())  # pyright: ignore
    choices: tuple[str, ...] = eqx.field(static=True, default=())  # pyright: ignore

    def sites_at(self, sites, z):
        assert self.energies is not None
        x = {name: site.centre for name, site in sites.items()}  # no energy depends on it
        new = dict(zip(self.varying, self.energies(self.data, self._others(z), x), strict=True))
        of = lambda name: {i: leaf for (n, i), leaf in new.items() if n == name}
        return {
            n: dataclasses.replace(s, energy=with_arrays(s.energy, of(n))) for n, s in sites.items()
        }

    def draw_others(self, x, key):
        return self.draw(self.data, self._diffusion(x), threefry(key))

    def rest(self, z, x_hat):
        return self.density(self.data, self._others(z), self._diffusion(x_hat))

    def constrain(self, z):
        return self.values(self.data, {**self._diffusion(z), **self._others(z)})

    def laws(self, z):
        if isinstance(self.observed, str):
            raise ValueError(self.observed)
        observed = self.observed
        return lambda x: observed(self.data, self._others(z), self._diffusion(x))

    def _others(self, z):
        return {name: z[name] for name in self.others}

    def _diffusion(self, x):
        return {name: x[name] for name in self.diffusion}
