"""Energies as pytree data of a NumPyro distribution."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..energies.base import AbstractDenoiser

__all__ = ["Packed"]


class Packed(eqx.Module):
    """An energy split into its arrays and the rest (functions, numbers), which is metadata."""

    arrays: AbstractDenoiser
    rest: AbstractDenoiser = eqx.field(static=True)
    ranks: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, energy: AbstractDenoiser):
        is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray)
        self.arrays, self.rest = eqx.partition(energy, is_array)
        self.ranks = tuple(leaf.ndim for leaf in jax.tree.leaves(self.arrays))

    def unpack(self) -> AbstractDenoiser:
        return eqx.combine(self.arrays, self.rest)

    def is_stacked(self) -> bool:
        """True if something has added axes to the arrays since they were one energy's."""
        return self.ranks != tuple(jnp.ndim(leaf) for leaf in jax.tree.leaves(self.arrays))
