"""The verdict of a run in words: densities that were not finite, failures, and remedies.

Each finding is a function of its own that answers with nothing if all is well.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._finite import in_words, share_places
from ..bridge import Bridge
from ..samplers.replica import ReplicaResult
from ..smc import SMCResult
from .evidence import collapse, leaning, reservations
from .exchange import verdict_of_ladders
from .families import differ
from .links import more
from .steps import piecewise_constant
from .tails import pareto_k

__all__ = ["non_finite", "verdict"]

_FEW_CLOUDS = 4
_LEVELS_A_FAMILY = 3


def non_finite(result: SMCResult, kind: str) -> str:
    """Describe where log densities were NaN or +inf; empty if nowhere.

    Args:
        result: Result of a scheme that reports the shares `nan` and `infinite` by site.
        kind: `"nan"` or `"infinite"`.

    Returns:
        For instance "site `y`: 12 of 2048 particles at level 4 (of 31)".
    """
    return in_words(result, kind)


def _places(result: SMCResult, start: Mapping[str, Any], later: Mapping[str, Any]) -> str:
    """Where shares of particles by site, at the start and by level, are not 0."""
    return share_places(start, later, result.log_weights, _num_levels(result))


def _num_levels(result: SMCResult) -> int:
    return jax.tree.leaves(result.levels)[0].shape[0]


def verdict(result: SMCResult | ReplicaResult, bridge: Bridge | None = None) -> str:
    """A judgement on a run in plain words, with remedies; one finding a line, and where to read more.

    It judges the cloud that is there. What no particle has met leaves no trace in it.

    Args:
        result: Of `run_smc`, `SMC` or `replica_exchange`.
        bridge: What `run_smc` has run, to look at its likelihood too.
    """
    if isinstance(result, ReplicaResult):
        return verdict_of_ladders(result)
    log_evidence = np.atleast_1d(np.asarray(result.log_evidence, float))
    if result.trace is None:
        return more("Not finished: no level was run. `resume()` goes on.")
    trace = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(log_evidence), -1), result.trace)
    # In a waste-free cloud one state of a chain is there at the start of a level, and can have offspring.
    num_particles = np.asarray(result.log_weights).shape[-1] // (result.chain_length or 1)
    findings = [
        _unfinished(result),
        _unweighted(result),
        _dead_values(result),
        _lost_to_zeros(result),
        *reservations(result),
        _few_families(trace.unique_ancestors, num_particles, result),
        _steep_level(trace.conditional_ess),
        _uneven_weights(trace.ess),
        _heavy_tail(result),
        piecewise_constant(result, bridge) if bridge is not None and result.completed else "",
        _disagreement(log_evidence) or differ(result),
        _acceptance("moves", getattr(trace.info, "acceptance", None), "moves"),
        _acceptance(
            "moves of the other sites",
            getattr(trace.info, "other_acceptance", None),
            "num_other",
        ),
    ]
    findings = [finding for finding in findings if finding]
    findings = findings or [leaning(result) or _all_well(trace, log_evidence, num_particles)]
    if bridge is not None and _has_no_data(bridge):
        findings.insert(0, _NO_DATA)
    return "\n".join(map(more, findings))


_NO_DATA = (
    "No site is observed and there is no factor: these are draws of the prior. If data were meant, `obs=` "
    "was left out, or they were not passed to `run`."
)


def _has_no_data(bridge: Bridge) -> bool:
    """Whether nothing of what a bridge was made from is a likelihood."""
    z = jax.eval_shape(bridge.sample_base, jax.random.key(0))
    rest = jax.eval_shape(lambda z: bridge.rest(z, {n: z[n] for n in bridge.diffusion_sites}), z)
    return rest.smooth is None and not rest.edges and rest.labelled is None


def _all_well(trace, log_evidence: np.ndarray, num_particles: int) -> str:
    ess, ancestors = trace.ess[:, -1].min(), int(trace.unique_ancestors[:, -1].min())
    words = (
        f"Nothing to worry about in what the particles have seen: at least {ancestors} of {num_particles} "
        f"starting particles have offspring, the final effective sample size is at least {ess:.0%} of a cloud"
    )
    count = len(log_evidence)
    if count < 2:
        return words + ". But one cloud cannot be checked against another: run two or more."
    words += f", and the clouds agree on the evidence within {np.ptp(log_evidence):.2f} nats."
    if count <= _FEW_CLOUDS:
        words += f" {count} are few clouds: they can agree by chance."
    return words


def _unfinished(result: SMCResult) -> str:
    if result.completed:
        return ""
    return (
        f"Not finished: {result.num_levels_run} of {_num_levels(result)} levels were run, so the "
        "particles follow a distribution between noise and the target. `resume()` goes on."
    )


def _unweighted(result: SMCResult) -> str:
    if result.weighted:
        return ""
    return (
        "A heuristic: weights were left out, so the draws follow what the proposals lead to and not the "
        "target, there is no evidence, and nothing here can tell how far off they are. Use "
        "the scheme without `unweighted`."
    )


def _dead_values(result: SMCResult) -> str:
    found = [
        (what, non_finite(result, kind)) for kind, what in (("nan", "NaN"), ("infinite", "+inf"))
    ]
    lines = [f"Log density {what} at {where}." for what, where in found if where]
    if lines and lines[-1].startswith("Log density +inf"):
        lines.append("No weight is right for a particle of infinite density: bound the likelihood.")
    return " ".join(lines)


def _lost_to_zeros(result: SMCResult) -> str:
    """Particles that met a density of 0 where noise was left; nothing where supports are nested.

    A particle of weight 0 at a noisy level has no offspring, and the clean values that it would have come
    to are allowed, perhaps: what they hold is missing from the evidence, and in the weights nothing shows.
    Where the likelihood comes last, at clock 0, the set of what is allowed only shrinks.
    """
    levels = result.levels
    clock = getattr(levels, "next_clock", None)
    zeros = getattr(getattr(result.trace, "info", None), "zero", None)
    if clock is None or not zeros:
        return ""
    noisy = np.asarray(clock) > 0
    # The trace of a run that was interrupted, or that died, has fewer levels than were planned.
    shares = {name: np.asarray(share) for name, share in zeros.items()}
    seen = {name: np.where(noisy[: s.shape[-1]], s, 0.0) for name, s in shares.items()}
    where = _places(result, {}, seen)
    if not where:
        return ""
    return (
        f"The density is 0 where noise is left, at {where}. Values that become possible as the noise "
        "falls are lost with such particles, so the evidence may be too low, and draws too near "
        "to where nothing was lost, by more than any error says; more particles do not mend it. "
        "`LikelihoodTempered()` lets the likelihood in after the noise and loses none."
    )


def _few_families(ancestors: np.ndarray, num_particles: int, result: SMCResult) -> str:
    """A cloud that is too small for its number of levels, each of which costs it families."""
    left, num_levels = int(ancestors[:, -1].min()), ancestors.shape[1]
    if left >= num_levels / _LEVELS_A_FAMILY or collapse(result):
        return ""
    return (
        f"The clouds are small for {num_levels} levels: {left} of {num_particles} starting particles have "
        "offspring at the end of one of them. The evidence is more likely too low than too high, by more "
        "than its error says. Try more particles, or more moves a level."
    )


def _steep_level(shares: np.ndarray) -> str:
    worst, typical = shares.min(0), float(np.median(shares))
    level = int(np.argmin(worst))
    if worst[level] >= 0.5 * typical:
        return ""
    return (
        f"Level {level + 1} kept {worst[level]:.0%} of a cloud's effective sample size, where a "
        f"typical level keeps {typical:.0%}: the levels are too far apart there. Try a larger pilot "
        "cloud (`pilot=`) or a higher `conditional_ess`."
    )


def _uneven_weights(ess: np.ndarray) -> str:
    share = float(ess[:, -1].min())
    if share >= 0.2:
        return ""
    return (
        f"The final effective sample size is {share:.1%} of a cloud: few particles carry the answer. "
        "Try more levels (a higher `conditional_ess`) or more moves."
    )


def _heavy_tail(result: SMCResult) -> str:
    shapes = pareto_k(result)
    if np.isnan(shapes).all() or np.nanmax(shapes) <= 0.7:
        return ""
    worst = np.nanmax(shapes)
    shape = f"Pareto shape {worst:.1f}, above 0.7" if np.isfinite(worst) else "no Pareto shape fits"
    return (
        f"The final weights have a heavy tail ({shape}, in cloud {int(np.nanargmax(shapes))}): particles "
        "not seen would matter. Try more levels (a higher `conditional_ess`) or more particles."
    )


def _disagreement(log_evidence: np.ndarray) -> str:
    spread = float(np.std(log_evidence))
    if np.isnan(spread) or spread <= 0.5:
        return ""
    return (
        f"The clouds disagree on the log evidence: their standard deviation is {spread:.1f} nats, so "
        "neither it nor its error means much, and modes may be missing from some clouds. Try more "
        "particles or moves; where coordinates are tied together, a `rank` of the moves."
    )


def _acceptance(what: str, rates: np.ndarray | None, option: str) -> str:
    if rates is None or np.all(rates == 1):  # there was nothing to move
        return ""
    by_level = rates.mean(0)
    level, typical = int(np.argmin(by_level)), float(np.median(by_level))
    if by_level[level] < 0.1:
        return (
            f"The {what} accept {by_level[level]:.0%} at level {level + 1} ({typical:.0%} typically): "
            f"their step is too large there. Try a larger pilot cloud (`pilot=`) or more `{option}`."
        )
    if typical > 0.95:
        return (
            f"The {what} accept {typical:.0%}: their steps are smaller than need be. Try a larger "
            f"pilot cloud (`pilot=`) or more `{option}`."
        )
    return ""
