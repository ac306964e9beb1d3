"""A particle between noise and data: what was evaluated there, and what is reported of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Position, Scalar
from ..bridge import Rest, Seen

__all__ = ["Here", "Info", "Particle", "finite"]


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


class Info(NamedTuple):
    """Reported at each level; the engine averages over particles.

    Attributes:
        acceptance: Acceptance probability of the joint move.
        other_acceptance: The same for the move on the non-diffusion sites.
        nan: By site, share of particles whose log density is NaN after the carry.
        infinite: By site, share of particles whose log density is +inf after the carry.
        zero: By site, share of particles that are lost to its log density of -inf after the carry.
    """

    acceptance: Scalar
    other_acceptance: Scalar
    nan: dict[str, Scalar]
    infinite: dict[str, Scalar]
    zero: dict[str, Scalar]

    @classmethod
    def of(
        cls, sites: dict[str, Scalar], acceptance: Scalar, other_acceptance: Scalar, lost
    ) -> "Info":
        """What is reported of the log densities of some sites.

        Args:
            sites: Log densities by site.
            acceptance: Of the joint move.
            other_acceptance: Of the move on the others.
            lost: Whether the particle has no weight left.
        """
        return cls(
            acceptance,
            other_acceptance,
            jax.tree.map(jnp.isnan, sites),
            jax.tree.map(jnp.isposinf, sites),
            jax.tree.map(lambda value: jnp.isneginf(value) & lost, sites),
        )


class Here(NamedTuple):
    """Densities at one clock and power; what all particles share has been computed.

    Attributes:
        density: `z -> (value, (seen, rest, edges))`, one network evaluation.
        given: `(z, seen) -> value`, none: the same where the diffusion sites are as they were seen.
    """

    density: Callable[[Position], tuple[Scalar, tuple[Seen, Rest, dict[str, Array]]]]
    given: Callable[[Position, Seen], Scalar] | None = None

    def logdensity(self, z: Position) -> Scalar:
        """The value for a move: -inf where it is not finite."""
        return finite(self.density(z)[0])


def finite(value: Scalar) -> Scalar:
    """A log density for a move: -inf where it is not finite."""
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)
