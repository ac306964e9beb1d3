r"""The noise added between two levels, in data units."""

import jax.numpy as jnp

from .._typing import Array, Scalar
from .base import AbstractDenoiser

__all__ = ["added_variance", "denoised_mean", "root_of"]


def added_variance(energy: AbstractDenoiser, t: Scalar) -> Scalar:
    r"""Variance of the noise between the prior and level $t$, in data units.

    $s_t^2 - s_{t_{\min}}^2$; of a composed distribution, whose noise is narrower, the difference of $s^2 /
    B$ with the sum $B$ of its powers. Zero at (and, by convention, below) `t_min`.
    """
    t = jnp.asarray(t)
    end = jnp.asarray(energy.t_min, t.dtype)
    gap = energy.kernel_noise(t) ** 2 - energy.kernel_noise(end) ** 2
    # Rounding may tell two equal levels apart; their times it cannot.
    return jnp.where(t <= end, 0.0, jnp.maximum(gap, 0.0))


def root_of(variance: Array) -> Array:
    """Square root of a variance, with derivative 0 where that is 0.

    At the clean end nothing is left open, whatever the parameters of the prior are: the derivative of the
    usual root in them would be infinity times 0.
    """
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def denoised_mean(energy: AbstractDenoiser, u: Array, t: Scalar) -> Array:
    r"""Mean of the variable at `t_min` given $u_t$, in data units, from the denoiser alone.

    $u_t + \tau^2 \nabla \log p_t(u_t)$ with the score $(\hat x_0 - u_t) / s_t^2$ and $\tau^2$ the added
    variance.
    """
    alpha_t, sigma_t = energy.schedule(t)
    share = added_variance(energy, t) * alpha_t**2 / sigma_t**2
    return u + share * (energy.denoise(alpha_t * u, t) - u)
