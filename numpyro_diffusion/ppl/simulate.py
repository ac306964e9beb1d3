"""Simulations of a NumPyro model: latent sites from the prior, and data given them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to

from .._arguments import as_arrays
from .._typing import Array, Position, PRNGKey
from ..bridge import Bridge
from .choice_sites import taken_apart
from .look import look
from .model_bridge import LiveModel, chosen_sites
from .sites import unwrapped
from .tracing import tracing

__all__ = ["Observations", "Simulator", "flat"]


class Observations(eqx.Module):
    """Observed values of a model at its arguments, without those that a mask leaves out.

    Attributes:
        values: By site.
        counts: By site, which entries are seen; `None` for all.
    """

    values: dict[str, Array]
    counts: dict[str, Any]

    @classmethod
    def of(cls, model: Callable, args: tuple, kwargs: dict[str, Any]) -> "Observations":
        """Observed sites that hold numbers; factors hold none."""
        args, kwargs = as_arrays(model, args, kwargs)
        trace = look(LiveModel((), (), (), model, args, kwargs), 0.0)
        found = {n: s for n, s in trace.items() if s["type"] == "sample" and s["is_observed"]}
        found = {n: s for n, s in found.items() if not isinstance(unwrapped(s["fn"]), dist.Unit)}
        found = {n: s for n, s in found.items() if s["value"] is not None and np.size(s["value"])}
        return cls(
            {n: jnp.asarray(s["value"]) for n, s in found.items()},
            {n: s["counts"] for n, s in found.items()},
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: jnp.shape(value) for n, value in self.values.items()}

    def vector(self, values: dict[str, Array] | None = None) -> Array:
        """These values, or others of the same sites, as one real vector, with 0 where nothing is seen."""
        values = self.values if values is None else values
        return flat([_seen(values[n], self.counts[n]) for n in sorted(self.values)])


def _seen(value: Array, counts: Any) -> Array:
    if counts is None or np.shape(counts) != jnp.shape(value)[: np.ndim(counts)]:
        return jnp.asarray(value)
    shape = np.shape(counts) + (1,) * (jnp.ndim(value) - np.ndim(counts))
    return jnp.where(jnp.reshape(counts, shape), value, 0)


def flat(leaves: list[Array]) -> Array:
    """Arrays as one real vector; complex ones are parted."""
    dtype, rows = jnp.result_type(float), []
    for leaf in leaves:
        parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
        rows += [jnp.ravel(part).astype(dtype) for part in parts]
    return jnp.concatenate(rows)


class Simulator(eqx.Module):
    """The generative side of a model at its arguments, as functions of a key.

    Attributes:
        model: The model, its diffusion sites taken apart.
        args: Its arguments, data included: they say which shapes the data have.
        kwargs: Its keyword arguments.
        diffusion: Names of the diffusion sites.
        others: Names of the other continuous latent sites.
        observations: Those of the arguments.
    """

    model: Callable = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]
    diffusion: tuple[str, ...] = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)
    observations: Observations

    @classmethod
    def of(cls, model: Callable, args: tuple, kwargs: dict[str, Any], bridge: Bridge):
        """The simulator of a model whose bridge is at hand."""
        observations = Observations.of(model, args, kwargs)
        args, kwargs = as_arrays(model, args, kwargs)
        apart = taken_apart(model, chosen_sites(bridge))
        sites = bridge.diffusion_sites, bridge.other_sites
        return cls(apart, args, kwargs, *sites, observations)

    def _trace(self, key: PRNGKey, values: dict[str, Array]) -> dict[str, dict]:
        free = handlers.substitute(handlers.uncondition(self.model), data=values)
        with tracing:
            return handlers.trace(handlers.seed(free, key)).get_trace(*self.args, **self.kwargs)

    def latent(self, key: PRNGKey) -> tuple[Position, dict[str, Array]]:
        """A draw of the prior: continuous sites in unconstrained space, and the values of all latent ones."""
        trace = self._trace(key, {})
        z = {n: trace[n]["value"] for n in self.diffusion}
        for n in self.others:
            z[n] = biject_to(trace[n]["fn"].support)._inverse(trace[n]["value"])
        values = {n: s["value"] for n, s in trace.items() if _latent(s)}
        return z, values

    def data(self, key: PRNGKey, values: dict[str, Array]) -> Array:
        """A draw of the data given the values of all latent sites, as one vector."""
        trace = self._trace(key, values)
        return self.observations.vector({n: trace[n]["value"] for n in self.observations.values})


def _latent(site: dict) -> bool:
    return site["type"] == "sample" and not site["infer"].get("was_observed", False)
