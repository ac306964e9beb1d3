r"""Distributions of noise levels in training, and the weights of their losses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._numbers import number
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser

__all__ = [
    "Levels",
    "Weight",
    "karras_weight",
    "level_bounds",
    "likelihood_weight",
    "log_normal",
    "times_at_levels",
    "uniform_log_snr",
]

Levels = Callable[[PRNGKey, AbstractDenoiser, int], Array]
r"""`levels(key, denoiser, num) -> times` of shape `(num,)`."""

Weight = Callable[[Scalar, Scalar | float], Scalar]
r"""`weight(s, data_scale)`, what a squared error of the denoiser counts at noise level $s$."""


def _stratified(key: PRNGKey, num: int) -> Array:
    """One uniform draw in each of `num` equal cells of [0, 1], in shuffled order."""
    key_cell, key_order = jax.random.split(key)
    cells = jax.random.permutation(key_order, num)
    return (cells + jax.random.uniform(key_cell, (num,))) / num


def level_bounds(denoiser: AbstractDenoiser) -> tuple[Scalar, Scalar]:
    """Logarithms of the least and the largest noise level."""
    times = jnp.asarray([denoiser.t_min, denoiser.t_max])
    log_levels = jnp.log(jax.vmap(denoiser.schedule.noise_level)(times))
    return log_levels[0], log_levels[1]


def times_at_levels(denoiser: AbstractDenoiser, log_levels: Array) -> Array:
    """Times of log noise levels, within the denoiser's own."""
    times = jax.vmap(denoiser.schedule.time)(-2 * log_levels)
    return jnp.clip(times, denoiser.t_min, denoiser.t_max)


def uniform_log_snr(key: PRNGKey, denoiser: AbstractDenoiser, num: int) -> Array:
    """Times uniform in log-SNR between `t_min` and `t_max`, one in each of `num` equal cells."""
    key = check_key(key)
    low, high = level_bounds(denoiser)
    return times_at_levels(denoiser, low + (high - low) * _stratified(key, num))


def log_normal(mean: float = -1.2, scale: float = 1.2) -> Levels:
    r"""Levels with $\log s \sim \mathcal{N}(\text{mean}, \text{scale}^2)$, cut at both ends, stratified.

    Args:
        mean: Mean of the log noise level, in data units.
        scale: Its standard deviation.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
    """

    def levels(key, denoiser, num):
        low, high = (jax.scipy.stats.norm.cdf((b - mean) / scale) for b in level_bounds(denoiser))
        quantiles = low + (high - low) * _stratified(key, num)
        return times_at_levels(denoiser, mean + scale * jax.scipy.stats.norm.ppf(quantiles))

    return levels


def karras_weight(s: Scalar, data_scale: Scalar | float) -> Scalar:
    r"""$\lambda(s) = 1/s^2 + 1/d^2$: a useless denoiser costs about 1 a dimension at every level."""
    return 1 / s**2 + 1 / number("data_scale", data_scale, above=0, traced=True) ** 2


def likelihood_weight(s: Scalar, data_scale: Scalar | float) -> Scalar:
    r"""$\lambda(s) = 1/s^2$: with `uniform_log_snr` levels the loss is a likelihood.

    These are the weights that the score-based density formula implies. With $R = \log(s_{\max}/s_{\min})$
    and $d$ dimensions, $d R$ times the loss is minus the mean log density of `score_formula`, up to a
    number that no parameter moves: two models differ by as much in one as in the other.

    References:
        Li & Yan (2024), arXiv 2408.16765. Song et al. (2021), Maximum likelihood training of score-based
        diffusion models, NeurIPS.
    """
    del data_scale
    return 1 / s**2
