r"""One SMC step: resample-move with an effective sample size threshold, and waste-free SMC.

In the usual level every particle makes some moves and is then weighed; the places that it passed on its way
are forgotten. In a waste-free level only $M = N / P$ particles are chosen, each makes a chain of $P$ states
by $P - 1$ moves that leave the level's distribution as it is, and all $N$ states are weighed and kept.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._prng import alike
from .._typing import Array, PRNGKey
from .batching import flat, over_particles, split_keys
from .packing import pack
from .result import Trace
from .spread import Spread
from .weights import (
    SMCState,
    add,
    clean,
    conditional_ess,
    effective_sample_size,
    log_mean_exp,
    within_reach,
)

__all__ = ["EachParticle", "Resampler", "WasteFree"]

Resampler = Callable[[PRNGKey, Array, int], Array]  # (key, weights, num_samples) -> indices


def _pick(ancestors: Array, index: Array) -> Array:
    """Ancestors of the chosen particles of each cloud, in one gather, which takes little memory."""
    num_chains, num_particles = ancestors.shape
    first = num_particles * jnp.arange(num_chains, dtype=index.dtype)[:, None]
    return ancestors.ravel().at[first + index].get(mode="clip")


def _num_alive(ancestors: Array) -> Array:
    size = ancestors.shape[-1]
    return jnp.sum(jax.vmap(lambda a: jnp.zeros(size, int).at[a].set(1))(ancestors), -1)


class EachParticle(eqx.Module):
    """The usual level: resample where the weights ask for it, then one `step` of every particle."""

    step: Callable
    resample: Resampler
    threshold: Array | np.ndarray
    batch_size: int | None
    keeps_parents: bool = False
    spread: Spread | None = eqx.field(static=True, default=None)

    def __call__(self, state: SMCState, level) -> tuple[SMCState, Trace]:
        num_chains, num_particles = state.log_weights.shape
        keys, keys_resample, keys_step = split_keys(state.key, 3).swapaxes(0, 1)
        index, below = jax.vmap(self.choose)(keys_resample, state.log_weights)
        gain = jnp.where(below, log_mean_exp(state.log_weights), 0.0)
        log_evidence, lost = add(state.log_evidence, state.lost, gain)
        log_weights = jnp.where(below[:, None], 0.0, state.log_weights)
        # All that resampling needs comes before memory for the new particles is taken.
        ancestors = _pick(state.ancestors, index)
        num_alive = _num_alive(ancestors)
        source = flat(state.particles)

        def one(i):  # gathered here, so that no second cloud is laid out
            cloud, place = i // num_particles, i % num_particles
            parent = cloud * num_particles + index[cloud, place]
            particle = jax.tree.map(lambda leaf: leaf[parent], source)
            key = jax.random.fold_in(keys_step[cloud], place)
            new, increment, info = self.step(key, particle, level)
            return (new, increment), pack(info)

        (particles, increments), info = over_particles(
            one, num_chains, num_particles, self.batch_size, self.spread, num_alive
        )
        if self.spread is not None:  # on every device, so that all resample alike
            increments = self.spread.whole(increments)
        new_log_weights = clean(log_weights + increments)
        # Weights of whole paths, which are never resampled, may go down and come up again.
        resamples = jnp.asarray(self.threshold) > 0
        new_log_weights = jnp.where(resamples, within_reach(new_log_weights), new_log_weights)
        new = state._replace(
            key=alike(keys, state.key),
            particles=particles,
            log_weights=new_log_weights,
            log_evidence=log_evidence,
            lost=lost,
            ancestors=ancestors,
            num_resampled=state.num_resampled + below,
        )
        trace = Trace(
            effective_sample_size(new_log_weights) / num_particles,
            jax.vmap(conditional_ess)(log_weights, increments),
            log_mean_exp(new_log_weights) - log_mean_exp(log_weights),
            below,
            num_alive,
            info,
            index if self.keeps_parents else None,
        )
        return new, trace

    def choose(self, key: PRNGKey, log_weights: Array):
        """Indices of one cloud's offspring, and whether it is resampled at all."""
        num_particles = log_weights.shape[0]
        below = effective_sample_size(log_weights) < self.threshold * num_particles
        chosen = self.resample(key, jax.nn.softmax(log_weights), num_particles)
        return jnp.where(below, chosen, jnp.arange(num_particles)), below


class WasteFree(eqx.Module):
    r"""A waste-free level: few particles are chosen, and all states of their chains are kept.

    It is the usual algorithm for particles that are whole chains, so that $\hat Z$ is unbiased for any
    number of chains. The error of $\log \hat Z$ is that of means over independent chains, summed over the
    levels: what a level inherits from the one before is left out, so it is too small where chains hardly
    move.

    References:
        Dau & Chopin (2022), Waste-free sequential Monte Carlo, JRSS B.
    """

    rejuvenate: Callable
    advance: Callable
    resample: Resampler
    batch_size: int | None
    chain_length: int
    keeps_parents: bool = False
    spread: Spread | None = eqx.field(static=True, default=None)

    def __call__(self, state: SMCState, level) -> tuple[SMCState, Trace]:
        num_chains, num_particles = state.log_weights.shape
        chains_per_cloud = num_particles // self.chain_length
        keys, keys_resample, keys_chain = split_keys(state.key, 3).swapaxes(0, 1)
        weights = jax.nn.softmax(state.log_weights)
        choose = lambda key, w: self.resample(key, w, chains_per_cloud)
        index = jax.vmap(choose)(keys_resample, weights)
        batch = None if self.batch_size is None else max(1, self.batch_size // self.chain_length)
        source = flat(state.particles)

        def one(i):
            cloud, place = i // chains_per_cloud, i % chains_per_cloud
            parent = cloud * num_particles + index[cloud, place]
            particle = jax.tree.map(lambda leaf: leaf[parent], source)
            key = jax.random.fold_in(keys_chain[cloud], place)
            states, increments, infos = self.chain(key, particle, level)
            mean = lambda leaf: jnp.mean(leaf.astype(increments.dtype), 0)
            return (states, increments), pack(jax.tree.map(mean, infos))

        chains, info = over_particles(one, num_chains, chains_per_cloud, batch, self.spread)
        # (clouds, chains, length, ...): states of one chain stay together.
        particles, increments = jax.tree.map(
            lambda leaf: leaf.reshape(num_chains, num_particles, *leaf.shape[3:]), chains
        )
        if self.spread is not None:
            increments = self.spread.whole(increments)
        log_weights = clean(increments)
        ancestors = jnp.repeat(_pick(state.ancestors, index), self.chain_length, -1)
        gain = log_mean_exp(state.log_weights)
        log_evidence, lost = add(state.log_evidence, state.lost, gain)
        each_chain = log_weights.reshape(num_chains, chains_per_cloud, -1)
        new = state._replace(
            key=alike(keys, state.key),
            particles=particles,
            log_weights=log_weights,
            log_evidence=log_evidence,
            lost=lost,
            ancestors=ancestors,
            num_resampled=state.num_resampled + 1,
            chain_variance=state.chain_variance + jax.vmap(relative_variance)(each_chain),
        )
        trace = Trace(
            effective_sample_size(log_weights) / num_particles,
            jax.vmap(conditional_ess)(jnp.zeros_like(log_weights), increments),
            log_mean_exp(log_weights),
            jnp.ones(num_chains, bool),
            _num_alive(ancestors),
            info,
            jnp.repeat(index, self.chain_length, -1) if self.keeps_parents else None,
        )
        return new, trace

    def chain(self, key: PRNGKey, particle, level):
        """The states of one chain, each advanced to the next level and weighed."""
        key_moves, key_advance = jax.random.split(key)

        def link(particle, key):
            new, info = self.rejuvenate(key, particle, level)
            return new, (particle, info)

        moves = jax.random.split(key_moves, self.chain_length - 1)
        last, (before, infos) = jax.lax.scan(link, particle, moves)
        append = lambda rows, end: jnp.concatenate([rows, end[None]])
        states = jax.tree.map(append, before, last)
        infos = jax.tree.map(
            lambda rows: append(rows, rows[-1]), infos
        )  # of the move from each state
        keys = jax.random.split(key_advance, self.chain_length)
        return jax.vmap(lambda k, p, i: self.advance(k, p, level, i))(keys, states, infos)


def relative_variance(log_weights: Array) -> Array:
    """Relative variance of the mean of weights whose rows are independent; rows are chains."""
    num_chains = log_weights.shape[0]
    rows = log_mean_exp(log_weights)
    share = jnp.exp(rows - log_mean_exp(rows))
    return jnp.var(share, ddof=1) / num_chains
