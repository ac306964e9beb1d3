"""Systematic resampling."""

import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey

__all__ = ["systematic"]

_SMALL = 512


def systematic(key: PRNGKey, weights: Array, num_samples: int) -> Array:
    r"""Indices of an equally weighted cloud: those in whose share of the weight a $(k + u) / n$ falls.

    One uniform number $u$ for all, so that an index with weight $w$ is drawn $\lfloor n w \rfloor$ or
    $\lceil n w \rceil$ times. For up to 512 particles sums and searches are one comparison of all with all,
    a fraction of the compiled program of BlackJAX's, which serves larger clouds.

    Args:
        key: PRNG key.
        weights: Shape `(num,)`, summing to 1.
        num_samples: Number of indices.

    References:
        Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, JCGS.
    """
    num = weights.shape[0]
    if num * num_samples > _SMALL**2:
        return resampling.systematic(key, weights, num_samples)
    u = jax.random.uniform(key, (), weights.dtype)
    points = (jnp.arange(num_samples, dtype=weights.dtype) + u) / num_samples
    place = jnp.arange(num)
    below = jnp.where(place[:, None] >= place, weights, 0.0)
    ends = jnp.sum(below, 1)
    index = jnp.sum(ends[None, :] < points[:, None], 1)
    return jnp.minimum(index, num - 1)
