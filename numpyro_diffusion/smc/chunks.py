"""Levels of a run in compiled chunks of one length."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._prng import alike
from .._staging import brief_jit
from .batching import over_particles, split_keys
from .packing import pack
from .result import (
    packed,
)
from .step import EachParticle, WasteFree, relative_variance
from .weights import (
    SMCState,
    clean,
)

__all__ = ["level_step", "run_chunk", "slice_levels", "start_clouds"]


@brief_jit
def start_clouds(key, num_chains, init, num_particles, batch_size, with_prior, spread=None):
    """Clouds at the first level, each from its own key, and what was found there."""
    cloud_keys = key[None] if num_chains is None else jax.random.split(key, num_chains)
    keys, keys_init = split_keys(cloud_keys, 2).swapaxes(0, 1)
    num_chains = keys.shape[0]

    def one(i):
        key = jax.random.fold_in(keys_init[i // num_particles], i % num_particles)
        particle, log_weight, info = init(key)
        return (particle, log_weight), pack(info)

    (particles, log_weights), info = over_particles(
        one, num_chains, num_particles, batch_size, spread
    )
    log_weights = clean(log_weights if spread is None else spread.whole(log_weights))
    ancestors = jnp.broadcast_to(jnp.arange(num_particles), log_weights.shape)
    zeros = jnp.zeros(num_chains, log_weights.dtype)
    width = num_particles if with_prior else 1
    state = SMCState(
        key=alike(keys, cloud_keys),
        particles=particles,
        log_weights=log_weights,
        log_evidence=zeros,
        ancestors=ancestors,
        num_resampled=zeros.astype(int),
        prior_log_evidence=zeros,
        prior_family=jnp.full((num_chains, width), 1 / num_particles, log_weights.dtype),
        chain_variance=jax.vmap(relative_variance)(log_weights[..., None]),
        lost=zeros,
    )
    return state, info


@partial(eqx.filter_jit, donate="all-except-first")
def run_chunk(fixed, state: SMCState):
    """Some levels of all clouds; a cloud that dies ends it, with the particles before its death.

    The memory of `state` is used again: it cannot be read afterwards.
    """
    one_level, levels, count = fixed
    level_at = lambda k: jax.tree.map(lambda leaf: leaf[k], levels)
    length = jax.tree.leaves(levels)[0].shape[0]
    rows = jax.eval_shape(lambda s: packed(one_level(s, level_at(0))[1]), state)
    rows = jax.tree.map(lambda row: jnp.zeros((length, *row.shape), row.dtype), rows)

    def goes_on(carry):
        k, _, alive, _ = carry
        return (k < count) & alive

    def body(carry):
        k, state, _, rows = carry
        new, row = one_level(state, level_at(k))
        alive = jnp.all(jnp.isfinite(new.log_evidence + jnp.max(new.log_weights, -1)))
        state = jax.lax.cond(alive, lambda new, old: new, lambda new, old: old, new, state)
        rows = jax.tree.map(lambda whole, one: whole.at[k].set(one), rows, packed(row))
        return k + 1, state, alive, rows

    # A loop with an end of its own, not a scan: levels that pad a chunk cost neither time nor memory.
    k, state, alive, rows = jax.lax.while_loop(goes_on, body, (0, state, jnp.asarray(True), rows))
    return state, alive, k - ~alive, rows


def level_step(
    model, num_particles, resample, threshold, chain_length, batch_size, keep, spread=None
):
    """What happens at a level, as a function of cloud and level."""
    if chain_length is None:
        share = np.asarray(
            threshold if model.resamples else 0.0
        )  # an array, so that another threshold compiles nothing
        return EachParticle(model.step, resample, share, batch_size, keep, spread)
    if not model.resamples:
        raise ValueError(
            "waste-free clouds resample at every level; leave `chain_length` "
            f"out. {_faq.chain_length}"
        )
    if model.rejuvenate is None or model.advance is None:
        raise ValueError(
            "`chain_length` asks for waste-free clouds, but this model has no moves that leave its levels "
            "as they are: it was made by `from_kernels`, or its scheme has `moves=0` or gives no "
            "`rejuvenate` and `advance`. Use "
            f"`chain_length=None`, or a scheme with moves. {_faq.chain_length}"
        )
    if num_particles % chain_length or num_particles // chain_length < 2:
        raise ValueError(
            "`chain_length` must be at least 2 and divide `num_particles` into at least 2 chains; got "
            f"chain_length={chain_length}, num_particles={num_particles}. {_faq.chain_length}"
        )
    return WasteFree(
        model.rejuvenate, model.advance, resample, batch_size, chain_length, keep, spread
    )


def slice_levels(levels, start, chunk, until):
    """As many levels as a chunk has, and how many of them are to be run."""
    index = np.minimum(np.arange(start, start + chunk), until - 1)
    return jax.tree.map(lambda leaf: leaf[index], levels), min(chunk, until - start)
