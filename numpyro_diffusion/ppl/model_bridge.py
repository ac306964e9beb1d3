"""The bridge over one NumPyro model and one data set."""

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
from ..bridge import (
    DiffusionSite,
    Doubts,
    Edge,
    Rest,
    Seen,
    Tempering,
    curvature,
    doubtful,
    krylov,
    open_share,
    with_finite_gradients,
)
from ..twists import AbstractTwist
from .dependence import arrays_of, refuse_impossible, varying_leaves, with_arrays
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

__all__ = ["LiveModel", "ModelBridge", "SettledModel"]


class LiveModel(eqx.Module):
    """A NumPyro model at one data set, run anew for every answer."""

    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    diffusion: tuple[str, ...] = eqx.field(static=True, default=())
    others: tuple[str, ...] = eqx.field(static=True, default=())

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
            observed = settle(lambda d, z, x: with_data(d).observed(z, x), data, z, x_hat)
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
            drivers,
            settle(chosen, data, z, x_hat) if varying else None,
        )

    @staticmethod
    def _arguments(structure, static, data):
        args, kwargs = eqx.combine(jax.tree.unflatten(structure, data), static)
        return {"args": args, "kwargs": kwargs}


class SettledModel(eqx.Module):
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
    laws: Settled | str
    varying: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    drivers: tuple[str, ...] = eqx.field(static=True, default=())
    energies: Settled | None = None

    def sites_at(self, sites: dict[str, DiffusionSite], z: Position) -> dict[str, DiffusionSite]:
        """The diffusion sites with the energies that the other sites give them."""
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

    def observed(self, z, x):
        if isinstance(self.laws, str):
            raise ValueError(self.laws)
        return self.laws(self.data, self._others(z), self._diffusion(x))

    def _others(self, z):
        return {name: z[name] for name in self.others}

    def _diffusion(self, x):
        return {name: x[name] for name in self.diffusion}


class ModelBridge(eqx.Module):
    """The functions of a bridge over one model and one data set; data are leaves of the pytree.

    Attributes:
        edges: Observed sites and factors whose density is 0 somewhere; `None` for all that could be.
        log_peaks: Largest log densities found of the sites and factors that could be.
    """

    functions: LiveModel | SettledModel
    sites: dict[str, DiffusionSite]
    twist: AbstractTwist
    tempering: Tempering
    typical: Position = eqx.field(default_factory=dict)
    edges: tuple[str, ...] | None = eqx.field(static=True, default=None)
    log_peaks: dict[str, Array] = eqx.field(default_factory=dict)

    @property
    def others(self) -> tuple[str, ...]:
        return self.functions.others

    def at(self, z) -> dict[str, DiffusionSite]:
        """The diffusion sites under the energies that the other sites give them."""
        return self.functions.sites_at(self.sites, z) if self.drivers else self.sites  # type: ignore

    @property
    def drivers(self) -> tuple[str, ...]:
        """Other sites on which energies depend."""
        return getattr(self.functions, "drivers", ())

    def sample_base(self, key):
        return self._sampled(lambda site, key: site.sample_base(key), jnp.asarray(1.0), key)

    def sample_prior(self, key):
        return self._sampled(lambda site, key: site.sample_prior(key), jnp.asarray(0.0), key)

    def _sampled(self, draw, clock, key):
        key_sites, key_model = jax.random.split(key)
        keys = jax.random.split(key_sites, max(len(self.sites), 1))

        def from_sites(sites):
            u = {n: draw(s, k) for k, (n, s) in zip(keys, sites.items(), strict=False)}
            return self.beside(u, clock, key_model, sites)

        z = from_sites(self.sites)
        # Sites on which energies depend do not look at the diffusion sites: the same key draws them again.
        return from_sites(self.at(z)) if self.drivers else z

    def beside(self, u, clock, key, sites):
        """The diffusion sites together with draws of the others from their prior."""
        if not self.others:
            return u
        return {**u, **self.draw_others(self._seen(sites, u, clock).x_hat, key)}

    def draw_others(self, x, key):
        return self.functions.draw_others(x, key)

    def towards_the_data(self):
        """The same, settled, with its tempering and typical values of the other sites found."""
        shapes = jax.eval_shape(lambda: self._diffusion_shapes())
        parts = dataclasses.replace(self, functions=self.functions.settled(*shapes))  # type: ignore
        if parts.drivers:  # what needs one energy, such as scales, has that of typical values
            sites, share = _typical_sites(parts)
            refuse_impossible(parts.drivers, share)
            parts = dataclasses.replace(parts, sites=sites)
        typical, direction, found = _towards_the_data(parts)
        if not self.twist.takes_gradients:
            tempering = Tempering.without_gradients(self.sites)
        else:
            tempering = Tempering(self.sites, direction)
        return dataclasses.replace(
            parts,
            typical=typical,
            tempering=tempering,
            edges=found.names,
            log_peaks=found.log_peaks,
        )

    def _diffusion_shapes(self):
        """The diffusion sites, and what the rest of the model sees of them."""
        keys = jax.random.split(jax.random.key(0), max(len(self.sites), 1))
        u = {n: s.sample_base(k) for k, (n, s) in zip(keys, self.sites.items(), strict=False)}
        x_hat = Seen.of(
            {n: s.see(self.twist, u[n], jnp.asarray(0.5)) for n, s in self.sites.items()}
        ).x_hat
        wide = lambda a, b: a.astype(jnp.result_type(a, b))
        return u, {n: wide(x_hat[n], u[n]) for n in u}

    def log_base(self, z):
        return sum((s.log_base(z[n]) for n, s in self.at(z).items()), jnp.zeros(()))

    def see(self, z, clock):
        return self._seen(self.at(z), z, clock)

    def _seen(self, sites, z, clock):
        seen = Seen.of({n: s.see(self.twist, z[n], clock) for n, s in sites.items()})
        unready = bool(self.others) and not self.typical  # while the bridge is made
        if unready or not self.twist.num_directions:
            return seen
        log_likelihood = lambda x: self.rest(self.typical, x).log_likelihood
        gradient = jax.grad(log_likelihood)
        bend = lambda x: curvature(lambda x: self.observed(self.typical, x), log_likelihood, x)
        u = {name: z[name] for name in sites}
        roots = krylov(sites, self.twist.num_directions, gradient, bend, u, seen.x_hat, clock)
        return seen._replace(roots=roots)

    def observed(self, z, x):
        return self.functions.observed(z, x)

    def rest(self, z, x_hat):
        if self.edges:
            z, x_hat = with_finite_gradients(z), with_finite_gradients(x_hat)
        rest = self.functions.rest(z, x_hat)
        return rest if self.edges is None else rest.with_edges(self.edges, self.log_peaks)

    def carry(self, z, clock, next_clock):
        carried, log_det = dict(z), jnp.zeros(())
        for name, site in self.at(z).items():
            carried[name], one = site.carry(z[name], clock, next_clock)
            log_det = log_det + one
        return carried, log_det

    def constrain(self, z):
        return self.functions.constrain(z)

    def times(self, clock):
        return {n: s.time(clock) for n, s in self.sites.items()}

    def noise(self, clock):
        return {n: s.noise(clock) for n, s in self.sites.items()}

    def open_share(self, clock):
        return open_share(self.sites, clock)

    def exponent(self, z, clock):
        return self.tempering(self.rest, z, clock)


@brief_jit
def _typical_sites(parts: ModelBridge) -> tuple[dict[str, DiffusionSite], Array]:
    """The diffusion sites under the energies of the median of a few draws of the others.

    And the share of the draws under which a site has no density at its centre.
    """
    x = {name: site.centre for name, site in parts.sites.items()}
    keys = jax.random.split(lean(jax.random.key(0)), 64)
    draws = jax.vmap(lambda key: parts.draw_others(x, key))(keys)

    def impossible(z):
        def value(site, u):
            u = u.reshape(-1, *site.energy.shape)[0]
            return site.energy.log_density(u, jnp.asarray(site.energy.t_min, u.dtype))

        return jnp.any(jnp.stack([jnp.isnan(value(s, x[n])) for n, s in parts.at(z).items()]))

    typical = jax.tree.map(lambda leaf: jnp.median(leaf, 0), draws)
    return parts.at(typical), jnp.mean(jax.vmap(impossible)(draws))


@brief_jit
def _towards_the_data(parts: ModelBridge):
    """Typical values of the other sites, the direction of which the data say most, and which are edges."""
    others = {}
    if parts.others:  # a few draws beside the prior mean of the diffusion sites
        x = {name: site.centre for name, site in parts.sites.items()}
        keys = jax.random.split(lean(jax.random.key(0)), 8)
        others = jax.vmap(lambda key: parts.draw_others(x, key))(keys)
    typical = jax.tree.map(lambda leaf: jnp.median(leaf, 0), others)
    if not parts.sites:
        return typical, {}, Doubts({}, {})
    found = doubtful(lambda x: parts.rest(typical, x).edges, parts.sites)
    if not parts.twist.takes_gradients:
        return typical, {}, found
    direction = Tempering.towards_the_data(parts.rest, parts.sites, others).direction
    return typical, direction, found
