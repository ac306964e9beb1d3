"""A whole run as one pure function, to be compiled, mapped over keys and data, and composed."""

import jax
import jax.numpy as jnp

from .._arguments import whole_number, whole_or_none
from .._prng import check_key
from .._typing import PRNGKey
from .chunks import level_step, start_clouds
from .feynman_kac import FeynmanKac
from .resampling import check_threshold, scheme_of
from .result import SMCResult, Trace, begin_evidence, evidence_of, first_cloud
from .step import Resampler

__all__ = ["sample"]


def sample(
    key: PRNGKey,
    model: FeynmanKac,
    num_particles: int = 512,
    *,
    num_chains: int | None = None,
    resampling: str | Resampler = "systematic",
    threshold: float = 0.5,
    chain_length: int | None = None,
    batch_size: int | None = None,
) -> SMCResult:
    r"""Run a Feynman-Kac model as a pure function: nothing is read from or told to the host.

    The numbers are those of `run_smc`, with which it shares its steps. `jax.jit` compiles it whole, and
    `jax.vmap` maps it over keys, and over models that differ in their arrays alone, such as posteriors of
    many data sets. Nothing can be raised from within: a cloud that died has a log evidence of $-\infty$, all
    its weights are 0, and its particles mean nothing.

    Args:
        key: PRNG key.
        model: What to run.
        num_particles: Particles a cloud, at least 2.
        num_chains: Number of independent clouds; `None` runs one without that axis.
        resampling: As in `run_smc`.
        threshold: As in `run_smc`.
        chain_length: As in `run_smc`.
        batch_size: As in `run_smc`.

    Returns:
        The result, with `identity=None`: it cannot be gone on from.

    Raises:
        ValueError: If a number is out of range.
    """
    key = check_key(key)
    num_particles = whole_number("num_particles", num_particles, 2)
    num_chains = whole_or_none("num_chains", num_chains, 1, "`None` runs one.")
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    chain_length = whole_or_none("chain_length", chain_length, 2, "`None` for the usual cloud.")
    share = check_threshold(threshold)
    resample = scheme_of(resampling)
    one_level = level_step(model, num_particles, resample, share, chain_length, batch_size, False)
    levels = jax.tree.map(jnp.asarray, model.levels)
    num_levels = jax.tree.leaves(levels)[0].shape[0]
    start = start_clouds.__wrapped__  # without a compilation of its own
    cloud, info = start(
        key, num_chains, model.init, num_particles, batch_size, model.evidence_from > 0
    )
    rows = []
    for first, last in ((0, model.evidence_from), (model.evidence_from, num_levels)):
        if last > first:
            part = jax.tree.map(lambda leaf, s=slice(first, last): leaf[s], levels)
            cloud, row = jax.lax.scan(lambda cloud, level: one_level(cloud, level), cloud, part)
            rows.append(row)
        if last == model.evidence_from and last:
            cloud = begin_evidence(cloud)
    by_cloud = lambda *parts: jnp.concatenate(parts).swapaxes(0, 1)
    trace: Trace = jax.tree.map(by_cloud, *rows)
    trace = trace._replace(info=trace.info.unpacked())
    log_evidence, errors = evidence_of(
        cloud._replace(particles=None), chain_length is not None, model.claims.weighted
    )
    result = SMCResult(
        positions=model.position(cloud.particles),
        log_weights=cloud.log_weights,
        log_evidence=log_evidence,
        log_evidence_error=errors,
        initial_info=info.unpacked(),
        trace=trace,
        levels=levels,
        claims=model.claims,
        completed=True,
        state=cloud,
        num_levels_run=num_levels,
        chain_length=chain_length,
    )
    return result if num_chains is not None else first_cloud(result)
