"""Diagnostics of replica exchange, in words."""

import numpy as np

from .._finite import replica_words
from ..samplers.replica import ReplicaResult
from .links import more

__all__ = ["verdict_of_ladders"]

_FEW_TRIPS = 10  # independent visits of the target, by ladder, below which an error is a guess


def verdict_of_ladders(result: ReplicaResult) -> str:
    """A judgement on a run of replica exchange in plain words, with remedies; one finding a line."""
    found = (_nan(result), _gap(result), _trips(result), _error(result))
    findings = [more(each) for each in found if each]
    if findings:
        return "\n".join(findings)
    trips, swaps = np.asarray(result.round_trips), np.asarray(result.swap_acceptance)
    return more(
        f"Nothing to worry about in what the ladders have seen: at least {trips.min()} fresh states have "
        f"reached the target of each of {len(trips)} ladders, and neighbours swap at least {swaps.min():.0%} "
        "of the time."
    )


def _nan(result: ReplicaResult) -> str:
    where = replica_words(result, "nan")
    return f"Log density NaN at {where}." if where else ""


def _gap(result: ReplicaResult) -> str:
    swaps = np.asarray(result.swap_acceptance)
    pair = int(np.argmin(swaps))
    if swaps[pair] >= 0.1:
        return ""
    beyond = "the noisy end" if pair == 0 else f"replica {pair}"
    return (
        f"Replica {pair + 1} and {beyond} swap {swaps[pair]:.0%} of the time: they are too far apart, and "
        "the evidence rests on that pair. Try more replicas (`num_replicas`)."
    )


def _trips(result: ReplicaResult) -> str:
    trips = np.asarray(result.round_trips)
    ladder = int(np.argmin(trips))
    if trips[ladder] >= _FEW_TRIPS:
        return ""
    return (
        f"In ladder {ladder} {trips[ladder]} states that were drawn afresh reached the target: modes may be "
        "missing, and errors are too small. Try more draws (`num_draws`), or more replicas where few swaps "
        "are accepted."
    )


def _error(result: ReplicaResult) -> str:
    if np.isfinite(result.log_evidence_error) and result.log_evidence_error <= 0.5:
        return ""
    return (
        f"The error of the log evidence is {result.log_evidence_error:.1f} nats, so neither means much. Try "
        "more draws (`num_draws`)."
    )
