r"""Denoising score matching: how far a denoiser is from the clean data it was not shown.

For $x_t = \alpha_t x_0 + \sigma_t \epsilon$ and noise level $s = \sigma_t/\alpha_t$ the loss is
$\lambda(s)\,\lVert \hat x_0(x_t) - x_0 \rVert^2$ with Karras's weight
$\lambda(s) = (s^2 + d^2) / (s d)^2$, in units where a useless denoiser costs about 1 a dimension at
every level. The levels are drawn by a function that the caller may replace.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser

__all__ = ["denoising_loss", "log_normal", "uniform_log_snr"]

Levels = Callable[[PRNGKey, AbstractDenoiser, int], Array]
r"""`levels(key, denoiser, num) -> times` of shape `(num,)`."""


def _stratified(key: PRNGKey, num: int) -> Array:
    """One uniform draw in each of `num` equal cells of [0, 1], in shuffled order."""
    key_cell, key_order = jax.random.split(key)
    cells = jax.random.permutation(key_order, num)
    return (cells + jax.random.uniform(key_cell, (num,))) / num


def _bounds(denoiser: AbstractDenoiser) -> tuple[Scalar, Scalar]:
    times = jnp.asarray([denoiser.t_min, denoiser.t_max])
    log_levels = jnp.log(jax.vmap(denoiser.schedule.noise_level)(times))
    return log_levels[0], log_levels[1]


def _times(denoiser: AbstractDenoiser, log_levels: Array) -> Array:
    times = jax.vmap(denoiser.schedule.time)(-2 * log_levels)
    return jnp.clip(times, denoiser.t_min, denoiser.t_max)


def uniform_log_snr(key: PRNGKey, denoiser: AbstractDenoiser, num: int) -> Array:
    """Times uniform in log-SNR between `t_min` and `t_max`, one in each of `num` equal cells."""
    low, high = _bounds(denoiser)
    return _times(denoiser, low + (high - low) * _stratified(key, num))


def log_normal(mean: float = -1.2, scale: float = 1.2) -> Levels:
    r"""Levels with $\log s \sim \mathcal{N}(\text{mean}, \text{scale}^2)$, cut at both ends, stratified.

    Args:
        mean: Mean of the log noise level, in data units.
        scale: Its standard deviation.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
    """

    def levels(key, denoiser, num):
        low, high = (jax.scipy.stats.norm.cdf((b - mean) / scale) for b in _bounds(denoiser))
        quantiles = low + (high - low) * _stratified(key, num)
        return _times(denoiser, mean + scale * jax.scipy.stats.norm.ppf(quantiles))

    return levels


def denoising_loss(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    *,
    levels: Levels = uniform_log_snr,
    data_scale: Scalar | float = 1.0,
) -> Scalar:
    r"""Mean over examples and dimensions of $\lambda(s)\,(\hat x_0 - x_0)^2$, one level an example.

    Args:
        denoiser: Energy or denoiser to be judged.
        key: PRNG key. The same key gives the same noise, so that two denoisers compare in pairs.
        data: Examples of shape `(num, *shape)`.
        levels: Draws the times, `levels(key, denoiser, num)`.
        data_scale: $d$, the standard deviation of the data in $\lambda$.
    """
    key_level, key_noise = jax.random.split(key)
    times = levels(key_level, denoiser, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def one(x_0, t, epsilon):
        alpha_t, sigma_t = denoiser.schedule(t)
        s = sigma_t / alpha_t
        error = denoiser.denoise(alpha_t * x_0 + sigma_t * epsilon, t) - x_0
        return (1 / s**2 + 1 / data_scale**2) * jnp.mean(error**2)

    return jnp.mean(jax.vmap(one)(data, times, noise))
