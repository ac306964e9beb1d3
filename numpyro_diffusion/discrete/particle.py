"""What the denoising chain carries along: particles, levels, and what a level reports."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from .._finite import non_finite
from .._typing import Array, Position, Scalar

__all__ = ["TokenInfo", "TokenLevel", "TokenParticle"]


class TokenParticle(NamedTuple):
    """One particle of the chain.

    Attributes:
        x: Tokens, of which those not yet revealed are masks.
        rank: Place of each token in the order of revealing.
        z: Other unknowns, unconstrained.
        log_probs: Of the denoiser at `x`.
        noise: Gumbel variables, of which draws of the denoiser are made where data or density see tokens
            together; it stays while other unknowns move.
        log_twist: Log of what stands for density and data at this level.
    """

    x: Array
    rank: Array
    z: Position
    log_probs: Array
    noise: Array
    log_twist: Scalar


class TokenLevel(NamedTuple):
    """A level: tokens revealed and powers of the likelihood before and after, and whether the energy
    counts.
    """

    revealed: Any
    next_revealed: Any
    power: Any
    next_power: Any
    uses_energy: Any


class TokenInfo(NamedTuple):
    """What a level reports of a particle, and where log densities were NaN or +inf.

    Attributes:
        log_normalizer: Log of the mean of $e^{-E}$ over the candidates.
        nan: Whether it was NaN, by what it was.
        infinite: Whether it was +inf.
    """

    log_normalizer: Scalar
    nan: dict[str, Scalar]
    infinite: dict[str, Scalar]

    @classmethod
    def of(cls, particle: TokenParticle, log_normalizer: Scalar) -> "TokenInfo":
        """Look at a particle that has arrived."""
        denoiser = jnp.max(particle.log_probs)
        found = {"denoiser": denoiser, "energy": log_normalizer, "data": particle.log_twist}
        return cls(log_normalizer, *non_finite(found))
