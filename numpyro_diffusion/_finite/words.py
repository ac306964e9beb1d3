"""Where log densities were NaN or +inf, in words: an error or a warning."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import _faq
from .flags import NonFinite

__all__ = [
    "in_words",
    "outside",
    "places",
    "replica_words",
    "report_chains",
    "share_places",
    "speak_up",
]

_PACKAGE = str(Path(__file__).parent.parent)


def places(
    start: Mapping[str, Any],
    later: Mapping[str, Any],
    total: int,
    planned: int,
    *,
    what: str = "particles",
    where: str = "level",
) -> str:
    """Counts by site, at the start and by level, in words; empty if all are 0.

    Args:
        start: Counts at the start, shape `()`.
        later: Counts by level, shape `(num_levels,)`.
        total: Of how many.
        planned: Number of levels.
        what: What is counted.
        where: What a level is called; they count from 1.
    """
    sentences = []
    for site in {**start, **later}:
        found = []
        if int(start.get(site, 0)):
            found.append(f"{int(start[site])} of {total} {what} at the start")
        by_level = np.asarray(later.get(site, np.zeros(0)), int)
        levels = np.flatnonzero(by_level) + 1
        if len(levels):
            worst = int(np.argmax(by_level))
            place = f"{by_level[worst]} of {total} {what} at {where} {worst + 1} (of {planned})"
            if len(levels) > 1:
                place += f", the worst of {len(levels)} {where}s from {levels[0]} to {levels[-1]}"
            found.append(place)
        if found:
            sentences.append(f"site `{site}`: " + " and ".join(found))
    return "; ".join(sentences)


def share_places(
    start: Mapping[str, Any], later: Mapping[str, Any], log_weights: Any, planned: int
) -> str:
    """`places` for shares of the particles of each cloud, shape `(num_chains,)` and by level."""
    total, each = np.size(log_weights), np.shape(log_weights)[-1]

    def counts(share, ndim):
        share = np.asarray(share, float)
        share = share if share.ndim == ndim else share[None]
        return np.rint(each * share).astype(int).sum(0)

    starts = {name: counts(share, 1) for name, share in start.items()}
    return places(starts, {n: counts(share, 2) for n, share in later.items()}, total, planned)


def in_words(result: Any, kind: str) -> str:
    """Describe where a run of clouds met NaN (`"nan"`) or +inf (`"infinite"`); empty if nowhere."""
    start = getattr(result.initial_info, kind, {})
    later = getattr(getattr(result.trace, "info", None), kind, {})
    planned = jax.tree.leaves(result.levels)[0].shape[0]
    return share_places(start, later, result.log_weights, planned)


def replica_words(result: Any, kind: str) -> str:
    """Describe where a run of replica exchange met NaN (`"nan"`) or +inf (`"infinite"`); empty if nowhere."""
    num_replicas = np.size(result.swap_acceptance)
    counts = getattr(result.non_finite, kind)
    total = result.num_proposals
    return places({}, counts, total, num_replicas, what="proposals", where="replica")


def speak_up(nan: str, infinite: str, result: Any = None, *, who: str = "") -> None:
    """Refuse a result after +inf, warn of NaN; says nothing where both are empty.

    Args:
        nan: Where log densities were NaN, in words.
        infinite: Where they were +inf.
        result: What was computed, for the error's attribute `result`.
        who: The sampler, for the message.

    Raises:
        FloatingPointError: If `infinite` is not empty.
    """
    by = f" in `{who}`" if who else ""
    if infinite:
        kept = "" if result is None else " What was computed is in the error's `result`."
        error = FloatingPointError(
            f"log density +inf{by} at {infinite}. No weight is right where a density is infinite, so there "
            "is no result: bound the likelihood (a noise level that reaches "
            f"0?).{kept} {_faq.error_infinite}"
        )
        error.result = result  # type: ignore[attr-defined]
        if nan:
            error.add_note(f"log density NaN at {nan}.")
        raise error
    if nan:
        warnings.warn(
            f"log density NaN{by} at {nan}. What is there was given weight 0, which is right only if the "
            f"density is 0 there. {_faq.nan}",
            stacklevel=outside(),
        )


def outside() -> int:
    """The stack level of the first caller that is not this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def report_chains(flags: NonFinite, result: Any, *, who: str, what: str = "draw") -> None:
    """Speak up about flags that lead with `(num_chains, num_draws)`, on the host."""
    nan, infinite = (_of_chains(each, what) for each in flags)
    speak_up(nan, infinite, result, who=who)


def _of_chains(flags: Mapping[str, Any], what: str) -> str:
    sentences = []
    for site, flag in flags.items():
        flag = np.asarray(flag, bool)
        if flag.any():
            draw = int(np.argmax(flag.any(0)))
            chain = int(np.argmax(flag[:, draw]))
            sentences.append(
                f"site `{site}`: {flag.sum()} of {flag.size} {what}s, first in chain {chain} at {what} {draw}"
            )
    return "; ".join(sentences)
