"""Posterior draws and predictions from weighted particles, in the space of the model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from .. import _faq
from .._prng import lean
from .._typing import Array, PRNGKey
from ..bridge import AbstractModel, Bridge
from ..smc import SMCResult, log_mean_exp, resample_equal

__all__ = [
    "constrained",
    "discrete_probabilities",
    "drawn",
    "drawn_by_cloud",
    "log_mean",
    "pooled_log_weights",
    "take",
    "with_discrete",
]


def log_mean(values: Array) -> float:
    """Log of the mean of exponentials of some numbers, on the host."""
    return float(logsumexp(np.asarray(values, np.float64)) - np.log(values.size))


def pooled_log_weights(result: SMCResult) -> Array:
    """Log weights of all particles that sum to 1 over all clouds; a cloud counts by its evidence."""
    return _pooled(result.log_weights, result.log_evidence if result.weighted else None)


@jax.jit
def _pooled(log_weights: Array, log_evidence: Array | None) -> Array:
    pooled = log_weights - log_mean_exp(log_weights)[:, None]
    if log_evidence is not None:
        pooled = pooled + log_evidence[:, None]
    return jax.nn.log_softmax(pooled.ravel()).reshape(pooled.shape)


def drawn(key: PRNGKey, result: SMCResult) -> dict[str, Array]:
    """Positions of as many equally weighted draws as there are particles, from all clouds together."""
    return _drawn(key, pooled_log_weights(result), result.positions)


@jax.jit
def _drawn(key: PRNGKey, log_weights: Array, positions: Any) -> Any:
    count = log_weights.size
    index = resample_equal(lean(key), log_weights.ravel(), count)
    return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:])[index], positions)


def drawn_by_cloud(key: PRNGKey, result: SMCResult) -> Array:
    """Draw particle indices by weight within each cloud, shape `(num_chains, num_particles)`."""
    return _by_cloud(key, result.log_weights)


@jax.jit
def _by_cloud(key: PRNGKey, log_weights: Array) -> Array:
    num_chains, num_particles = log_weights.shape
    keys = jax.random.split(lean(key), num_chains)
    return jax.vmap(lambda k, w: resample_equal(k, w, num_particles))(keys, log_weights)


@jax.jit
def take(index: Array, cloud: Any) -> Any:
    """Select particles of each cloud by index."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda one, i: one[i])(leaf, index), cloud)


def constrained(bridge: Bridge, positions: dict[str, Array], num_axes: int) -> dict[str, Array]:
    """Latent and deterministic sites at positions that lead with `num_axes` axes of draws."""
    return _constrained(bridge.constrain, positions, num_axes)


@eqx.filter_jit
def _constrained(constrain: Any, positions: dict[str, Array], num_axes: int) -> dict[str, Array]:
    for _ in range(num_axes):
        constrain = jax.vmap(constrain)
    return constrain(positions)


def with_discrete(bridge: Bridge, result: SMCResult, key: PRNGKey) -> SMCResult:
    """The result with one draw of the discrete sites for each particle, from their conditional distribution.

    Raises:
        ValueError: If labels that were summed entry by entry turn out to act together.
    """
    if not bridge.discrete_sites:
        return result
    # `fold_in` by a number is the part of that number in a split: this is beyond any number of clouds, which
    # `drawn` splits the same key into.
    keys = jax.random.split(jax.random.fold_in(lean(key), 2**20), result.log_weights.shape)
    discrete, sound = _drawn_discrete(bridge.model, result.positions, keys)
    if not (sound := np.asarray(sound)).all():
        raise ValueError(
            f"entries of the discrete sites {list(bridge.discrete_sites)} were summed one by one, as each log"
            " density depended on one of them alone where that was looked at; at "
            f"{np.sum(~sound)} of {sound.size} particles it depends on several, so that evidence and draws "
            "are wrong. Sum over some sites by hand, or leave entries out until all joint values "
            f"are few. {_faq.many_values}"
        )
    return result._replace(positions={**result.positions, **discrete})


@eqx.filter_jit
def _drawn_discrete(
    model: AbstractModel, positions: dict[str, Array], keys: Array
) -> tuple[dict[str, Array], Array]:
    given = jax.vmap(jax.vmap(model.discrete_given))(positions, keys)
    return given.drawn, given.sound


@eqx.filter_jit
def discrete_probabilities(
    bridge: Bridge, positions: dict[str, Array], log_weights: Array
) -> dict[str, Array]:
    """Means over weighted particles of the probabilities of discrete sites given the others."""
    each = jax.vmap(jax.vmap(bridge.discrete_probabilities))(positions)
    weights = jax.nn.softmax(log_weights.ravel()).reshape(log_weights.shape)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 2), each)
