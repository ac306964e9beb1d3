r"""The engine: sequential Monte Carlo over any Feynman-Kac model.

One loop serves every scheme. A cloud of weighted particles is resampled when its effective sample
size falls below a share of its number, then every particle takes one step and multiplies its weight.
The log of the mean weight, collected whenever weights are reset and once more at the end, is an
estimate of the log evidence whose exponential is unbiased.

The levels are scanned in a few jitted chunks of one length, so that nothing is compiled twice, a
progress bar can move, and an interrupt keeps what is done.
"""

import blackjax.smc.resampling as resampling
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ._typing import Array, PRNGKey
from .batch import by_cloud, flat, mean_info, over_particles, split_keys
from .cloud import SMCState as SMCState
from .cloud import clean
from .cloud import conditional_ess as conditional_ess
from .cloud import effective_sample_size as effective_sample_size
from .cloud import genealogy_error as genealogy_error
from .cloud import log_mean_exp as log_mean_exp
from .feynman_kac import FeynmanKac
from .level import EachParticle, Resampler, WasteFree, relative_variance
from .result import SMCResult as SMCResult
from .result import Trace as Trace
from .result import begin_evidence, dead_cloud, go_on, make_result

__all__ = [
    "SMCResult",
    "SMCState",
    "conditional_ess",
    "effective_sample_size",
    "log_mean_exp",
    "resample_equal",
    "run_smc",
]


def resample_equal(key: PRNGKey, log_weights: Array, num_samples: int) -> Array:
    """Indices of an equally weighted cloud, by systematic resampling. For display and plots."""
    return resampling.systematic(key, jax.nn.softmax(log_weights), num_samples)


@eqx.filter_jit
def _start_clouds(keys, init, num_particles, batch_size):
    keys, keys_init = split_keys(keys, 2).swapaxes(0, 1)
    num_clouds = keys.shape[0]
    flat_keys = flat(split_keys(keys_init, num_particles))
    started = over_particles(init, batch_size, flat_keys)
    particles, log_weights, info = by_cloud(started, num_clouds)
    ancestors = jnp.broadcast_to(jnp.arange(num_particles), log_weights.shape)
    zeros = jnp.zeros(num_clouds, log_weights.dtype)
    state = SMCState(
        keys,
        particles,
        clean(log_weights),
        zeros,
        ancestors,
        zeros.astype(int),
        zeros,
        jnp.full_like(log_weights, 1 / num_particles),
        jax.vmap(relative_variance)(clean(log_weights)[..., None]),
        zeros,
    )
    return state, mean_info(info)


@eqx.filter_jit
def _run_chunk(one_level, state, levels, active):
    def body(state, level_and_active):
        level, is_active = level_and_active

        def run(state):
            return one_level(state, level)

        # Padding levels at the end of the last chunk leave the cloud alone and cost nothing.
        blank = jax.eval_shape(lambda s: run(s)[1], state)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
        return jax.lax.cond(is_active, run, lambda s: (s, zeros), state)

    state, trace = jax.lax.scan(body, state, (levels, active))
    return state, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), trace)


def run_smc(
    key: PRNGKey,
    model: FeynmanKac,
    num_particles: int = 512,
    *,
    num_clouds: int | None = None,
    resample: Resampler = resampling.systematic,
    threshold: float = 0.5,
    chain_length: int | None = None,
    keep_genealogy: bool = False,
    batch_size: int | None = None,
    progress_bar: bool = False,
    levels_per_chunk: int = 8,
    state: SMCResult | None = None,
) -> SMCResult:
    r"""Run a Feynman-Kac model with a cloud of particles.

    Args:
        key: PRNG key.
        model: What to run.
        num_particles: Particles a cloud, at least 2.
        num_clouds: Number of independent clouds, run together; results get a leading axis. `None`
            runs one cloud without that axis.
        resample: BlackJAX resampler `(key, weights, num_samples) -> indices`.
        threshold: Resample when the effective sample size falls below this share of the particles.
        chain_length: For waste-free clouds: at every level `num_particles / chain_length` particles are
            chosen, and all states of chains of this length from them are kept. `threshold` then means
            nothing. Levels may be longer and moves fewer than with `None`, the usual cloud.
        keep_genealogy: Keep every particle's parent at every level, for `plots.plot_genealogy`.
        batch_size: Particles that step at once, to bound memory; all of them if `None`.
        progress_bar: Show a progress bar over the levels.
        levels_per_chunk: Levels that are run at once: the grain of progress bar and interrupt. A
            fixed length, so that another number of levels compiles nothing.
        state: An interrupted result to go on from, with the same model and arguments.

    Returns:
        The weighted cloud, its log evidence and its history. On `KeyboardInterrupt` the result so
        far, with `completed=False`.

    Raises:
        ValueError: If a number is out of range.
        FloatingPointError: If every particle of a cloud has weight 0; its attribute `result` holds
            the last particles that are worth something, and the trace until the death.
    """
    if num_particles < 2:
        raise ValueError(f"`num_particles` must be at least 2; got {num_particles}.")
    if num_clouds is not None and num_clouds < 1:
        raise ValueError(f"`num_clouds` must be at least 1; got {num_clouds}. `None` runs one.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}. `None` takes all.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the particles in [0, 1]; got {threshold}.")
    one_level = _one_level(
        model, num_particles, resample, threshold, chain_length, batch_size, keep_genealogy
    )
    all_levels = jax.tree.map(np.asarray, model.levels)  # sliced on the host for the same reason
    num_levels = jax.tree.leaves(all_levels)[0].shape[0]
    chunk = max(1, levels_per_chunk)
    if state is None:
        keys = key[None] if num_clouds is None else jax.random.split(key, num_clouds)
        cloud, initial_info = _start_clouds(keys, model.init, num_particles, batch_size)
        done, traces = 0, []
    else:
        cloud, initial_info, done, traces = go_on(state, num_particles, num_clouds)

    def result_of(cloud, traces, done) -> SMCResult:
        own = None if chain_length is None else jnp.sqrt(cloud.chain_variance)
        return make_result(model, cloud, initial_info, traces, done, num_levels, num_clouds, own)

    def refuse_dead(new: SMCState, traces: list[Trace]) -> None:
        # A cloud that dies within a chunk is resampled from nothing: its evidence tells, not its weights.
        dead = ~np.isfinite(np.asarray(new.log_evidence) + np.asarray(new.log_weights).max(-1))
        if dead.any():
            before = result_of(cloud, traces, done)
            raise dead_cloud(int(np.argmax(dead)), before)

    refuse_dead(cloud, traces)
    bar = tqdm(total=num_levels, initial=done, disable=not progress_bar, desc="levels")
    try:
        while done < num_levels:
            # A chunk ends where the cloud of the prior is made, so that its evidence can be set apart.
            until = model.evidence_from if done < model.evidence_from else num_levels
            levels, active = _slice_levels(all_levels, done, chunk, until)
            new, trace = jax.block_until_ready(_run_chunk(one_level, cloud, levels, active))
            used = min(chunk, until - done)
            # On the host: another number of levels compiles nothing.
            trace = jax.tree.map(lambda leaf, used=used: np.asarray(leaf)[:, :used], trace)
            longer = [*traces, trace]
            refuse_dead(new, longer)
            if done + used == model.evidence_from:
                new = begin_evidence(new)
            # Assigned together: an interrupt leaves all of them old or all of them new.
            cloud, traces, done = new, longer, done + used
            bar.update(used)
            bar.set_postfix(ess=f"{trace.ess[:, -1].mean():.2f}", refresh=False)
    except KeyboardInterrupt:
        pass
    finally:
        bar.close()
    return result_of(cloud, traces, done)


def _one_level(model, num_particles, resample, threshold, chain_length, batch_size, keep):
    """What happens at a level, as a function of cloud and level."""
    if chain_length is None:
        share = np.asarray(threshold)  # an array, so that another threshold compiles nothing
        return EachParticle(model.step, resample, share, batch_size, keep)
    if model.rejuvenate is None or model.advance is None:
        raise ValueError(
            "`chain_length` asks for waste-free clouds, but this model has no moves that leave its levels "
            "as they are: it was made by `from_kernels`, or its scheme has `num_moves=0`. Use "
            "`chain_length=None`, or a scheme with moves."
        )
    if chain_length < 2 or num_particles % chain_length or num_particles // chain_length < 2:
        raise ValueError(
            "`chain_length` must be at least 2 and divide `num_particles` into at least 2 chains; got "
            f"chain_length={chain_length}, num_particles={num_particles}."
        )
    return WasteFree(model.rejuvenate, model.advance, resample, batch_size, chain_length, keep)


def _slice_levels(levels, start, chunk, until):
    index = np.minimum(np.arange(start, start + chunk), until - 1)
    active = np.arange(start, start + chunk) < until
    return jax.tree.map(lambda leaf: leaf[index], levels), active
