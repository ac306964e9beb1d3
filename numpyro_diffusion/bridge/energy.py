"""The bridge of one energy and one log likelihood, without a NumPyro model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._staging import Settled, brief_jit, settle
from .._typing import Array, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from ..twists import AbstractTwist, Tweedie
from .base import Bridge, Edge, Rest, Seen
from .edges import doubtful, with_finite_gradients
from .krylov import krylov
from .observed import curvature
from .sites import DiffusionSite, normalizer_error
from .tempering import Tempering

__all__ = ["from_energy"]


class _EnergyBridge(eqx.Module):
    site: DiffusionSite
    twist: AbstractTwist
    likelihood: Settled | None
    data: Any = None
    tempering: Tempering | None = None
    # Names of the likelihoods that are 0 somewhere; `None` while that is not known.
    edges: tuple[str, ...] | None = eqx.field(static=True, default=None)
    log_peaks: dict[str, Array] = eqx.field(default_factory=dict)

    def log_likelihood(self, x):
        assert self.likelihood is not None
        return self.likelihood(self.data, x)

    def sample_base(self, key):
        return {"x": self.site.sample_base(key)}

    def sample_prior(self, key):
        return {"x": self.site.sample_prior(key)}

    def log_base(self, z):
        return self.site.log_base(z["x"])

    def see(self, z, clock):
        seen = Seen.of({"x": self.site.see(self.twist, z["x"], clock)})
        if not self.twist.num_directions or self.likelihood is None:
            return seen
        log_likelihood = lambda x: self.rest({}, x).log_likelihood
        at = lambda x: curvature(None, log_likelihood, x)
        sites, count = {"x": self.site}, self.twist.num_directions
        roots = krylov(sites, count, jax.grad(log_likelihood), at, z, seen.x_hat, clock)
        return seen._replace(roots=roots)

    def clean(self, key):
        """What the likelihood sees, for its shape."""
        u = self.site.sample_base(key)
        x_hat = self.site.see(self.twist, u, jnp.asarray(0.5))[1]
        return x_hat.astype(jnp.result_type(x_hat, u))

    def rest(self, z, x_hat):
        del z
        zero = jnp.zeros((), x_hat["x"].dtype)
        if self.likelihood is None:
            return Rest(zero, None, zero, zero, {}, {})
        x = with_finite_gradients(x_hat["x"]) if self.edges else x_hat["x"]
        value = self.log_likelihood(x)
        edges = {"likelihood": Edge(value, zero, zero)}
        rest = Rest(zero, None, zero, zero, edges, {"likelihood": value})
        return rest if self.edges is None else rest.with_edges(self.edges, self.log_peaks)

    def carry(self, z, clock, next_clock):
        u, log_det = self.site.carry(z["x"], clock, next_clock)
        return {"x": u}, log_det

    def constrain(self, z):
        return dict(z)

    def times(self, clock):
        return {"x": self.site.time(clock)}

    def noise(self, clock):
        return {"x": self.site.noise(clock)}

    def open_share(self, clock):
        return self.site.residual(clock)

    def exponent(self, z, clock):
        return jnp.ones(()) if self.tempering is None else self.tempering(self.rest, z, clock)


def from_energy(
    energy: AbstractDenoiser,
    log_likelihood: Callable[[Array], Scalar] | None = None,
    *,
    twist: AbstractTwist | None = None,
    path_space: bool = False,
    initial: Any = None,
) -> Bridge:
    r"""Bridge to $e^{-E(x, t_{\min})}\, p(y \mid x)$, without a NumPyro model.

    Args:
        energy: The prior's energy.
        log_likelihood: `x -> ()` in nats for ONE example in data units; `None` for the prior alone.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        path_space: For `Twisted`: the prior is the law of the reverse sampler, and a denoiser is enough.
        initial: Law of $x_t / \alpha_t$ at `t_max` from which particles start, with `sample(key)` and
            `log_prob(u)`; the Gaussian of `energy.moments(t_max)` by default. Weights correct for it.

    Raises:
        ValueError: If `initial` draws another shape.
        TypeError: If `energy` is not an energy, unless in path space.
    """
    if not (path_space or isinstance(energy, AbstractEnergy)):
        raise TypeError(
            f"`from_energy` expects an AbstractEnergy; got {type(energy).__name__}. A score alone "
            "has no density to weigh particles with: train or distil an energy."
        )
    site = DiffusionSite(energy, (), path_space, initial)
    twist = (Tweedie() if twist is None else twist).of_size(math.prod(site.shape))
    parts = _EnergyBridge(site, twist, None)
    if log_likelihood is not None:
        data, fixed = eqx.partition(log_likelihood, eqx.is_array)
        of_data = lambda data, x: eqx.combine(data, fixed)(x)
        likelihood = settle(of_data, data, jax.eval_shape(parts.clean, jax.random.key(0)))
        parts = _settled(_EnergyBridge(site, twist, likelihood, data))
    prior = "the reverse sampler's law" if path_space else "exp(-E(x, t_min))"
    return Bridge.of(
        parts,
        diffusion_sites=("x",),
        other_sites=(),
        target=f"{prior} p(y | x)" if log_likelihood else prior,
        log_normalizer_error=normalizer_error({"x": site}),
        exact_prior=site.exact,
        path_space=path_space,
        powers={"x": site.powers} if site.powers else {},
        observed=None,
        evaluations=twist.evaluations(energy),
    )


def _settled(parts: _EnergyBridge) -> _EnergyBridge:
    """The same with its tempering found."""
    sites = {"x": parts.site}
    direction, found = _asked(parts)
    if not parts.twist.takes_gradients:
        tempering = Tempering.without_gradients(sites)
    else:
        tempering = Tempering(sites, direction)
    return dataclasses.replace(
        parts, tempering=tempering, edges=found.names, log_peaks=found.log_peaks
    )


@brief_jit
def _asked(parts: _EnergyBridge):
    """The direction of which the data say most, and whether the likelihood is 0 somewhere."""
    sites = {"x": parts.site}
    found = doubtful(lambda x: parts.rest({}, x).edges, sites)
    if not parts.twist.takes_gradients:
        return {}, found
    return Tempering.towards_the_data(parts.rest, sites, {}).direction, found
