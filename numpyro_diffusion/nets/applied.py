"""A network of another library as a backbone: its parameters, and the function that applies them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_shape
from .._typing import Array, PyTree, Scalar

__all__ = ["Applied"]


class Applied(eqx.Module):
    r"""The backbone $F(w, c_{noise}) = \mathrm{apply}(\mathrm{params}, w, c_{noise})$.

    Any pair of parameters and a pure function of them, as the network libraries of JAX have it: Flax (Linen
    and NNX), Haiku, modules of `numpyro.contrib.module`, or a function by hand. An untrained energy is the
    Gaussian of the data if the network's last layer starts at zero. The parameters are all that is trained:
    a state beside them, such as running averages or dropout's keys, stays what it was in `apply`.

    Args:
        apply: `(params, w, c_noise) -> F` for ONE example, with `w` and `F` of shape `shape` and `c_noise`,
            a quarter of the log noise level, of shape `()`.
        params: Tree of the arrays to be trained.
        shape: Shape of one example.

    Raises:
        TypeError: If `apply` is no function, or `params` hold no floating-point array.
        ValueError: If `apply` does not map such an example to the like.

    Example:
        >>> net = hk.without_apply_rng(hk.transform(forward))
        >>> params = net.init(key, jnp.zeros(2), jnp.zeros(()))
        >>> energy = nd.ProperEnergy.from_data(nd.nets.Applied(net.apply, params, (2,)), data, ...)
    """

    params: PyTree
    apply: Callable[[PyTree, Array, Scalar], Array] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, apply: Callable[..., Array], params: PyTree, shape: tuple[int, ...] | int):
        self.apply, self.params, self.shape = apply, params, whole_shape(shape)
        if not callable(apply):
            raise TypeError(
                "`apply` is a function `(params, w, c_noise) -> F`, such as the `apply` of a Flax or Haiku "
                f"network; got a {type(apply).__name__}. {_faq.network}"
            )
        if not any(eqx.is_inexact_array_like(leaf) for leaf in jax.tree.leaves(params)):
            raise TypeError(
                "`params` expects a tree with arrays of floating-point numbers, what the network's `init` "
                f"returns; got {type(params).__name__} without any, so that nothing could be trained. "
                f"(`Applied(apply, params, shape)`: the function comes first.) {_faq.network}"
            )
        example = jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))
        try:
            found: Any = jax.eval_shape(self, example, jnp.zeros(()))
        except Exception as error:  # of any library
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"`apply(params, w, c_noise)` does not take ONE example `w` of shape {self.shape} with "
                f"`c_noise` of shape () ({first}). A network of batches is "
                "`lambda params, w, c: apply(params, w[None], c[None])[0]`; one that draws random numbers is "
                "none of a density: give it without dropout (`hk.without_apply_rng`, "
                f"`model.eval()`). {_faq.network}"
            ) from error
        if getattr(found, "shape", None) != self.shape:
            raise ValueError(
                f"`apply` must map examples of shape {self.shape} to the same shape; it gives "
                f"{getattr(found, 'shape', type(found).__name__)}. A network of batches is "
                "`lambda params, w, c: apply(params, w[None], c[None])[0]`; with a mutable state, return "
                f"the output alone. {_faq.network}"
            )

    def __call__(self, w: Array, c_noise: Scalar) -> Array:
        return self.apply(self.params, w, c_noise)
