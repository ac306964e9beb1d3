"""Networks in half precision inside energies in single precision."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, PyTree, Scalar

__all__ = ["LowPrecision"]

_KINDS = ("bfloat16", "float16", "float32")


class LowPrecision(eqx.Module):
    r"""A backbone whose arithmetic is in another type; what goes in and comes out keeps its own.

    The energy is a quadratic form of the network's output $F$ and of the point itself, computed in the type
    of the point: of its digits those that $F$ has lost are lost, some $2^{-8} |\kappa F|$ nats of `bfloat16`,
    and weights, sums and evidence lose none. The distribution is that of the rounded energy.

    Args:
        net: Backbone, `net(w, c_noise) -> F`.
        dtype: `"bfloat16"`, which accelerators multiply fast, `"float16"` or `"float32"`.

    Raises:
        ValueError: If it is another type.

    Example:
        >>> fast = eqx.tree_at(lambda e: e.net, energy, nd.nets.LowPrecision(energy.net))
    """

    net: PyTree
    dtype: str = eqx.field(static=True, default="bfloat16")

    def __init__(self, net: PyTree, dtype: Any = "bfloat16"):
        name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
        if name not in _KINDS:
            raise ValueError(
                f"`dtype` is one of {', '.join(_KINDS)}; got {dtype!r}. {_faq.choices}"
            )
        self.net, self.dtype = net, name

    def __call__(self, w: Array, c_noise: Scalar, *condition: Array) -> Array:
        low = jnp.dtype(self.dtype)
        lowered = lambda leaf: leaf.astype(low) if eqx.is_inexact_array(leaf) else leaf
        net, w_low, rest = jax.tree.map(lowered, (self.net, w, condition))
        return net(w_low, c_noise.astype(low), *rest).astype(w.dtype)
