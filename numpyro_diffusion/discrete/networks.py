"""Networks over tokens: a denoiser of masked tokens, and a residual energy."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import whole_numbers
from .._typing import Array, PRNGKey, Scalar
from ..nets import ResidualMLP

__all__ = ["EnergyNetwork", "TokenNetwork"]


class TokenNetwork(eqx.Module):
    """A denoiser of masked tokens: a residual network from one-hot tokens to logits; uniform at first.

    Args:
        key: PRNG key.
        num_tokens: Length of an example.
        num_values: Values of a token, the mask not among them.
        width: Units of each hidden layer.
        depth: Number of residual blocks.

    Raises:
        ValueError: If a number is out of range.
    """

    net: ResidualMLP
    num_values: int = eqx.field(static=True)

    def __init__(
        self, key: PRNGKey, num_tokens: int, num_values: int, width: int = 64, depth: int = 2
    ):
        num_tokens, num_values = whole_numbers(1, num_tokens=num_tokens, num_values=num_values)
        self.net = ResidualMLP(key, (num_tokens, num_values + 1), width=width, depth=depth)
        self.num_values = num_values

    def __call__(self, x_t: Array) -> Array:
        seen = jax.nn.one_hot(x_t, self.num_values + 1)
        return self.net(seen, jnp.mean(seen[:, -1]))[:, : self.num_values]


class EnergyNetwork(eqx.Module):
    r"""A residual energy $E(x_0, x_t)$: the sum of the outputs of a residual network; 0 at first.

    Args:
        key: PRNG key.
        num_tokens: Length of an example.
        num_values: Values of a token, the mask not among them.
        width: Units of each hidden layer.
        depth: Number of residual blocks.

    Raises:
        ValueError: If a number is out of range.
    """

    net: ResidualMLP
    num_values: int = eqx.field(static=True)

    def __init__(
        self, key: PRNGKey, num_tokens: int, num_values: int, width: int = 64, depth: int = 2
    ):
        num_tokens, num_values = whole_numbers(1, num_tokens=num_tokens, num_values=num_values)
        self.net = ResidualMLP(key, (2, num_tokens, num_values + 1), width=width, depth=depth)
        self.num_values = num_values

    def __call__(self, x: Array, x_t: Array) -> Scalar:
        both = jax.nn.one_hot(jnp.stack([x, x_t]), self.num_values + 1)
        return jnp.sum(self.net(both, jnp.mean(both[1, :, -1])))
