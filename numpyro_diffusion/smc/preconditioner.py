r"""Linear preconditioner (diagonal plus low rank) that standardises particle positions for MCMC moves.

Round coordinates are one vector, so that a move is the same few operations for any number of sites. A
position is $z = S\,(I + Q^\top (R - I)\, Q)\, y$ with $S$ a scale per coordinate and, where a pilot found
that coordinates move together, a few orthonormal directions (the rows of $Q$) that are stretched by $R$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._typing import Array, Position

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

    def to_model(self, y: Array) -> Position:
        """Position at round coordinates, a vector."""
        return self._tree(self._stretched(y, self.stretch) * self._flat(self.scale))

    def to_round(self, z: Position) -> Array:
        """Round coordinates of a position, a vector."""
        return self._stretched(self._flat(z) / self._flat(self.scale), self._inverse)

    def gradient_to_round(self, gradient: Position) -> Array:
        """Gradient in round coordinates from that in the coordinates of the model."""
        return self._stretched(self._flat(gradient) * self._flat(self.scale), self.stretch)

    def gradient_to_model(self, gradient: Array) -> Position:
        """Inverse of `gradient_to_round`."""
        return self._tree(self._stretched(gradient, self._inverse) / self._flat(self.scale))

    @property
    def _inverse(self) -> Array | None:
        return None if self.stretch is None else 1 / self.stretch

    def _stretched(self, flat: Array, stretch: Array | None) -> Array:
        if self.directions is None or stretch is None:
            return flat
        return flat + ((stretch - 1) * (self.directions @ flat)) @ self.directions

    def _flat(self, tree: Position) -> Array:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def _tree(self, flat: Array) -> Position:
        leaves, structure = jax.tree.flatten(self.scale)
        ends = np.cumsum([leaf.size for leaf in leaves])
        parts = [flat[end - leaf.size : end] for end, leaf in zip(ends, leaves, strict=True)]
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)


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
