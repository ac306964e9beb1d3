"""The result of replica exchange."""

from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._finite import NonFinite, replica_words, speak_up
from ..._records import record, record_page
from ..._typing import Array, Position
from ...schemes.kernels import Kernels
from ...schemes.levels import Level
from ...smc import Claims
from ...smc.widening import widening
from .bennett import batch_means_error, bennett

__all__ = ["ReplicaResult", "make_result"]


class ReplicaResult(NamedTuple):
    r"""Draws of the target by ladder, and how they came about.

    Attributes:
        positions: Draws in unconstrained space at clock 0, leading with `(num_chains, num_draws)`, all of the
            same weight. `jax.vmap(jax.vmap(bridge.constrain))(positions)` are the values of the model.
        log_evidence: From all ladders, in nats.
        log_evidence_error: Its standard error, from the means of a tenth of each ladder at a time; wider
            where few fresh states reached the target (`round_trips`), since draws of a ladder that has not
            been refreshed all go back to one state.
        swap_acceptance: By pair of neighbours, one a replica, each with what is on its noisier side; for the
            first that is the distribution beyond. The sum of what is missing to 1 is the barrier $\Lambda$:
            a good ladder has about twice as many replicas.
        acceptance: Of the moves, by replica.
        round_trips: By ladder, how often a state that was drawn afresh reached the target, among the draws
            that are kept. Independent visits of the target are about as many.
        levels: Those on which replicas stand.
        claims: Of which distribution the draws are, and what the evidence is of; its parts are properties.
        num_evaluations: Evaluations of the density and its gradient by all ladders, those of walkers and
            burn-in included, those of the pilot not.
            `None` where those of a move are not known.
        non_finite: By site, how many proposals had a log density of NaN or +inf, by replica.
        num_proposals: Proposals to each replica, by all ladders.
    """

    positions: Position
    log_evidence: float
    log_evidence_error: float
    swap_acceptance: Array
    acceptance: Array
    round_trips: Array
    levels: Level
    claims: Claims
    num_evaluations: int | None
    non_finite: NonFinite = NonFinite({}, {})
    num_proposals: int = 0

    __repr__ = record
    _repr_html_ = record_page

    target = property(attrgetter("claims.target"))
    evidence = property(attrgetter("claims.evidence"))
    exact = property(attrgetter("claims.exact"))
    normalized = property(attrgetter("claims.normalized"))


def make_result(
    kernels: Kernels,
    claims: Claims,
    levels: Level,
    rows,
    num_draws: int,
    evidence_from: int,
    num_walkers: int,
    num_fine: int,
) -> ReplicaResult:
    """The result from what happened at each sweep; its draws are the last ones.

    Args:
        kernels: What was run.
        claims: What the draws and the evidence are.
        levels: Where the replicas stood.
        rows: Positions at the target and exchanges, leading with `(draws, ...)` and `(draws, sweeps, ...)`.
        num_draws: How many of them are kept.
        evidence_from: Replica at which the evidence begins: with the pair after it, unless it is 0.
        num_walkers: Walkers that passed the levels before.
        num_fine: Levels that they passed.
    """
    positions, exchanges = rows
    num_all, thinning = exchanges.even.shape
    keep = lambda leaf: leaf[num_all - num_draws :]
    flat = lambda leaf: keep(leaf).reshape(-1, *leaf.shape[2:])
    kept = jax.tree.map(flat, exchanges)
    terms, series = [], []
    swaps = np.zeros(kept.forward.shape[-1])
    for pair in range(len(swaps)):
        turn = kept.even if pair % 2 == 0 else ~kept.even
        forward, backward = kept.forward[turn, :, pair], kept.backward[turn, :, pair]
        swaps[pair] = np.exp(np.minimum(kept.log_accept[turn, :, pair], 0.0)).mean()
        if pair > evidence_from or evidence_from == 0:
            value, deviation = bennett(_clean(forward), _clean(backward))
            terms.append(value)
            series.append(deviation[: len(kept.even) // 2].T)
    per_move = kernels.moves.joint.evaluations
    moves = float(np.max(np.asarray(levels.num_moves))) * (per_move or 0)
    a_level = 1 + kernels.in_blocks + moves
    sweeps = num_all * thinning * kept.forward.shape[1]
    count = a_level * (sweeps * len(swaps) + num_walkers * num_fine) + kernels.in_blocks * sweeps
    counts = jax.tree.map(lambda flag: flag.sum((0, 1, 2)), exchanges.non_finite)
    trips = kept.arrived.sum(0)
    result = ReplicaResult(
        positions=jax.tree.map(lambda leaf: jnp.asarray(keep(leaf).swapaxes(0, 1)), positions),
        log_evidence=float(np.sum(terms)),
        log_evidence_error=batch_means_error(np.sum(series, 0)) * _of_few(trips),
        swap_acceptance=jnp.asarray(swaps),
        acceptance=jnp.asarray(kept.acceptance.mean((0, 1))),
        round_trips=jnp.asarray(trips),
        levels=levels,
        claims=claims,
        num_evaluations=0
        if not kernels.bridge.diffusion_sites
        else None
        if per_move is None
        else round(count),
        non_finite=counts,
        num_proposals=num_all * thinning * kept.forward.shape[1],
    )
    nan, infinite = (replica_words(result, kind) for kind in ("nan", "infinite"))
    speak_up(nan, infinite, result, who="replica_exchange")
    return result


def _clean(work: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(work), work, -np.inf).astype(float)


def _of_few(trips: np.ndarray) -> float:
    """How much wider the error of a mean over ladders is, each of which had so many independent visits."""
    return float(np.sqrt(np.mean(widening(trips - 1.0) ** 2)))
