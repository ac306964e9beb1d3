"""Chains of a split Gibbs sampler, and their result."""

import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from ... import _faq
from ..._arguments import whole_number, whole_numbers
from ..._familiar import familiar
from ..._finite import report_chains
from ..._prng import check_key, lean
from ..._staging import fingerprint
from ..._typing import Position, PRNGKey
from ...bridge import Bridge
from ...smc.identity import digest
from ...smc.interrupt import Deferred, Terminable
from ...smc.spread import chains_over
from ..kept import KeptChains, template_of_rows
from .base import AbstractSplit, Clock, start
from .pnp import PnPDM
from .result import SplitResult, cut, refuse_lost, refuse_nonfinite, together

__all__ = ["split_gibbs"]

_CHUNKS = 20  # between which an interrupt is heard


@familiar
def split_gibbs(
    key: PRNGKey,
    bridge: Bridge,
    sampler: AbstractSplit | None = None,
    *,
    num_draws: int = 1000,
    num_burn_in: int = 300,
    num_chains: int = 4,
    thinning: int = 1,
    initial: Position | None = None,
    devices: Sequence[Any] | Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 60.0,
) -> SplitResult:
    """Chains of `PnPDM` or `DAPS` over a bridge.

    Chains start from draws of the prior. During the warm-up the noise falls and step sizes settle; after it
    nothing changes any more.

    Args:
        key: PRNG key.
        bridge: From `nd.from_energy` or `nd.from_model`; for a `PathBridge` a denoiser is enough.
        sampler: `PnPDM()` by default.
        num_draws: Draws of each chain that are kept.
        num_burn_in: Sweeps of the warm-up.
        num_chains: Independent chains.
        thinning: Sweeps from one draw to the next.
        initial: Where chains start, positions with a leading axis of chains; draws of the prior by default.
        devices: Devices over which the chains are shared out, a multiple of their number.
        checkpoint: A file to which the chains are written as they go, and from which the same call goes on to
            the same bits if the process was killed.
        checkpoint_every: Seconds between two writings.

    Raises:
        ValueError: If the bridge is not what the sampler needs, a number is out of range, or the checkpoint
            is of another run.
        RuntimeError: If another run writes to the checkpoint.
        TypeError: For a checkpoint within a program of the caller's, such as `jax.jit`.
        FloatingPointError: If a chain has met a NaN or an infinite value, which no later sweep can mend, a
            log density was +inf, or no draw of a chain has a weight; all draws are there as its `result`. A
            warning tells of log densities that were NaN.
        KeyboardInterrupt: Once the draws at hand are done, and are in the checkpoint; its attribute `result`
            holds those so far, or `None` during the warm-up.

    Example:
        >>> bridge = nd.from_energy(digits, lambda x: -0.5 * jnp.sum((y - blur @ x.ravel()) ** 2) / 0.1**2)
        >>> found = nd.samplers.split_gibbs(jax.random.key(0), bridge, nd.samplers.PnPDM(noise_level=0.05))
        >>> nd.diagnostics.pareto_k(found)
    """
    key = check_key(key)
    num_burn_in = whole_number("num_burn_in", num_burn_in, 0)
    num_draws, num_chains, thinning = whole_numbers(
        1, num_draws=num_draws, num_chains=num_chains, thinning=thinning
    )
    sampler = PnPDM() if sampler is None else sampler
    claims, seen_target = sampler.claims(bridge), sampler.seen_target(bridge)
    keys = jax.random.split(lean(key), num_chains)
    chains, shared = chains_over(devices, num_chains, (keys, initial), (bridge, sampler))
    state, keys = _started(*chains, *shared)
    fixed = (keys, *shared, jnp.asarray(num_burn_in))
    per_sweep = sampler.evaluations(bridge)

    def result_of(rows, done) -> SplitResult:
        positions, log_weights, seen, _, acceptance = together(rows)
        sweeps = num_burn_in + done * thinning
        count = None if per_sweep is None else num_chains * sweeps * per_sweep
        acceptance = jax.tree.map(lambda leaf: leaf.mean(1), acceptance)
        return SplitResult(positions, log_weights, seen, claims, seen_target, acceptance, count)

    if isinstance(state.log_weight, Tracer):  # within a program of the caller's
        if checkpoint is not None:
            raise TypeError(
                "`split_gibbs` writes no checkpoint from within a program of the caller's: expected a call "
                "outside of `jax.jit` and `jax.vmap`; got one inside. Leave `checkpoint` out, or call it "
                f"there. {_faq.needs_values}"
            )
        if num_burn_in:
            state, _ = _sweeps(fixed, state, 0, 1, num_burn_in, num_burn_in)
        _, row = _sweeps(fixed, state, num_burn_in, thinning, num_draws, num_draws)
        return result_of([row], num_draws)

    size = -(-(num_burn_in + num_draws) // _CHUNKS)
    # One row a sweep of the warm-up, and one a draw.
    split = lambda rows: cut(rows, num_burn_in)
    settings = {
        "num_draws": num_draws,
        "num_burn_in": num_burn_in,
        "num_chains": num_chains,
        "thinning": thinning,
        "initial": None if initial is None else digest(initial),
    }
    sweep = lambda: fingerprint(lambda state: _sweeps(fixed, state, 0, 1, 1, size), state)
    with (
        KeptChains(checkpoint, checkpoint_every, "split sampler", key, sweep, settings) as kept,
        Terminable(),
    ):
        row = lambda: template_of_rows(lambda: _sweeps(fixed, state, 0, 1, 1, size))
        state, rows, done = kept.read(state, row)
        state, _ = chains_over(devices, num_chains, state, ())
        while done < num_burn_in + num_draws:
            warms_up = done < num_burn_in
            count = min(size, (0 if warms_up else num_draws) + num_burn_in - done)
            ready = max(0, done - num_burn_in)
            first, each = (done, 1) if warms_up else (num_burn_in + ready * thinning, thinning)
            with Deferred() as interrupt:
                # Numbers of Python would be static.
                begin, each_time, number = map(np.asarray, (first, each, count))
                state, row = _sweeps(fixed, state, begin, each_time, number, size)
                rows.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], row))
                done += count
                over = done == num_burn_in + num_draws
                kept.keep(state, rows, done, interrupt.pending or over)
            if interrupt.pending:
                ready = max(0, done - num_burn_in)
                error = KeyboardInterrupt()
                error.result = result_of(split(rows)[1], ready) if ready else None  # type: ignore[attr-defined]
                error.add_note(
                    f"{ready} of {num_draws} draws are done; they are in `result` of this exception."
                )
                raise error
    before, rows = split(rows)
    result = result_of(rows, num_draws)
    refuse_nonfinite(result)
    if before:
        # Where the warm-up met NaN is no news: a chain may start anywhere. +inf holds for all of the model.
        warmed = together(before)[3]._replace(nan={})
        report_chains(warmed, result, who="split_gibbs", what="warm-up sweep")
    report_chains(together(rows)[3], result, who="split_gibbs")
    refuse_lost(result)
    return result


@eqx.filter_jit
def _started(keys, initial, bridge, sampler):
    """All chains at their start, and the keys of their sweeps."""

    def one(key, z):
        key_start, key_run = jax.random.split(key)
        return sampler.init(bridge, start(key_start, bridge) if z is None else z), key_run

    return jax.vmap(one, in_axes=(0, None if initial is None else 0))(keys, initial)


@eqx.filter_jit
def _sweeps(fixed, state, first, thinning, count, size: int):
    """Sweeps from number `first` on, with a row after every `thinning` of them: `count` of `size` rows.

    One program for the warm-up and for all chunks of draws.
    """
    keys, bridge, sampler, num_warmup = fixed
    first, thinning, count = (jnp.asarray(number) for number in (first, thinning, count))

    def sweep(i, state):
        one = lambda key, state: sampler.sweep(
            jax.random.fold_in(key, i), bridge, state, Clock(i, num_warmup)
        )
        return jax.vmap(one)(keys, state)

    def draw(state, begin):
        def step(j, carry):
            state, acceptance, met = carry
            state = sweep(begin + j, state)
            acceptance = jax.tree.map(jnp.add, acceptance, state.acceptance)
            return state, acceptance, jax.tree.map(jnp.logical_or, met, state.met)

        none = jax.tree.map(jnp.zeros_like, (state.acceptance, state.met))
        state, acceptance, met = jax.lax.fori_loop(0, thinning, step, (state, *none))
        acceptance = jax.tree.map(lambda total: total / thinning, acceptance)
        return state, (state.position, state.log_weight, state.seen, met, acceptance)

    def body(k, carry):
        state, rows = carry
        state, row = draw(state, first + k * thinning)
        return state, jax.tree.map(lambda whole, one: whole.at[k].set(one), rows, row)

    shapes = jax.eval_shape(lambda state: draw(state, first)[1], state)
    rows = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, rows))
