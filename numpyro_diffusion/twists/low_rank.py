"""Low-rank covariances with an isotropic remainder."""

from typing import NamedTuple

import jax.numpy as jnp

from .._typing import Array
from ..energies.noise import root_of

__all__ = ["LowRank"]


class LowRank(NamedTuple):
    r"""$C = R R^\top + \delta (I - V V^\top)$ for each example of a diffusion site.

    Attributes:
        columns: $R$, shape `(directions, examples, coordinates)`.
        basis: $V$, orthonormal or zero, of the same shape.
        floor: $\delta$, shape `(examples,)`.
    """

    columns: Array
    basis: Array
    floor: Array

    def times(self, along: Array, rest: Array) -> Array:
        r"""$R a + \sqrt \delta (I - V V^\top) r$, in the shape of `rest`."""
        rows = rest.reshape(self.floor.shape[0], -1)
        wide = root_of(self.floor)[:, None] * self.beside(rows)
        return (jnp.einsum("ibs,ib->bs", self.columns, along) + wide).reshape(rest.shape)

    def transposed(self, v: Array) -> tuple[Array, Array]:
        """The transpose of `times`."""
        rows = v.reshape(self.floor.shape[0], -1)
        wide = root_of(self.floor)[:, None] * self.beside(rows)
        return jnp.einsum("ibs,bs->ib", self.columns, rows), wide.reshape(v.shape)

    def side_by_side(self) -> "LowRank":
        """Block-diagonal covariance of all examples, from covariances of one example along a leading axis."""
        join = lambda leaf: leaf[:, :, 0].swapaxes(0, 1)
        return LowRank(join(self.columns), join(self.basis), self.floor[:, 0])

    def beside(self, rows: Array) -> Array:
        """The part of each row that is at right angles to the basis."""
        along = jnp.einsum("ibs,bs->ib", self.basis, rows)
        return rows - jnp.einsum("ibs,ib->bs", self.basis, along)
