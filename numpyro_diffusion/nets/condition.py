r"""Conditioning of a network on a label or a vector, beside the noise level.

A condition becomes a vector that is added to the embedding of the noise level. Each kind has a *null* value,
which stands for no condition at all; a network that was trained with the null now and then knows the
unconditional distribution too, which guidance needs.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_numbers
from .._typing import Array, PRNGKey

__all__ = ["AbstractCondition", "Labels", "Vectors", "told_of"]


class AbstractCondition(eqx.Module):
    """An embedding of conditions of one kind."""

    @property
    @abc.abstractmethod
    def null(self) -> Array:
        """The condition that says nothing, of the shape and type of any other."""

    @abc.abstractmethod
    def __call__(self, condition: Array | None) -> Array:
        """Embedding of shape `(size,)`; that of `null` where the condition is `None`."""


class Labels(AbstractCondition):
    r"""Condition on a class label, one of $0, \dots, num - 1$, as an integer of shape `()`. Null is `num`.

    Args:
        key: PRNG key.
        num: Number of labels, at least 1.
        size: Length of the embedding.

    Raises:
        ValueError: If `num` or `size` is below 1.
    """

    weight: Array

    def __init__(self, key: PRNGKey | None = None, num: int = 10, size: int = 32):
        num, size = whole_numbers(1, num=num, size=size)
        key = jax.random.key(0) if key is None else key
        self.weight = jax.random.normal(key, (num + 1, size))

    @property
    def num(self) -> int:
        """Number of labels, without null."""
        return self.weight.shape[0] - 1

    @property
    def null(self) -> Array:
        return jnp.asarray(self.num)

    def __call__(self, condition: Array | None) -> Array:
        return self.weight[self.num if condition is None else jnp.asarray(condition, int)]


class Vectors(AbstractCondition):
    r"""A vector of real numbers of order one, of shape `(length,)`. Null is a vector of NaN.

    Args:
        key: PRNG key.
        length: Length of the vector, at least 1.
        size: Length of the embedding.

    Raises:
        ValueError: If `length` or `size` is below 1.
    """

    weight: Array
    absent: Array

    def __init__(self, key: PRNGKey | None = None, length: int = 1, size: int = 32):
        length, size = whole_numbers(1, length=length, size=size)
        key_weight, key_absent = jax.random.split(jax.random.key(0) if key is None else key)
        self.weight = jax.random.normal(key_weight, (size, length)) / length**0.5
        self.absent = jax.random.normal(key_absent, (size,))

    @property
    def null(self) -> Array:
        return jnp.full(self.weight.shape[1], jnp.nan)

    def __call__(self, condition: Array | None) -> Array:
        if condition is None:
            return self.absent
        condition = jnp.asarray(condition, self.weight.dtype)
        missing = jnp.any(jnp.isnan(condition))
        # NaN must not meet the weights, or it would come back through their gradient.
        given = self.weight @ jnp.where(missing, 0.0, condition)
        return jnp.where(missing, self.absent, given)


def told_of(embedding: AbstractCondition | None, condition: Array | None) -> Array | float:
    """Embedding of a condition, added to that of the noise level; nothing for a network without
    conditions.
    """
    if embedding is not None:
        return embedding(condition)
    if condition is not None:
        raise ValueError(
            "this network takes no condition; got one. Build it with `condition=Labels(key, num)` or "
            "`condition=Vectors(key, length)`, and train it with `fit(..., "
            f"condition=)`. {_faq.network}"
        )
    return 0.0
