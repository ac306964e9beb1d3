"""Aliases for what passes through the library: arrays, keys, positions."""

from typing import Any

import jax
from jaxtyping import Array, Float, Key, PyTree

Scalar = Float[Array, ""]
Shaped = Float[Array, "*shape"]  # one example, and whatever has its shape
PRNGKey = (
    Key[Array, ""] | jax.Array
)  # typed keys, and the raw uint32 keys that NumPyro still hands out
Position = dict[str, Array]  # one particle: site name -> unconstrained value
Params = PyTree[Any]

__all__ = ["Array", "Float", "PRNGKey", "Params", "Position", "PyTree", "Scalar", "Shaped"]
