r"""A compact residual network for vectors and small images.

Samplers evaluate an energy and its gradient millions of times, so the backbone is a handful of wide
matrix products and nothing else. It is smooth (SiLU throughout): training differentiates the energy
twice, and Hamiltonian moves want a gradient without kinks. The noise level enters as a scale and a
shift of every hidden layer; under `vmap` with one shared time that conditioning is computed once.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number, whole_numbers, whole_shape
from .._prng import key_or_zero
from .._typing import Array, PRNGKey, Scalar
from .condition import AbstractCondition, told_of

__all__ = ["Linear", "NoiseLevel", "ResidualBlock", "ResidualMLP", "Scaled"]


class Linear(eqx.Module):
    r"""$x \mapsto W x + b$ with $W_{ij} \sim \mathcal{N}(0, \text{gain}^2 / n_{in})$ and $b = 0$ at first.

    Args:
        key: PRNG key.
        size_in: Length of the input.
        size_out: Length of the output.
        gain: Scale of the initial weights; 0 starts the layer at zero.
    """

    weight: Array
    bias: Array

    def __init__(self, key: PRNGKey, size_in: int, size_out: int, gain: float = 1.0):
        self.weight = gain / math.sqrt(size_in) * jax.random.normal(key, (size_out, size_in))
        self.bias = jnp.zeros(size_out)

    def __call__(self, x: Array) -> Array:
        return self.weight @ x + self.bias


class ResidualBlock(eqx.Module):
    r"""$h \mapsto h + W_2\,\mathrm{silu}\big((1 + a(c)) \odot W_1 h + b(c)\big)$; $a, b$ are linear in $c$.

    Args:
        key: PRNG key.
        width: Length of $h$.
        size_condition: Length of $c$.
    """

    first: Linear
    second: Linear
    condition: Linear

    def __init__(self, key: PRNGKey, width: int, size_condition: int):
        key_first, key_second, key_condition = jax.random.split(key, 3)
        self.first = Linear(key_first, width, width)
        self.second = Linear(key_second, width, width, gain=0.5)
        self.condition = Linear(key_condition, size_condition, 2 * width, gain=0.1)

    def __call__(self, h: Array, condition: Array) -> Array:
        scale, shift = jnp.split(self.condition(condition), 2)
        return h + self.second(jax.nn.silu((1 + scale) * self.first(h) + shift))


class NoiseLevel(eqx.Module):
    r"""Embedding of $c_{noise}$, a quarter of the log noise level: sines, cosines and a linear layer.

    Args:
        key: PRNG key.
        size: Length of the embedding.
        num_frequencies: Sines, and as many cosines.
    """

    linear: Linear
    num_frequencies: int = eqx.field(static=True)

    def __init__(self, key: PRNGKey, size: int = 32, num_frequencies: int = 8):
        self.linear = Linear(key, 2 * num_frequencies, size)
        self.num_frequencies = num_frequencies

    def __call__(self, c_noise: Scalar) -> Array:
        return self.linear(frequencies(c_noise, self.num_frequencies))


def frequencies(c_noise: Scalar, num: int) -> Array:
    """Sines and cosines of a number of about [-1, 1]."""
    # The longest period is 8, so that no two noise levels look alike.
    angles = 0.25 * jnp.pi * jnp.arange(1, num + 1, dtype=c_noise.dtype) * c_noise
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class ResidualMLP(eqx.Module):
    r"""Residual network $F(u, c_{noise}, c)$ from an array of shape `shape` to one of the same shape.

    $c_{noise}$ (a quarter of the log noise level) is spread over sines and cosines and one hidden
    layer; a condition $c$, where there is one, is added to it. The last layer starts at zero, so that an
    untrained `InnerProductEnergy` is exactly the Gaussian of the data.

    Args:
        key: PRNG key.
        shape: Shape of one example, or the length of a vector; flattened inside.
        width: Units of each hidden layer.
        depth: Number of residual blocks.
        num_frequencies: Sines (and as many cosines) of the noise level.
        condition: What the network can be told, `Labels(key, num)` or `Vectors(key, length)` of size 32;
            nothing by default.

    Raises:
        ValueError: If `shape` is none, or `width`, `depth` or `num_frequencies` is below 1.
    """

    embed: Linear
    read: Linear
    blocks: tuple[ResidualBlock, ...]
    write: Linear
    num_frequencies: int = eqx.field(static=True)
    condition: AbstractCondition | None = None

    def __init__(
        self,
        key: PRNGKey | None = None,
        shape: tuple[int, ...] | int = (2,),
        *,
        width: int = 128,
        depth: int = 2,
        num_frequencies: int = 8,
        condition: AbstractCondition | None = None,
    ):
        width, depth = whole_numbers(1, width=width, depth=depth)
        num_frequencies = whole_number("num_frequencies", num_frequencies, 1)
        keys = jax.random.split(key_or_zero(key), depth + 2)
        size = math.prod(whole_shape(shape))
        self.embed = Linear(keys[0], 2 * num_frequencies, 32)
        self.read = Linear(keys[1], size, width)
        self.blocks = tuple(ResidualBlock(k, width, 32) for k in keys[2:])
        self.write = Linear(keys[0], width, size, gain=0.0)
        self.num_frequencies = num_frequencies
        self.condition = condition

    def __call__(self, u: Array, c_noise: Scalar, condition: Array | None = None) -> Array:
        size = self.write.bias.size
        if u.size != size:
            raise ValueError(
                f"this network takes arrays of {size} numbers; got shape {u.shape}. Make it with the shape "
                f"of one example, `ResidualMLP(key, shape)`. {_faq.shapes}"
            )
        features = frequencies(jnp.asarray(c_noise, u.dtype), self.num_frequencies)
        told = jax.nn.silu(self.embed(features) + told_of(self.condition, condition))
        h = self.read(u.ravel())
        for block in self.blocks:
            h = block(h, told)
        return self.write(jax.nn.silu(h)).reshape(u.shape)


class Scaled(eqx.Module):
    """A backbone times a constant.

    Attributes:
        net: The backbone.
        factor: The constant.
    """

    net: Callable[..., Array]
    factor: float = eqx.field(static=True)

    @property
    def condition(self) -> AbstractCondition | None:
        """Condition that the backbone takes."""
        return getattr(self.net, "condition", None)

    def __call__(self, u: Array, c_noise: Scalar, *condition: Array) -> Array:
        return self.factor * self.net(u, c_noise, *condition)
