"""A NumPyro model and one data set, as a bridge asks them: run anew, or traced to programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to

from .. import _faq
from .._arguments import is_data
from .._prng import lean
from .._staging import Settled, brief_jit, settle
from .._typing import Array, Position
from ..bridge import Bridge, with_finite_gradients
from .choice_sites import taken_apart
from .dependence import arrays_of, varying_leaves
from .enumeration import enumeration
from .observed import observed_laws
from .runs import NUM_PLACES, Key
from .settled_model import AbstractNumPyroModel, SettledModel
from .sites import log_densities, log_peaks_and_numbers, never_zero, unmasked, unwrapped
from .summation import labels_given, rest_of, summed
from .tracing import tracing

__all__ = ["LiveModel", "chosen_sites", "typical_sites"]


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


def chosen_sites(bridge: Bridge) -> tuple[str, ...]:
    """Choices on which an energy depends, which are made of uniform variables."""
    return tuple(name.removesuffix("_base") for name in bridge.choices)


class LiveModel(AbstractNumPyroModel):
    """A NumPyro model at one data set, run anew for every answer, at given values of its discrete sites."""

    diffusion: tuple[str, ...] = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)
    discrete: tuple[str, ...] = eqx.field(static=True)
    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    chosen: tuple[str, ...] = eqx.field(
        static=True, default=()
    )  # choices made of uniform variables

    def trace(self, values: Callable, key: Array | None = None) -> dict[str, dict]:
        """Trace of the model with latent sites given by `values(site)`; `None` lets them be drawn."""
        model = handlers.substitute(
            taken_apart(self.model, self.chosen, drawn=False), substitute_fn=values
        )
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
        return rest_of(self.terms(z, x_hat))

    def terms(self, z: Position, given: Position) -> dict[Key, Array]:
        """Log densities of all entries of sites that are no diffusion sites, by kind and site.

        Args:
            z: Other sites, unconstrained.
            given: What the model sees of diffusion sites, and values of discrete sites.
        """
        terms: dict[Key, Array] = {}
        for name, site in self.trace(self.values(z, given)).items():
            if site["type"] != "sample" or name in self.diffusion:
                continue
            if site["is_observed"]:
                kind = "smooth" if never_zero(site["fn"]) else "edge"
                terms[kind, name] = log_densities(site, site["fn"])
                terms["peak", name], terms["number", name] = log_peaks_and_numbers(site)
                continue
            # Without the mask of `obs_mask`: where a datum is seen the draw beside it is free, and
            # keeps its own normalised law, which changes neither evidence nor posterior.
            terms["prior", name] = log_densities(site, unmasked(site["fn"]))
            if name in z:
                transform = biject_to(site["fn"].support)
                terms["volume", name] = transform.log_abs_det_jacobian(z[name], site["value"])
        return terms

    def discrete_given(self, z, key):
        raise NotImplementedError(
            f"discrete sites are summed out by the programs of a model alone. {_faq.discrete_site}"
        )

    def constrain(self, z):
        given = (*self.diffusion, *self.discrete)
        trace = self.trace(self.values(z, {n: z[n] for n in given}))
        keep = (*given, *self.others)
        return {
            name: site["value"]
            for name, site in trace.items()
            if name in keep or site["type"] == "deterministic"
        }

    def energy_leaves(self, z, x) -> dict[str, list[Array]]:
        """The arrays of the energy of each diffusion site, in the order of the tree."""
        trace = self.trace(self.values(z, x))
        return {name: arrays_of(unwrapped(trace[name]["fn"]).energy) for name in self.diffusion}

    def settled(
        self,
        u: Position,
        x_hat: Position,
        discrete: dict[str, tuple[np.ndarray, tuple[int, ...]]],
        places: Position,
    ) -> "SettledModel":
        """The programs of this model.

        Args:
            u: Diffusion sites, or their shapes.
            x_hat: What the model sees of them, or its shapes.
            discrete: By discrete site the values of an entry, and the shape.
            places: Values of the diffusion sites at which to look what depends on which label.
        """
        dynamic, static = eqx.partition((self.args, self.kwargs), is_data)
        data = jax.tree.leaves(dynamic)
        with_data = lambda data: dataclasses.replace(
            self, **self._arguments(jax.tree.structure(dynamic), static, data)
        )
        draws = lambda data, x, key: with_data(data).draw_others(x, key)
        draw = settle(draws, data, x_hat, lean(jax.random.key(0)))
        z = jax.eval_shape(draws, data, x_hat, jax.random.key(0))
        labels = {n: jnp.zeros(shape, values.dtype) for n, (values, shape) in discrete.items()}
        leaves = lambda data, z, x: with_data(data).energy_leaves(z, {**x, **labels})
        varying, drivers = varying_leaves(leaves, draws, data, z, x_hat)
        chosen = lambda d, z, x: [leaves(d, z, x)[name][i] for name, i in varying]
        density, given = lambda d, z, x: with_data(d).rest(z, x), None
        observed: Settled | str
        if discrete:
            run = lambda d, z, x, labels: with_data(d).terms(z, {**x, **labels})
            terms = settle(run, data, z, x_hat, labels)
            found = enumeration(discrete, terms, data, lambda: _points(draw, data, places))
            one = lambda d, z, x: lambda labels: terms(d, z, x, labels)
            clear = with_finite_gradients  # a value that is impossible may have any gradient
            density = lambda d, z, x: summed(found.each_run(one(d, clear(z), clear(x))), found)
            known = lambda d, z, u, key: labels_given(one(d, z, u), found, key)
            given = settle(known, data, z, u, lean(jax.random.key(0)))
            observed = (
                f"the discrete sites {sorted(discrete)} are summed out, so that the data have no single mean "
                "and no single noise to read off the model. Use a twist or a scheme that does not ask for "
                "them: `nd.Tweedie()`, `nd.Widened()`; `conjugate=False`."
            )
        else:
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
            self.discrete,
            data,
            draw,
            settle(density, data, z, x_hat),
            settle(lambda d, z: with_data(d).constrain(z), data, {**u, **z, **labels}),
            given,
            observed,
            varying,
            settle(chosen, data, z, x_hat) if varying else None,
            drivers,
        )

    @staticmethod
    def _arguments(structure, static, data):
        args, kwargs = eqx.combine(jax.tree.unflatten(structure, data), static)
        return {"args": args, "kwargs": kwargs}


@eqx.filter_jit
def _points(draw: Settled, data: list[Array], x: Position) -> tuple[Position, Position]:
    """Other sites drawn beside each of some values of the diffusion sites."""
    keys = jax.random.split(lean(jax.random.key(0)), NUM_PLACES)
    return jax.vmap(lambda x, key: draw(data, x, key))(x, keys), x
