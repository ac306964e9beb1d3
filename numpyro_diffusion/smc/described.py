"""The result of a run in a few lines: shapes, evidence and target, without the particles."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from .._html import page, sparkline

if TYPE_CHECKING:
    from .result import SMCResult

__all__ = ["ESS", "as_page", "described", "facts"]

ESS = "effective sample size by level, from 0 to 1"


def facts(result: "SMCResult") -> dict[str, str]:
    """What a result says of itself, in words by topic."""
    shape = result.log_weights.shape
    clouds = f"{shape[0]} clouds of {shape[1]}" if len(shape) == 2 else f"one cloud of {shape[-1]}"
    state = "completed" if result.completed else "interrupted"
    kind = "exact as the number of particles grows" if result.exact else "heuristic"
    return {
        "particles": clouds,
        "levels run": f"{result.num_levels_run}, {state}",
        "sites": _shapes(result.positions, len(shape)),
        "log evidence": _evidences(result),
        "evidence": result.evidence,
        "target": f"{result.target}; {kind}",
    }


def described(self: "SMCResult") -> str:
    """The same as text, a line a topic."""
    lines = [f"  {topic}: {words}" for topic, words in facts(self).items()]
    return "\n".join([f"{type(self).__name__}:", *lines])


def as_page(self: "SMCResult") -> str:
    """The same as HTML, with the effective sample size by level."""
    ess = [] if self.trace is None else [sparkline(self.trace.ess, ESS)]
    return page(type(self).__name__, facts(self), pictures=ess)


def _shapes(positions: Any, num_axes: int) -> str:
    if not isinstance(positions, dict):
        positions = {"position": positions}
    shapes = {n: [np.shape(x)[num_axes:] for x in jax.tree.leaves(v)] for n, v in positions.items()}
    told = {n: found[0] if len(found) == 1 else tuple(found) for n, found in shapes.items()}
    return ", ".join(f"{name} {shape}" for name, shape in told.items())


def _evidences(result: "SMCResult") -> str:
    if any(isinstance(leaf, Tracer) for leaf in result[2:4]):
        return "traced"
    values, errors = np.ravel(result.log_evidence), np.ravel(result.log_evidence_error)
    if not result.weighted:
        return "none: the particles have no weights"
    pairs = [f"{value:.3f} +- {error:.3f}" for value, error in zip(values, errors, strict=True)]
    more = f" and {len(pairs) - 8} more" if len(pairs) > 8 else ""
    return f"{', '.join(pairs[:8])}{more} nats"
