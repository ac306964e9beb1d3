"""Exponents of energies: numbers, functions of the time, and what is made of them."""

import numbers
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .. import _faq
from .._typing import Scalar
from .base import Power

__all__ = ["Inverse", "PowerProduct", "is_array_power", "is_power", "power_at", "times_power"]


class Inverse(eqx.Module):
    """Reciprocal of a function of the time."""

    function: Power

    def __call__(self, t: Scalar) -> Scalar | float:
        return 1 / power_at(self.function, t)


class PowerProduct(eqx.Module):
    """A product of two exponents, of which one is a function of the time."""

    first: Power
    second: Power

    def __call__(self, t: Scalar) -> Scalar | float:
        return power_at(self.first, t) * power_at(self.second, t)


def power_at(power: Power, t: Scalar) -> Scalar | float:
    """An exponent at a time."""
    return power(t) if callable(power) else power


def times_power(first: Power, second: Power) -> Power:
    """The product of two exponents."""
    if callable(first) or callable(second):
        if is_array_power(first) or is_array_power(second):
            raise TypeError(
                "a function of the time is multiplied by plain numbers; got a latent variable or an array. "
                "Every level is weighed anew, so none is needed: leave the function "
                f"out. {_faq.kinds}"
            )
        return second if first == 1.0 else first if second == 1.0 else PowerProduct(first, second)
    if is_array_power(first) or is_array_power(second):
        return first * second
    return float(first) * float(second)


def is_array_power(power: Any) -> bool:
    """Whether it may be a latent variable: one of JAX's, traced or not."""
    return isinstance(power, jax.Array)


def is_power(power: Any) -> bool:
    """Whether it is a number, or a function of the time."""
    if isinstance(power, np.ndarray | jax.Array):
        return power.ndim == 0
    return isinstance(power, numbers.Real) or callable(power)
