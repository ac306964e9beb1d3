r"""The engine: sequential Monte Carlo (SMC) over a Feynman-Kac model.

One loop serves every scheme. A cloud of weighted particles is resampled when its effective sample
size falls below a share of its number, then every particle takes one step and multiplies its weight.
The log of the mean weight, collected whenever weights are reset and once more at the end, is an
estimate of the log evidence whose exponential is unbiased.

The levels are run in a few jitted chunks of one length, so that nothing is compiled twice, a
progress bar can move, and an interrupt keeps what is done.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from .. import _faq
from .._arguments import positive, whole_number, whole_or_none
from .._familiar import familiar
from .._finite import in_words, speak_up
from .._prng import check_key
from .._progress import progress
from .._typing import Array, PRNGKey
from .checkpoint import Checkpoint, Saved, template_of
from .chunks import level_step, run_chunk, slice_levels, start_clouds
from .feynman_kac import FeynmanKac
from .footprint import check_batch, safe_batch
from .identity import Identity
from .interrupt import Deferred, Terminable
from .resampling import check_threshold, scheme_of, systematic
from .result import (
    SMCResult,
    begin_evidence,
    dead_cloud,
    go_on,
    make_result,
    unpacked,
)
from .spread import spread_over
from .step import Resampler

__all__ = ["resample_equal", "run_smc"]


def resample_equal(key: PRNGKey, log_weights: Array, num_samples: int) -> Array:
    """Indices of an equally weighted cloud, by systematic resampling. For display and plots."""
    key = check_key(key)
    num_samples = whole_number("num_samples", num_samples, 1)
    return systematic(key, jax.nn.softmax(log_weights), num_samples)


@familiar
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
    batch_size: int | str | None = None,
    progress_bar: bool = False,
    levels_per_chunk: int = 8,
    state: SMCResult | None = None,
    devices: Sequence[Any] | Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 60.0,
    max_seconds: float | None = None,
    max_levels: int | None = None,
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
        batch_size: Particles that step at once, to bound memory; all of them if `None`, and with `"auto"` as
            many as half of the free memory holds (a program of one level is compiled to find out).
        progress_bar: Show a progress bar over the levels.
        levels_per_chunk: Levels that are run at once: the grain of progress bar and interrupt. A
            fixed length, so that another number of levels compiles nothing.
        state: An interrupted result to go on from, with the same key, model and arguments.
        devices: Devices, or a mesh of them, over which the particles of all clouds are spread; those of
            other processes too, under `jax.distributed.initialize`. Numbers are those of one device but for
            rounding.
        checkpoint: A file to which the run is written as it goes, and from which the same call goes on to
            the same bits if the process was killed. The file before it stays beside it, as `.previous`. On
            one host.
        checkpoint_every: Seconds between two writings, which is also what a killed process loses at most.
        max_seconds: Stop at the first level chunk after so many seconds, compilation included. The result
            is then not `completed`, and its `target` says which distribution it is of; `state` goes on.
        max_levels: Stop after so many levels, likewise.

    Returns:
        The weighted cloud, its log evidence and its history.

    Raises:
        ValueError: If a number is out of range, or `state` or the checkpoint is of another run.
        RuntimeError: If another run writes to the checkpoint.
        KeyboardInterrupt: Once the levels at hand are done; its attribute `result` holds the result so far,
            with `completed=False`, from which `state` goes on.
        FloatingPointError: If every particle of a cloud has weight 0, or a log density is +inf; its attribute
            `result` holds the last particles that are worth something, and the trace until the death. A
            warning tells of NaN.
    """
    if not isinstance(key, Tracer):
        key = check_key(key)
    num_particles = whole_number("num_particles", num_particles, 2)
    if num_chains is not None:
        num_chains = whole_number("num_chains", num_chains, 1, "`None` runs one.")
    if chain_length is not None:
        chain_length = whole_number("chain_length", chain_length, 2, "`None` for the usual cloud.")
    check_batch(batch_size)
    if isinstance(batch_size, str):
        batch_size = safe_batch(model, num_particles * (num_chains or 1), chain_length)
    chunk = whole_number("levels_per_chunk", levels_per_chunk, 1)
    max_levels = whole_or_none("max_levels", max_levels, 1, "`None` for all.")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((key, model.levels))):
        raise TypeError(
            "`run_smc` steers its levels from the host, and cannot be traced by `jax.jit` or `jax.vmap`: "
            f"call the pure `nd.smc.sample(key, model, num_particles)` there. {_faq.needs_values}"
        )
    deadline = None if max_seconds is None else monotonic() + positive("max_seconds", max_seconds)
    threshold = check_threshold(threshold)
    spread = spread_over(devices, num_chains or 1, num_particles // (chain_length or 1))
    if spread is not None:
        spread.check_alone(checkpoint=checkpoint, max_seconds=max_seconds, state=state)
    one_level = level_step(
        model,
        num_particles,
        scheme_of(resampling),
        threshold,
        chain_length,
        batch_size,
        keep_genealogy,
        spread,
    )
    settings = {
        "num_particles": num_particles,
        "num_chains": num_chains,
        "resampling": resampling,
        "threshold": float(threshold),
        "chain_length": chain_length,
        "keep_genealogy": keep_genealogy,
    }
    identity = Identity(key, model, settings)
    all_levels = jax.tree.map(np.asarray, model.levels)  # sliced on the host for the same reason
    num_levels = jax.tree.leaves(all_levels)[0].shape[0]
    last = num_levels if max_levels is None else min(num_levels, max_levels)
    init = model.init if spread is None else spread.everywhere(model.init)
    one_level = one_level if spread is None else spread.everywhere(one_level)
    with_prior = model.evidence_from > 0
    arguments = key, num_chains, init, num_particles, batch_size, with_prior, spread

    def result_of(cloud, traces, done) -> SMCResult:
        whole = cloud if spread is None else spread.gathered(cloud)
        return make_result(
            model, whole, initial_info, traces, done, num_levels, num_chains, chain_length, identity
        )

    with ExitStack() as stack:
        stack.enter_context(Terminable())
        file, saved = None, None
        if checkpoint is not None:
            every = positive("checkpoint_every", checkpoint_every)
            file = stack.enter_context(Checkpoint(checkpoint, identity, every))
            saved = file.read(template_of(arguments, one_level, all_levels))
        bar = stack.enter_context(
            progress(
                total=num_levels,
                enabled=progress_bar,
                desc="levels",
                compiles="levels (once for a model)",
            )  # fmt: skip
        )
        if state is not None:
            cloud, initial_info, done, traces = go_on(state, num_particles, num_chains, identity)
        elif saved is not None:
            cloud, initial_info, done = saved.cloud, saved.initial_info, saved.done
            traces = [] if saved.trace is None else [saved.trace]
        else:
            cloud, initial_info = start_clouds(*arguments)
            initial_info = jax.tree.map(jax.device_put, initial_info.unpack())
            done, traces = 0, []

        def save(done):
            assert file is not None
            trace = (
                jax.tree.map(lambda *parts: np.concatenate(parts, 1), *traces) if traces else None
            )
            whole = cloud if spread is None else spread.gathered(cloud)
            if jax.process_index() == 0:
                file.write(Saved(whole, initial_info, trace, done))

        dead = ~np.isfinite(np.asarray(cloud.log_weights).max(-1))
        if dead.any():
            raise dead_cloud(int(np.argmax(dead)), result_of(cloud, traces, done))
        bar.initial = bar.n = done
        try:
            while done < last and not (deadline and monotonic() > deadline):
                # A chunk ends where the cloud of the prior is made, so that its evidence can be set apart.
                until = min(last, model.evidence_from if done < model.evidence_from else last)
                levels, used = slice_levels(all_levels, done, chunk, until)
                with Deferred() as interrupt:
                    cloud, alive, gone, trace = jax.block_until_ready(
                        run_chunk((one_level, levels, np.asarray(used)), cloud)
                    )
                    trace = unpacked(trace, used)
                    traces, done = [*traces, trace], done + int(gone)
                    if bool(alive) and done == model.evidence_from:
                        cloud = begin_evidence(cloud)
                    if (
                        file is not None
                        and bool(alive)
                        and (file.due or interrupt.pending or done == last)
                    ):
                        save(done)
                if not bool(alive):
                    died = np.argmax((np.concatenate([t.ess for t in traces], 1) == 0).any(1))
                    raise dead_cloud(int(died), result_of(cloud, traces, done))
                bar.set_postfix(ess=f"{trace.ess[:, -1].mean():.2f}", refresh=False)
                bar.update(used)
                if interrupt.pending:
                    raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            error.result = result_of(cloud, traces, done)  # type: ignore[attr-defined]
            error.add_note(
                f"{done} of {num_levels} levels are done; what was computed is in `result` of this exception."
            )
            raise
    result = result_of(cloud, traces, done)
    if result.completed:
        speak_up(in_words(result, "nan"), in_words(result, "infinite"), result)
    return result
