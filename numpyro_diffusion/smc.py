r"""The engine: sequential Monte Carlo over any Feynman-Kac model.

One loop serves every scheme. A cloud of weighted particles is resampled when its effective sample
size falls below a share of its number, then every particle takes one step and multiplies its weight.
The log of the mean weight, collected whenever weights are reset and once more at the end, is an
estimate of the log evidence whose exponential is unbiased.

The levels are scanned in a few jitted chunks of one length, so that nothing is compiled twice, a
progress bar can move, and an interrupt keeps what is done.
"""

from collections.abc import Callable

import blackjax.smc.resampling as resampling
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ._typing import Array, PRNGKey
from .batch import by_cloud, flat, mean_info, over_particles, split_keys
from .cloud import SMCState as SMCState
from .cloud import conditional_ess as conditional_ess
from .cloud import effective_sample_size as effective_sample_size
from .cloud import genealogy_error as genealogy_error
from .cloud import log_mean_exp as log_mean_exp
from .feynman_kac import FeynmanKac
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

Resampler = Callable[[PRNGKey, Array, int], Array]  # (key, weights, num_samples) -> indices


def resample_equal(key: PRNGKey, log_weights: Array, num_samples: int) -> Array:
    """Indices of an equally weighted cloud, by systematic resampling. For display and plots."""
    return resampling.systematic(key, jax.nn.softmax(log_weights), num_samples)


def _clean(log_weights: Array) -> Array:
    # NaN counts as weight 0 here, and +inf too: the schemes' infos count both and the callers speak up.
    return jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)


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
        _clean(log_weights),
        zeros,
        ancestors,
        zeros.astype(int),
        zeros,
        jnp.full_like(log_weights, 1 / num_particles),
    )
    return state, mean_info(info)


def _choose(resample, threshold, key, log_weights):
    """Indices of one cloud's offspring, and whether it is resampled at all."""
    num_particles = log_weights.shape[0]
    below = effective_sample_size(log_weights) < threshold * num_particles
    chosen = resample(key, jax.nn.softmax(log_weights), num_particles)
    return jnp.where(below, chosen, jnp.arange(num_particles)), below


def _level(step, resample, threshold, batch_size, state: SMCState, level):
    num_clouds, num_particles = state.log_weights.shape
    keys, keys_resample, keys_step = split_keys(state.key, 3).swapaxes(0, 1)

    choose = lambda key, w: _choose(resample, threshold, key, w)
    index, below = jax.vmap(choose)(keys_resample, state.log_weights)
    take = jax.vmap(lambda leaf, i: leaf[i])
    particles = jax.tree.map(lambda leaf: take(leaf, index), state.particles)
    log_evidence = state.log_evidence + jnp.where(below, log_mean_exp(state.log_weights), 0.0)
    log_weights = jnp.where(below[:, None], 0.0, state.log_weights)

    stepped = over_particles(
        lambda k, p: step(k, p, level),
        batch_size,
        flat(split_keys(keys_step, num_particles)),
        flat(particles),
    )
    particles, increments, info = by_cloud(stepped, num_clouds)
    new_log_weights = _clean(log_weights + increments)
    ancestors = take(state.ancestors, index)
    new = state._replace(
        key=keys,
        particles=particles,
        log_weights=new_log_weights,
        log_evidence=log_evidence,
        ancestors=ancestors,
        num_resampled=state.num_resampled + below,
    )
    alive = jax.vmap(lambda a: jnp.zeros(num_particles, int).at[a].set(1))(ancestors)
    trace = Trace(
        effective_sample_size(new_log_weights) / num_particles,
        jax.vmap(conditional_ess)(log_weights, increments),
        log_mean_exp(new_log_weights) - log_mean_exp(log_weights),
        below,
        jnp.sum(alive, -1),
        mean_info(info),
    )
    return new, trace


@eqx.filter_jit
def _run_chunk(step, resample, threshold, batch_size, state, levels, active):
    def body(state, level_and_active):
        level, is_active = level_and_active

        def run(state):
            return _level(step, resample, threshold, batch_size, state, level)

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
    share = np.asarray(threshold)  # an array, so that another threshold compiles nothing
    all_levels = jax.tree.map(np.asarray, model.levels)  # sliced on the host for the same reason
    num_levels = jax.tree.leaves(all_levels)[0].shape[0]
    chunk = max(1, levels_per_chunk)
    if state is None:
        keys = key[None] if num_clouds is None else jax.random.split(key, num_clouds)
        cloud, initial_info = _start_clouds(keys, model.init, num_particles, batch_size)
        done, traces = 0, []
    else:
        cloud, initial_info, done, traces = go_on(state, num_particles, num_clouds)

    def refuse_dead(new: SMCState, traces: list[Trace]) -> None:
        # A cloud that dies within a chunk is resampled from nothing: its evidence tells, not its weights.
        dead = ~np.isfinite(np.asarray(new.log_evidence) + np.asarray(new.log_weights).max(-1))
        if dead.any():
            before = make_result(model, cloud, initial_info, traces, done, num_levels, num_clouds)
            raise dead_cloud(int(np.argmax(dead)), before)

    refuse_dead(cloud, traces)
    bar = tqdm(total=num_levels, initial=done, disable=not progress_bar, desc="levels")
    try:
        while done < num_levels:
            # A chunk ends where the cloud of the prior is made, so that its evidence can be set apart.
            until = model.evidence_from if done < model.evidence_from else num_levels
            levels, active = _slice_levels(all_levels, done, chunk, until)
            new, trace = jax.block_until_ready(
                _run_chunk(model.step, resample, share, batch_size, cloud, levels, active)
            )
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
    return make_result(model, cloud, initial_info, traces, done, num_levels, num_clouds)


def _slice_levels(levels, start, chunk, until):
    index = np.minimum(np.arange(start, start + chunk), until - 1)
    active = np.arange(start, start + chunk) < until
    return jax.tree.map(lambda leaf: leaf[index], levels), active
