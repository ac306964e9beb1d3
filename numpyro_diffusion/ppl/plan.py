"""What a run will cost, before it is made."""

from time import monotonic
from typing import Any, NamedTuple

import jax
import numpy as np

from .._typing import PRNGKey
from ..smc import FeynmanKac, run_smc
from ..smc.footprint import footprint, free_bytes

__all__ = ["Plan", "make_plan"]

_FEW = 4096


class Plan(NamedTuple):
    """Estimates of what a run costs.

    Attributes:
        levels: Levels that the pilot chose.
        evaluations: Network evaluations over particles, levels and clouds; `None` if they are not known.
        pilot_seconds: What the pilot took, compilation included.
        seconds: Of the levels, compilation apart: the time of a few of them with few particles, scaled.
        bytes: Of memory, at the most.
        free_bytes: Of memory; `None` where nothing tells.
    """

    levels: int
    evaluations: int | None
    pilot_seconds: float
    seconds: float
    bytes: float
    free_bytes: float | None

    def __str__(self) -> str:
        count = "unknown" if self.evaluations is None else f"{self.evaluations:,}"
        free = "" if self.free_bytes is None else f" of {self.free_bytes / 2**20:,.0f} MiB free"
        return (
            f"levels               {self.levels}\n"
            f"network evaluations  {count}\n"
            f"pilot                {self.pilot_seconds:.1f} s, once\n"
            f"levels               about {self.seconds:.1f} s, compilation apart\n"
            f"memory               about {self.bytes / 2**20:,.0f} MiB{free}"
        )


def make_plan(
    key: PRNGKey,
    model: FeynmanKac,
    costs: np.ndarray | None,
    pilot_seconds: float,
    *,
    num_particles: int,
    batch_size: int | None,
    chain_length: int | None,
) -> Plan:
    """Time a few levels with few particles, and measure their memory.

    Args:
        key: PRNG key.
        model: What the scheme made.
        costs: Network evaluations of each level over all particles, with the start's before them.
        pilot_seconds: What the pilot took.
        num_particles: Over all clouds.
        batch_size: Particles that step at once.
        chain_length: That of a waste-free run.
    """
    few = min(num_particles, _FEW) if chain_length is None else 2 * chain_length
    few = min(num_particles, few * max(1, _FEW // few))
    levels = len(np.asarray(jax.tree.leaves(model.levels)[0]))
    run = lambda **options: run_smc(key, model, few, chain_length=chain_length, **options)
    part = run(max_levels=1)  # compiles
    seconds = 0.0
    for _ in range(2 * (levels > 1)):  # the first compiles what going on needs
        begin = monotonic()
        more = run(max_levels=min(levels, 17), state=part)
        seconds = (monotonic() - begin) / (more.num_levels_run - 1)
    size: Any = footprint(model, chain_length)
    return Plan(
        levels,
        None if costs is None else round(float(np.sum(costs))),
        pilot_seconds,
        seconds * levels * num_particles / few,
        size.peak(num_particles, batch_size),
        free_bytes(),
    )
