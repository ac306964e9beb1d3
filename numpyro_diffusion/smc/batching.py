"""Particles of several clouds evaluated as one batch: one `vmap`, and one matrix product a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._prng import lean
from .._typing import Array, PRNGKey, PyTree
from .spread import Spread

__all__ = ["by_cloud", "flat", "mean_info", "over_particles", "split_keys"]


def over_particles(
    function: Callable[[Array], tuple[PyTree, PyTree]],
    num_chains: int,
    num_particles: int,
    batch_size: int | None,
    spread: Spread | None = None,
    after: Array | None = None,
) -> tuple[PyTree, PyTree]:
    """`function` of every particle of every cloud, all at once or so many at a time.

    Args:
        function: From the index of a particle among those of all clouds to what to keep of it and an info.
        num_chains: Number of clouds.
        num_particles: Particles a cloud.
        batch_size: Bound on the memory: no more than these are worked on at once, on each device.
        spread: Devices that share the work; `None` for one.
        after: Numbers of at least 0, of which the first exists before memory for what is kept is taken, so
            that it is memory that they were computed in.

    Returns:
        What to keep, leading with `(num_chains, num_particles)`, and the mean info of each cloud.
    """
    count = num_chains * num_particles
    if spread is not None:
        kept, info = spread.map(function, count, batch_size)
        info = spread.whole(mean_info(by_cloud(info, num_chains)))
        return spread.by_cloud(by_cloud(kept, num_chains)), info
    if batch_size is None or batch_size >= count:
        kept, info = jax.vmap(function)(jnp.arange(count))
        return by_cloud(kept, num_chains), mean_info(by_cloud(info, num_chains))
    shapes, info_shapes = jax.eval_shape(jax.vmap(function), jnp.arange(batch_size))
    # Zero, which the compiler cannot know.
    zero = jnp.zeros((), int) if after is None else jnp.minimum(after.ravel()[0], 0)
    empty = lambda s: jnp.broadcast_to(zero.astype(s.dtype), (count, *s.shape[1:]))
    kept = jax.tree.map(empty, shapes)
    totals = jax.tree.map(
        lambda s: jnp.zeros((num_chains, *s.shape[1:]), jnp.result_type(float)), info_shapes
    )

    def one_batch(k, carry):
        kept, totals = carry
        # The last batch overlaps the one before, so that no rest needs a program of its own.
        start = jnp.minimum(k * batch_size, count - batch_size)
        index = start + jnp.arange(batch_size)
        new, info = jax.vmap(function)(index)
        write = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
        kept = jax.tree.map(write, kept, new)
        fresh = index >= k * batch_size

        def collect(total, leaf):
            mask = fresh.reshape(-1, *(1,) * (leaf.ndim - 1))
            values = jnp.where(mask, leaf.astype(total.dtype), 0.0)
            return total.at[index // num_particles].add(values)

        return kept, jax.tree.map(collect, totals, info)

    batches = -(-count // batch_size)
    kept, totals = jax.lax.fori_loop(0, batches, one_batch, (kept, totals))
    return by_cloud(kept, num_chains), jax.tree.map(lambda t: t / num_particles, totals)


def mean_info(info: Any) -> Any:
    """Means over the particles of each cloud."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf.astype(jnp.result_type(float)), 1), info)


def split_keys(keys: PRNGKey, num: int) -> PRNGKey:
    """Split the key of every cloud, in the form of `lean`; the new axis comes second."""
    return jax.vmap(lambda key: jax.random.split(key, num))(lean(keys))


def flat(tree: PyTree) -> PyTree:
    """Merge the axes of clouds and particles: one `vmap`, and one matrix product per layer."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def by_cloud(tree: PyTree, num_chains: int) -> PyTree:
    split = lambda x: x.reshape(num_chains, x.shape[0] // num_chains, *x.shape[1:])
    return jax.tree.map(split, tree)
