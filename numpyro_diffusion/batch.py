"""Particles of several clouds as one batch: one `vmap`, and one matrix product a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._typing import PRNGKey, PyTree

__all__ = ["by_cloud", "flat", "mean_info", "over_particles", "split_keys"]


def over_particles(function: Callable, batch_size: int | None, *args: PyTree):
    """`vmap`, or a scan over batches of particles when memory is to be bounded."""
    size = jax.tree.leaves(args[0])[0].shape[0]
    if batch_size is None or batch_size >= size:
        return jax.vmap(function)(*args)
    return jax.lax.map(lambda one: function(*one), args, batch_size=batch_size)


def mean_info(info: Any) -> Any:
    """Means over the particles of each cloud."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf.astype(jnp.result_type(float)), 1), info)


def split_keys(keys: PRNGKey, num: int) -> PRNGKey:
    """Split the key of every cloud; the new axis comes second."""
    return jax.vmap(lambda key: jax.random.split(key, num))(keys)


def flat(tree: PyTree) -> PyTree:
    """One axis for the particles of all clouds: one `vmap`, and one matrix product a layer."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def by_cloud(tree: PyTree, num_clouds: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(num_clouds, -1, *leaf.shape[1:]), tree)
