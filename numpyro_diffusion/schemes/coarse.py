"""Fewer levels than a pilot chose, for a budget; weights are right for the same posterior."""

import jax
import numpy as np

from ..smc import FeynmanKac
from .levels import Level

__all__ = ["coarsened", "fitting"]


def coarsened(model: FeynmanKac, keep: np.ndarray) -> FeynmanKac:
    """The model with some of its levels, each of which leads to where the next one begins.

    Particles move as they did at these levels, and take longer strides between them, for which they are
    weighed: the distribution at the end is the same, and weights are less even.

    Args:
        model: Of a scheme of moves, a transport and weights.
        keep: Indices of the levels that are kept, rising, with the first and the last.
    """
    levels: Level = jax.tree.map(lambda leaf: np.asarray(leaf)[keep], model.levels)
    onward = lambda here, there: np.concatenate([here[1:], there[-1:]])
    levels = levels._replace(
        next_clock=onward(levels.clock, levels.next_clock),
        next_power=onward(levels.power, levels.next_power),
        next_floor={name: onward(levels.floor[name], f) for name, f in levels.next_floor.items()},
    )
    begins = int(np.searchsorted(keep, model.evidence_from))
    return model._replace(levels=jax.tree.map(jax.device_put, levels), evidence_from=begins)


def fitting(
    model: FeynmanKac, costs: np.ndarray, budget: float, done: int = 0
) -> np.ndarray | None:
    """Indices of as many levels as a budget pays for, at even distances; `None` if it pays for too few.

    Args:
        model: Of a scheme of moves, a transport and weights.
        costs: Of each level.
        budget: For the levels after those that are done.
        done: Levels that were run, and are kept.
    """
    number = len(costs)
    must = [done, number - 1] + [model.evidence_from] * (model.evidence_from > done)
    for count in range(number - done, 0, -1):
        even = np.round(np.linspace(done, number - 1, count)).astype(int)
        keep = np.unique(np.concatenate([must, even]))
        if costs[keep].sum() <= budget:
            return np.concatenate([np.arange(done), keep])
    return None
