"""Tempering paths: in which order the likelihood power rises and the noise falls."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from .._typing import Scalar
from ..bridge import Bridge

__all__ = ["Path", "in_short_steps", "likelihood_first", "prior_first"]

_LONGEST = math.log(1.5)

Path = Callable[[Bridge, Scalar, Scalar, Scalar], tuple[Scalar, Scalar]]


def likelihood_first(bridge: Bridge, clock: Scalar, power: Scalar, stride: Scalar):
    """Clock and power after the share `stride` of what remains of the present part of the path.

    The likelihood fades in at the noisy end; then the noise falls.
    """
    more = _one(power + stride * (1 - power))
    if not bridge.diffusion_sites:
        return 0 * clock, more
    fading = power < 1
    less = jnp.where(fading, clock, clock * (1 - stride))
    return _zero(less), jnp.where(fading, more, 1.0)


def in_short_steps(bridge: Bridge, clock: Scalar, power: Scalar, stride: Scalar):
    """`likelihood_first`, with noise levels at most a factor of 1.5 apart.

    For draws whose spread fits the cloud on average: a part of the cloud for which it does not, such as
    small noise levels of the data, is too small for a pilot to see, and is lost in a long step.
    """
    less, more = likelihood_first(bridge, clock, power, stride)
    high, low = bridge.noise(jnp.ones(())), bridge.noise(jnp.zeros(()))
    logs = [jnp.log(high[name] / low[name]) for name in bridge.diffusion_sites]
    shortest = clock - _LONGEST / jnp.max(jnp.stack(logs))
    return jnp.where(clock > less, jnp.maximum(less, shortest), less), more


def prior_first(bridge: Bridge, clock: Scalar, power: Scalar, stride: Scalar):
    """Path on which the noise falls under the prior first; then the likelihood fades in."""
    del bridge
    falling = clock > 0
    more = _one(power + stride * (1 - power))
    return _zero(clock * (1 - stride)), jnp.where(falling, power, more)


def _one(power: Scalar) -> Scalar:
    return jnp.where(power > 1 - 1e-4, 1.0, power)


def _zero(clock: Scalar) -> Scalar:
    return jnp.where(clock < 1e-4, 0.0, clock)
