r"""The MLP-Mixer score network of galaxygrad in plain JAX.

An image and its time, as a second channel, are cut into patches of 4 x 4; blocks mix first across patches,
then across features; a transposed convolution paints the patches back.

References:
    Tolstikhin et al. (2021), MLP-Mixer: An all-MLP Architecture for Vision, NeurIPS.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar

__all__ = ["MixerBlock", "MixerLayers", "MixerNet", "MixerNorm"]


class MixerLayers(eqx.Module):
    """Two linear layers with a ReLU between, over the last axis."""

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array

    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.relu(x @ self.first.T + self.first_bias)
        return hidden @ self.second.T + self.second_bias


class MixerNorm(eqx.Module):
    """All entries to mean 0 and variance 1, then a weight and a bias for each."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        return (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5) * self.weight + self.bias


class MixerBlock(eqx.Module):
    """Mixes $h$ of shape `(features, patches)` across patches, then across features, adding to what was."""

    patches: MixerLayers
    features: MixerLayers
    norm_patches: MixerNorm
    norm_features: MixerNorm

    def __call__(self, h: Array) -> Array:
        h = h + self.patches(self.norm_patches(h))
        return (h.T + self.features(self.norm_features(h.T))).T


class MixerNet(eqx.Module):
    r"""Score network `net(x, time)` for one image of shape `(height, width)`; `time` runs to `time_max`.

    Attributes:
        read: Kernel of shape `(features, 2, patch, patch)`: the image and its time to features.
        read_bias: Shape `(features, 1, 1)`.
        write: Kernel of shape `(1, features, patch, patch)`, back to the image.
        write_bias: Shape `(1, 1, 1)`.
        blocks: The mixing blocks.
        norm: Layer norm before the last layer.
        time_max: Largest time; the network sees time divided by it.
        shape: Shape of one image.
    """

    read: Array
    read_bias: Array
    write: Array
    write_bias: Array
    blocks: tuple[MixerBlock, ...]
    norm: MixerNorm
    time_max: float = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def from_leaves(cls, leaves: Sequence[np.ndarray]) -> "MixerNet":
        """The network whose weights are these, in the order in which Equinox writes them.

        Args:
            leaves: What `read_equinox_leaves` gives.

        Raises:
            ValueError: If number or shapes are not those of such a network on a square image.
        """
        num_blocks, odd = divmod(len(leaves) - 7, 12)
        if num_blocks < 1 or odd or leaves[-1].ndim != 0:
            raise ValueError(
                f"expected 7 + 12 leaves a block of a mixer, the last a number; got {len(leaves)} "
                f"leaves. {_faq.foreign_weights}"
            )
        rest = iter(leaves)
        take = lambda: jnp.asarray(next(rest))
        layers = lambda: MixerLayers(take(), take(), take(), take())
        norm = lambda: MixerNorm(take(), take())
        block = lambda: MixerBlock(layers(), layers(), norm(), norm())
        read, read_bias, write, write_bias = take(), take(), take(), take()
        blocks = tuple(block() for _ in range(num_blocks))
        last, time_max = norm(), float(leaves[-1])
        side = round(last.weight.shape[-1] ** 0.5)
        shape = (read.shape[-1] * side, read.shape[-1] * side)
        net = cls(read, read_bias, write, write_bias, blocks, last, time_max, shape)
        net._check(side)
        return net

    def __call__(self, x: Array, time: Scalar) -> Array:
        patch = self.read.shape[-1]
        rows, columns = (size // patch for size in self.shape)
        channels = jnp.stack([x, jnp.broadcast_to(time / self.time_max, x.shape).astype(x.dtype)])
        cut = channels.reshape(2, rows, patch, columns, patch)
        h = jnp.einsum("ciajb,fcab->fij", cut, self.read) + self.read_bias
        h = h.reshape(len(h), rows * columns)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h).reshape(-1, rows, columns)
        # A transposed convolution of equal stride and size paints each kernel upside down.
        kernel = self.write[0, :, ::-1, ::-1]
        return jnp.einsum("fij,fab->iajb", h, kernel).reshape(x.shape) + self.write_bias[0, 0, 0]

    def _check(self, side: int):
        (num, _, patch, _), p = self.read.shape, side**2
        wide = [self.blocks[0].patches.first.shape[0], self.blocks[0].features.first.shape[0]]
        layers = lambda n, hidden: [(hidden, n), (hidden,), (n, hidden), (n,)]
        block = layers(p, wide[0]) + layers(num, wide[1]) + 2 * [(num, p)] + 2 * [(p, num)]
        expected = [(num, 2, patch, patch), (num, 1, 1), (1, num, patch, patch), (1, 1, 1)]
        expected += len(self.blocks) * block + 2 * [(num, p)]
        got = [leaf.shape for leaf in jax.tree.leaves(self)]
        if got != expected or not self.time_max > 0:
            wrong = [f"{g} for {e}" for g, e in zip(got, expected, strict=True) if g != e]
            raise ValueError(
                "leaves of a mixer on a square image do not fit: "
                f"{wrong[:4]}. {_faq.foreign_weights}"
            )
