r"""The engine: sequential Monte Carlo (SMC) over a Feynman-Kac model.

One loop serves every scheme. A cloud of weighted particles is resampled when its effective sample
size falls below a share of its number, then every particle takes one step and multiplies its weight.
The log of the mean weight, collected whenever weights are reset and once more at the end, is an
estimate of the log evidence whose exponential is unbiased.

The levels are run in a few jitted chunks of one length, so that nothing is compiled twice, a
progress bar can move, and an interrupt keeps what is done.
"""

import jax
import numpy as np
from tqdm.auto import tqdm

from .._arguments import whole_number
from .._finite import in_words, speak_up
from .._prng import check_key
from .._typing import Array, PRNGKey
from .chunks import level_step, run_chunk, slice_levels, start_clouds
from .feynman_kac import FeynmanKac
from .interrupt import Deferred
from .resampling import check_threshold, scheme_of, systematic
from .result import (
    SMCResult,
    begin_evidence,
    dead_cloud,
    go_on,
    make_result,
    unpacked,
)
from .step import Resampler

__all__ = ["resample_equal", "run_smc"]


def resample_equal(key: PRNGKey, log_weights: Array, num_samples: int) -> Array:
    """Indices of an equally weighted cloud, by systematic resampling. For display and plots."""
    num_samples = whole_number("num_samples", num_samples, 1)
    return systematic(key, jax.nn.softmax(log_weights), num_samples)


def run_smc(
    key: PRNGKey,
    model: FeynmanKac,
    num_particles: int = 512,
    *,
    num_chains: int | None = None,
    resampling: str | Resampler = "systematic",
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
        num_chains: Number of independent clouds, run together; results get a leading axis. `None`
            runs one cloud without that axis.
        resampling: `"systematic"`, `"stratified"`, `"multinomial"` or `"residual"`; or a function
            `(key, weights, num_samples) -> indices`, such as one of `blackjax.smc.resampling`.
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
        The weighted cloud, its log evidence and its history.

    Raises:
        ValueError: If a number is out of range.
        KeyboardInterrupt: Once the levels at hand are done; its attribute `result` holds the result so far,
            with `completed=False`, from which `state` goes on.
        FloatingPointError: If every particle of a cloud has weight 0, or a log density is +inf; its attribute
            `result` holds the last particles that are worth something, and the trace until the death. A
            warning tells of NaN.
    """
    key = check_key(key)
    num_particles = whole_number("num_particles", num_particles, 2)
    if num_chains is not None:
        num_chains = whole_number("num_chains", num_chains, 1, "`None` runs one.")
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1, "`None` takes all.")
    if chain_length is not None:
        chain_length = whole_number("chain_length", chain_length, 2, "`None` for the usual cloud.")
    chunk = whole_number("levels_per_chunk", levels_per_chunk, 1)
    one_level = level_step(
        model,
        num_particles,
        scheme_of(resampling),
        check_threshold(threshold),
        chain_length,
        batch_size,
        keep_genealogy,
    )
    all_levels = jax.tree.map(np.asarray, model.levels)  # sliced on the host for the same reason
    num_levels = jax.tree.leaves(all_levels)[0].shape[0]
    if state is None:
        cloud, initial_info = start_clouds(
            key, num_chains, model.init, num_particles, batch_size, model.evidence_from > 0
        )
        initial_info = jax.tree.map(jax.device_put, initial_info.unpack())
        done, traces = 0, []
    else:
        cloud, initial_info, done, traces = go_on(state, num_particles, num_chains)

    def result_of(cloud, traces, done) -> SMCResult:
        return make_result(
            model, cloud, initial_info, traces, done, num_levels, num_chains, chain_length
        )

    dead = ~np.isfinite(np.asarray(cloud.log_weights).max(-1))
    if dead.any():
        raise dead_cloud(int(np.argmax(dead)), result_of(cloud, traces, done))
    bar = tqdm(total=num_levels, initial=done, disable=not progress_bar, desc="levels")
    try:
        while done < num_levels:
            # A chunk ends where the cloud of the prior is made, so that its evidence can be set apart.
            until = model.evidence_from if done < model.evidence_from else num_levels
            levels, used = slice_levels(all_levels, done, chunk, until)
            with Deferred() as interrupt:
                cloud, alive, gone, trace = jax.block_until_ready(
                    run_chunk((one_level, levels, np.asarray(used)), cloud)
                )
                trace = unpacked(trace, used)
                traces, done = [*traces, trace], done + int(gone)
                if bool(alive) and done == model.evidence_from:
                    cloud = begin_evidence(cloud)
            if not bool(alive):
                died = np.argmax((np.concatenate([t.ess for t in traces], 1) == 0).any(1))
                raise dead_cloud(int(died), result_of(cloud, traces, done))
            bar.update(used)
            bar.set_postfix(ess=f"{trace.ess[:, -1].mean():.2f}", refresh=False)
            if interrupt.pending:
                raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        error.result = result_of(cloud, traces, done)  # type: ignore[attr-defined]
        error.add_note(
            f"{done} of {num_levels} levels are done; what was computed is in `result` of this exception."
        )
        raise
    finally:
        bar.close()
    result = result_of(cloud, traces, done)
    if result.completed:
        speak_up(in_words(result, "nan"), in_words(result, "infinite"), result)
    return result
