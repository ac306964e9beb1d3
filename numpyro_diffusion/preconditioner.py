r"""Coordinates in which a cloud looks round: what a move sees in place of a position.

A position is $z = S\,(I + Q^\top (R - I)\, Q)\, y$ with $S$ a scale per coordinate and, where a pilot found
that coordinates move together, a few orthonormal directions (the rows of $Q$) that are stretched by $R$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ._typing import Array, Position

__all__ = ["Preconditioner", "principal_directions", "standard_deviations"]


class Preconditioner(eqx.Module):
    r"""A linear map from round coordinates $y$ to positions $z$, diagonal or diagonal plus low rank.

    Attributes:
        scale: Standard deviation of each coordinate, a pytree like the position.
        directions: $Q$, of shape `(rank, dimension)` over the flattened position, with orthonormal rows;
            or `None`.
        stretch: Diagonal of $R$, of shape `(rank,)`; or `None`.
    """

    scale: Position
    directions: Array | None = None
    stretch: Array | None = None

    def to_model(self, y: Position) -> Position:
        """Position at round coordinates."""
        return jax.tree.map(jnp.multiply, self._stretched(y, self.stretch), self.scale)

    def to_round(self, z: Position) -> Position:
        """Round coordinates of a position."""
        inverse = None if self.stretch is None else 1 / self.stretch
        return self._stretched(jax.tree.map(jnp.divide, z, self.scale), inverse)

    def gradient_to_round(self, gradient: Position) -> Position:
        """Gradient in round coordinates from that in the coordinates of the model."""
        return self._stretched(jax.tree.map(jnp.multiply, gradient, self.scale), self.stretch)

    def gradient_to_model(self, gradient: Position) -> Position:
        """The other way round."""
        inverse = None if self.stretch is None else 1 / self.stretch
        return jax.tree.map(jnp.divide, self._stretched(gradient, inverse), self.scale)

    def _stretched(self, tree: Position, stretch: Array | None) -> Position:
        if self.directions is None or stretch is None:
            return tree
        flat, unravel = ravel_pytree(tree)
        return unravel(flat + ((stretch - 1) * (self.directions @ flat)) @ self.directions)


def standard_deviations(cloud: Position) -> Position:
    """Standard deviation of each coordinate over the particles, floored against duplicates."""

    def one(leaf: Array) -> Array:
        variance = jnp.var(leaf, 0)
        typical = jnp.mean(variance)
        return jnp.sqrt(variance + 1e-3 * typical + 1e-12)

    return jax.tree.map(one, cloud)


def principal_directions(cloud: Position, scale: Position, rank: int) -> Preconditioner:
    r"""Directions along which the coordinates of a cloud move together or against each other.

    Of the eigenvalues of the correlation matrix of $n$ particles in $d$ dimensions, those within
    $(1 \pm \sqrt{d/n})^2$ are what independent coordinates would show. Of the others the `rank` farthest
    from 1 are kept, the large ones corrected for the share of noise in them.

    Args:
        cloud: Positions, with a leading axis of particles.
        scale: Their standard deviations.
        rank: Number of directions; no more than there are coordinates.

    References:
        Baik & Silverstein (2006), Eigenvalues of large sample covariance matrices of spiked population
        models, Journal of Multivariate Analysis.
    """
    white = jax.tree.map(lambda leaf, s: (leaf - jnp.mean(leaf, 0)) / s, cloud, scale)
    rows = jax.vmap(lambda z: ravel_pytree(z)[0])(white)
    n, d = rows.shape
    _, singular, directions = jnp.linalg.svd(rows, full_matrices=False)
    values = singular**2 / n
    noise = d / n
    low, high = max(1 - noise**0.5, 0.0) ** 2, (1 + noise**0.5) ** 2
    shifted = values + 1 - noise
    spike = 0.5 * (shifted + jnp.sqrt(jnp.maximum(shifted**2 - 4 * values, 0.0)))
    true = jnp.where(values > high, spike, jnp.where(values < low, jnp.maximum(values, 1e-4), 1.0))
    chosen = jnp.argsort(-jnp.abs(jnp.log(true)))[: min(rank, d)]
    return Preconditioner(scale, directions[chosen], jnp.sqrt(true[chosen]))
