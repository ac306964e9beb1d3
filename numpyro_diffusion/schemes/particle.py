"""A particle between noise and data."""

from typing import NamedTuple

from .._typing import Array, Position, Scalar
from ..bridge import Rest, Seen

__all__ = ["Particle"]


class Particle(NamedTuple):
    """A position with what was evaluated there, so that nothing is evaluated twice.

    Between two levels it holds no more than the next one reads: `seen` and `rest` may then be `None`.

    Attributes:
        edges: Log likelihoods of what may be 0, for a pilot (see `combine`).
    """

    position: Position
    log_density: Scalar
    gradient: Position | None
    seen: Seen
    rest: Rest
    edges: dict[str, Array] = {}
