r"""Convolutions as matrix products on CPUs, where XLA compiles them badly inside loops.

On a CPU, XLA leaves its fast convolutions where a program has a loop, and samplers and training are loops:
there `jax.lax.conv` takes some ten times as long (jax-ml/jax issue 12868), gradients also where channels come
last. A matrix product keeps its speed. See `benchmarks/convolutions.py`.
"""

import jax
import jax.numpy as jnp

from .._typing import Array

__all__ = ["convolve"]


def convolve(x: Array, weight: Array, *, stride: int = 1, padding: int = 0) -> Array:
    r"""Convolution $y_o(p) = \sum_{i, q} w_{o i}(q)\, x_i(p + q)$ with zeros around the border.

    One matrix product of all shifted copies on a CPU, `jax.lax.conv_general_dilated` on other devices; the
    default device decides, when the program is traced.

    Args:
        x: Image of shape `(channels, height, width)`.
        weight: Kernels of shape `(channels_out, channels, side, side)`.
        stride: Pixels from one output to the next.
        padding: Zeros on each side.

    Returns:
        Image of shape `(channels_out, ...)`.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x[None], weight, (stride, stride), [(padding, padding)] * 2
        )[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size_out, size_in, side, _ = weight.shape
    height, width = ((n - side) // stride + 1 for n in x.shape[1:])
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(side)
        for j in range(side)
    ]
    patches = jnp.stack(shifted, 1).reshape(size_in * side**2, height * width)
    return (weight.reshape(size_out, -1) @ patches).reshape(size_out, height, width)
