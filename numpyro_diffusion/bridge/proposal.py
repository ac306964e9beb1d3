r"""A proposal for all latent sites of a model, from which particles start at clock 0."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Position, PRNGKey, Scalar
from ..twists import Identity
from .base import Bridge
from .forms import DensityBridge
from .tempering import Tempering

__all__ = ["Proposal", "proposed"]


class Proposal(eqx.Module):
    r"""$q(z) = (1 - \epsilon)\, f(z) + \epsilon\, p(z)$: a fitted density $f$, guarded by the prior $p$.

    With $\epsilon > 0$ the weights $p(z, y) / q(z)$ are at most $p(y \mid z) / \epsilon$, however bad $f$ is.

    Attributes:
        density: $f$, over the latent sites in unconstrained space as one vector, in the order of
            `ravel_pytree`; an object with `sample(key)` and `log_prob(u)`.
        share: $\epsilon$; 0 where the prior has no exact draws.
    """

    density: Any
    share: float = eqx.field(static=True, default=0.0)

    def log_prob(self, z: Position, log_prior: Scalar) -> Scalar:
        """$\\log q$ of shape `()`, in nats.

        Args:
            z: A position.
            log_prior: $\\log p(z)$, which is at hand wherever this is asked.
        """
        value = self.density.log_prob(ravel_pytree(z)[0])
        if not self.share:
            return value
        return jnp.logaddexp(jnp.log1p(-self.share) + value, jnp.log(self.share) + log_prior)

    def sample(self, key: PRNGKey, bridge: Bridge) -> Position:
        """A draw of $q$.

        Args:
            key: PRNG key.
            bridge: Whose latent sites these are.
        """
        key_which, key_density, key_prior = jax.random.split(key, 3)
        shapes = jax.eval_shape(bridge.sample_base, key_prior)
        like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        flat, unravel = ravel_pytree(like)
        fitted = unravel(self.density.sample(key_density).astype(flat.dtype))
        if not self.share:
            return fitted
        guarded = jax.random.bernoulli(key_which, self.share)
        prior = dataclasses.replace(bridge, proposal=None).sample_prior(key_prior)
        return jax.tree.map(lambda p, f: jnp.where(guarded, p, f), prior, fitted)


def proposed(bridge: DensityBridge, proposal: Proposal) -> DensityBridge:
    r"""The bridge at clock 0 from a proposal to the posterior of another bridge.

    At power $\beta$ its density is $\gamma_\beta \propto q(z)^{1 - \beta}\, p(z, y)^\beta$, with one network
    evaluation a site.

    Args:
        bridge: To the posterior.
        proposal: Where particles start.
    """
    return dataclasses.replace(
        bridge, proposal=proposal, twist=Identity(), tempering=Tempering({}, {})
    )
