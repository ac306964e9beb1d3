"""Chains of a split Gibbs sampler, and their result."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

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
from ..._records import record, record_page
from ..._typing import Array, Position, PRNGKey
from ...bridge import Bridge
from ...smc import Claims
from ...smc.interrupt import Deferred, Terminable
from ...smc.spread import chains_over
from .base import AbstractSplit, Clock, start
from .pnp import PnPDM

__all__ = ["SplitResult", "split_gibbs"]

_CHUNKS = 20  # between which an interrupt is heard


class SplitResult(NamedTuple):
    r"""Draws of a split sampler by chain, and of which distribution they are.

    Attributes:
        positions: Diffusion sites from the prior's side and the other sites, unconstrained, leading with
            `(num_chains, num_draws)`.
        log_weights: Their log weights, of shape `(num_chains, num_draws)`; where nothing is weighed, 0, and
            $-\infty$ for draws at which the data are impossible (`DAPS`).
            `diagnostics.pareto_k(result)` tells how heavy their tail is.
        seen: Diffusion sites as the data see them, without weights.
        claims: Of which distribution the weighted positions are; its `target` and `exact` are properties.
            There is no evidence.
        seen_target: The distribution of `seen` and the other sites.
        acceptance: Of the moves, by block and chain; 1 where nothing can be refused.
        num_evaluations: Network evaluations of all chains, those of the warm-up included; `None` where those
            of a move are not known.
    """

    positions: Position
    log_weights: Array
    seen: dict[str, Array]
    claims: Claims
    seen_target: str
    acceptance: dict[str, Array]
    num_evaluations: int | None

    __repr__ = record
    _repr_html_ = record_page

    target = property(attrgetter("claims.target"))
    exact = property(attrgetter("claims.exact"))


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

    Raises:
        ValueError: If the bridge is not what the sampler needs, or a number is out of range.
        FloatingPointError: If a chain has met a NaN or an infinite value, which no later sweep can mend, a
            log density was +inf, or no draw of a chain has a weight; all draws are there as its `result`. A
            warning tells of log densities that were NaN.
        KeyboardInterrupt: Once the draws at hand are done; its attribute `result` holds those so far, or
            `None` during the warm-up.

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
        positions, log_weights, seen, _, acceptance = _together(rows)
        sweeps = num_burn_in + done * thinning
        count = None if per_sweep is None else num_chains * sweeps * per_sweep
        acceptance = jax.tree.map(lambda leaf: leaf.mean(1), acceptance)
        return SplitResult(positions, log_weights, seen, claims, seen_target, acceptance, count)

    if isinstance(state.log_weight, Tracer):  # within a program of the caller's
        if num_burn_in:
            state, _ = _sweeps(fixed, state, 0, 1, num_burn_in, num_burn_in)
        _, row = _sweeps(fixed, state, num_burn_in, thinning, num_draws, num_draws)
        return result_of([row], num_draws)

    size = -(-(num_burn_in + num_draws) // _CHUNKS)
    before, rows, done = [], [], -num_burn_in  # draws that are kept, below 0 in the warm-up
    with Terminable():
        while done < num_draws:
            warms_up = done < 0
            count = min(size, (0 if warms_up else num_draws) - done)
            first, each = (done, 1) if warms_up else (done * thinning, thinning)
            with Deferred() as interrupt:
                # Numbers of Python would be static.
                begin, each_time, number = map(np.asarray, (num_burn_in + first, each, count))
                state, row = _sweeps(fixed, state, begin, each_time, number, size)
                row = jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], row)
                (before if warms_up else rows).append(row)
                done += count
            if interrupt.pending:
                error = KeyboardInterrupt()
                error.result = result_of(rows, done) if rows else None  # type: ignore[attr-defined]
                error.add_note(
                    f"{max(done, 0)} of {num_draws} draws are done; they are in `result` of this exception."
                )
                raise error
    result = result_of(rows, num_draws)
    _refuse_nonfinite(result)
    if before:
        # Where the warm-up met NaN is no news: a chain may start anywhere. +inf holds for all of the model.
        warmed = _together(before)[3]._replace(nan={})
        report_chains(warmed, result, who="split_gibbs", what="warm-up sweep")
    report_chains(_together(rows)[3], result, who="split_gibbs")
    _refuse_lost(result)
    return result


def _refuse_nonfinite(result: SplitResult) -> None:
    """Where the first value is that is not a number, if there is one."""
    for name, values in [*result.positions.items(), *result.seen.items()]:
        bad = ~np.isfinite(np.asarray(values)).reshape(*result.log_weights.shape, -1)
        wrong: np.ndarray = np.any(bad, -1)
        if not wrong.any():
            continue
        draw = int(np.argmax(np.any(wrong, 0)))
        chain, count = int(np.argmax(wrong[:, draw])), int(np.sum(np.any(wrong, 1)))
        error = FloatingPointError(
            f"site {name!r} is not finite in {count} of {len(wrong)} chains, first in chain {chain} at draw "
            f"{draw}. Look at the denoiser at draws from its noisiest level, or give chains "
            f"finite values to start from (`initial`). {_faq.lost}"
        )
        error.result = result  # type: ignore[attr-defined]
        raise error


def _refuse_lost(result: SplitResult) -> None:
    """Chains of which no draw has a weight."""
    lost = ~np.isfinite(np.asarray(result.log_weights)).any(1)
    if lost.any():
        error = FloatingPointError(
            f"every draw of chain {int(np.argmax(lost))} has weight 0: the density of the data is 0 at what "
            "it sees, or at the prior's side of it. Use a smaller `noise_level`, a longer `num_burn_in`, or "
            f"start where the data are possible (`initial`). {_faq.dead_cloud}"
        )
        error.result = result  # type: ignore[attr-defined]
        raise error


def _together(rows: list[Any]) -> Any:
    """Rows of several chunks, `(draws, chains, ...)`, as `(chains, draws, ...)`."""

    def one(*parts):
        return jnp.moveaxis(jnp.concatenate([jnp.asarray(part) for part in parts]), 0, 1)

    return jax.tree.map(one, *rows)


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
