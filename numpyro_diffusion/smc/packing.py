"""Trees of small arrays packed into one array."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PyTree

__all__ = ["Packed", "pack"]


class Packed(eqx.Module):
    """Numbers of a tree, side by side along the last axis, with the tree that they are of.

    Attributes:
        values: The numbers, as floats; leading axes are kept.
        structure: Of the tree.
        leaves: Shape and type of each leaf, without leading axes.
    """

    values: Array
    structure: Any = eqx.field(static=True)
    leaves: tuple[tuple[tuple[int, ...], Any], ...] = eqx.field(static=True)

    def unpack(self, *, exact: bool = False) -> PyTree:
        """The tree, on the host; with `exact` its leaves have their types again, else all are floats."""
        return self._parts(np.asarray(self.values), exact)

    def unpacked(self) -> PyTree:
        """The tree of floats, within a compiled program."""
        return self._parts(self.values, False)

    def _parts(self, values: Any, exact: bool) -> PyTree:
        parts, start = [], 0
        for shape, dtype in self.leaves:
            size = int(np.prod(shape))
            part = values[..., start : start + size].reshape(*values.shape[:-1], *shape)
            parts.append(part.astype(dtype) if exact else part)
            start += size
        return jax.tree.unflatten(self.structure, parts)


def pack(tree: PyTree, num_axes: int = 0) -> Packed:
    """A tree of arrays that share `num_axes` leading axes, packed."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    kinds = tuple((leaf.shape[num_axes:], np.dtype(leaf.dtype)) for leaf in leaves)
    flat = [leaf.reshape(*leaf.shape[:num_axes], -1).astype(float) for leaf in leaves]
    return Packed(jnp.concatenate(flat, -1) if flat else jnp.zeros(0), structure, kinds)
