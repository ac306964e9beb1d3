r"""A compact U-Net for images.

Residual blocks of two convolutions at each resolution, halved on the way down and doubled on the way up, with
the features of the way down joined to those of the way up. No normalisation and no attention: an energy is
differentiated twice in training and millions of times in sampling, so it should be smooth and small.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number, whole_shape
from .._prng import key_or_zero
from .._typing import Array, PRNGKey, Scalar
from .condition import AbstractCondition, told_of
from .convolve import convolve
from .mlp import Linear, NoiseLevel

__all__ = ["Convolution", "ImageBlock", "UNet"]

EMBEDDING = 32  # length of what blocks are told of the noise level and the condition


class Convolution(eqx.Module):
    r"""A convolution of images of shape `(channels, height, width)`, with zeros around the border.

    Args:
        key: PRNG key.
        size_in: Channels of the input.
        size_out: Channels of the output.
        width: Side of the kernel, odd.
        gain: Scale of the initial weights; 0 starts the layer at zero.
    """

    weight: Array
    bias: Array

    def __init__(self, key: PRNGKey, size_in: int, size_out: int, width: int = 3, gain: float = 1):
        scale = gain / math.sqrt(size_in * width**2)
        self.weight = scale * jax.random.normal(key, (size_out, size_in, width, width))
        self.bias = jnp.zeros((size_out, 1, 1))

    def __call__(self, x: Array) -> Array:
        return convolve(x, self.weight, padding=self.weight.shape[-1] // 2) + self.bias


class ImageBlock(eqx.Module):
    r"""$h \mapsto h + C_2\,\mathrm{silu}\big((1 + a(c)) \odot C_1 h + b(c)\big)$ ($C$: convolutions).

    Args:
        key: PRNG key.
        channels: Channels of $h$.
    """

    first: Convolution
    second: Convolution
    condition: Linear

    def __init__(self, key: PRNGKey, channels: int):
        key_first, key_second, key_condition = jax.random.split(key, 3)
        self.first = Convolution(key_first, channels, channels)
        self.second = Convolution(key_second, channels, channels, gain=0.5)
        self.condition = Linear(key_condition, EMBEDDING, 2 * channels, gain=0.1)

    def __call__(self, h: Array, told: Array) -> Array:
        scale, shift = jnp.split(self.condition(told)[:, None, None], 2)
        return h + self.second(jax.nn.silu((1 + scale) * self.first(h) + shift))


class UNet(eqx.Module):
    r"""Network $F(u, c_{noise}, c)$ from an image to one of the same shape.

    Use it with an energy that keeps pixels where they are (`from_data(..., diagonal=True)`). The last
    convolution starts at zero, so that an untrained energy is the Gaussian of the data.

    Args:
        key: PRNG key.
        shape: Shape of one image, `(height, width)` or `(channels, height, width)`.
        channels: Channels at each resolution, from fine to coarse.
        depth: Residual blocks at each resolution, on the way down and on the way up.
        condition: What the network can be told, `Labels(key, num)` or `Vectors(key, length)` of size 32;
            nothing by default.

    Raises:
        ValueError: If the shape is not that of an image, or cannot be halved so often.
    """

    embed: NoiseLevel
    read: Convolution
    down: tuple[tuple[ImageBlock, ...], ...]
    widen: tuple[Convolution, ...]
    join: tuple[Convolution, ...]
    up: tuple[tuple[ImageBlock, ...], ...]
    write: Convolution
    condition: AbstractCondition | None

    def __init__(
        self,
        key: PRNGKey | None = None,
        shape: tuple[int, ...] = (8, 8),
        *,
        channels: tuple[int, ...] = (32, 64),
        depth: int = 1,
        condition: AbstractCondition | None = None,
    ):
        depth = whole_number("depth", depth, 1)
        channels = tuple(whole_number("channels", number, 1) for number in channels)
        shape, halvings = whole_shape(shape), 2 ** (len(channels) - 1)
        if len(shape) not in (2, 3) or any(side % halvings for side in shape[-2:]):
            raise ValueError(
                "`UNet` expects images of shape (height, width) or (channels, height, width) whose sides "
                f"are multiples of {halvings}, to be halved {len(channels) - 1} times; got {shape}. Pad "
                f"them, or give fewer `channels`. {_faq.network}"
            )
        keys = iter(jax.random.split(key_or_zero(key), 4 * len(channels) + 3))
        blocks = lambda size: tuple(
            ImageBlock(k, size) for k in jax.random.split(next(keys), depth)
        )
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        planes = shape[0] if len(shape) == 3 else 1
        self.embed = NoiseLevel(next(keys), EMBEDDING)
        self.read = Convolution(next(keys), planes, channels[0])
        self.down = tuple(blocks(size) for size in channels)
        self.widen = tuple(Convolution(next(keys), fine, coarse, 1) for fine, coarse in pairs)
        self.join = tuple(Convolution(next(keys), fine + coarse, fine, 1) for fine, coarse in pairs)
        self.up = tuple(blocks(size) for size in channels[:-1])
        self.write = Convolution(next(keys), channels[0], planes, gain=0.0)
        self.condition = condition

    def __call__(self, u: Array, c_noise: Scalar, condition: Array | None = None) -> Array:
        level = self.embed(jnp.asarray(c_noise, u.dtype))
        told = jax.nn.silu(level + told_of(self.condition, condition))
        h, kept = self.read(u if u.ndim == 3 else u[None]), []
        for i, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, told)
            if i < len(self.widen):
                kept.append(h)
                h = self.widen[i](_halved(h))
        for i in reversed(range(len(self.up))):
            h = self.join[i](jnp.concatenate([kept[i], _doubled(h)]))
            for block in self.up[i]:
                h = block(h, told)
        return self.write(jax.nn.silu(h)).reshape(u.shape)


def _halved(h: Array) -> Array:
    """Means over squares of four pixels."""
    channels, height, width = h.shape
    return h.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def _doubled(h: Array) -> Array:
    """Each pixel four times."""
    return jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)
