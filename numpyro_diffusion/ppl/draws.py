"""Draws from the weighted particles of independent clouds, in the space of the model."""

from typing import Any

import jax

from .._typing import Array, PRNGKey
from ..bridge import Bridge
from ..smc import SMCResult, log_mean_exp, resample_equal

__all__ = ["constrained", "drawn", "drawn_by_cloud", "pooled_log_weights", "take"]


def pooled_log_weights(result: SMCResult) -> Array:
    """Log weights of all particles that sum to 1 over all clouds; a cloud counts by its evidence."""
    pooled = result.log_weights - log_mean_exp(result.log_weights)[:, None]
    if result.weighted:
        pooled = pooled + result.log_evidence[:, None]
    return jax.nn.log_softmax(pooled.ravel()).reshape(pooled.shape)


def drawn(key: PRNGKey, result: SMCResult) -> dict[str, Array]:
    """Positions of as many equally weighted draws as there are particles, from all clouds together."""
    count = result.log_weights.size
    index = resample_equal(key, pooled_log_weights(result).ravel(), count)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:])[index], result.positions)


def drawn_by_cloud(key: PRNGKey, result: SMCResult) -> Array:
    """Which particle each draw of each cloud is, shape `(num_clouds, num_particles)`."""
    num_clouds, num_particles = result.log_weights.shape
    keys = jax.random.split(key, num_clouds)
    return jax.vmap(lambda k, w: resample_equal(k, w, num_particles))(keys, result.log_weights)


def take(index: Array, cloud: Any) -> Any:
    """Those particles of each cloud."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda one, i: one[i])(leaf, index), cloud)


def constrained(bridge: Bridge, positions: dict[str, Array], num_axes: int) -> dict[str, Array]:
    """Latent and deterministic sites at positions that lead with `num_axes` axes of draws."""
    one = bridge.constrain
    for _ in range(num_axes):
        one = jax.vmap(one)
    return jax.jit(one)(positions)
