r"""Fokker-Planck residuals of an energy over noise levels."""

import math

import jax
import jax.numpy as jnp

from .._arguments import whole_or_none
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractEnergy
from .consistency import Normalizer, jvp, log_density, log_levels
from .losses import Levels, uniform_log_snr

__all__ = ["fokker_planck_loss"]


def fokker_planck_loss(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    normalizer: Normalizer | None = None,
    num_probes: int | None = None,
    levels: Levels = uniform_log_snr,
) -> Scalar:
    r"""Mean square, a dimension, of the residual of the heat equation at noised data.

    $$\partial_{\log s} \log p - s^2 (\Delta \log p + |\nabla \log p|^2),$$

    exactly 0 for the exact distribution. Training differentiates a network three times.

    Args:
        energy: Energy to be judged.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`. They say only where the equation is asked for.
        normalizer: $L(t)$; 0 by default, so that the energy learns it.
        num_probes: `None` for the exact Laplacian, a derivative of the score a dimension; or the number of
            random probes of *each* of two independent estimates, whose product has the right mean and may be
            negative.
        levels: Draws the times.

    References:
        Lai et al. (2023), FP-Diffusion: improving score-based diffusion models by enforcing the underlying
        score Fokker-Planck equation, ICML.
    """
    key = check_key(key)
    num_probes = whole_or_none("num_probes", num_probes, 1, "`None` takes the exact Laplacian.")
    key_level, key_noise, key_probe = jax.random.split(key, 3)
    log_s = log_levels(energy, levels(key_level, energy, len(data))).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)
    log_p = log_density(energy, normalizer)
    score = jax.grad(log_p)

    def one(x_0, log_s, epsilon, key):
        s = jnp.exp(log_s)
        u = x_0 + s * epsilon
        rest = jax.grad(log_p, 1)(u, log_s) - s**2 * jnp.sum(score(u, log_s) ** 2)
        bend = lambda z: jnp.sum(z * jvp(lambda u: score(u, log_s), u, z))
        if num_probes is None:
            units = jnp.eye(u.size, dtype=u.dtype).reshape(u.size, *u.shape)
            return (rest - s**2 * jnp.sum(jax.vmap(bend)(units))) ** 2
        signs = jax.random.rademacher(key, (2, num_probes, *u.shape), u.dtype)
        first, second = rest - s**2 * jnp.mean(jax.vmap(jax.vmap(bend))(signs), 1)
        return first * second

    squares = jax.vmap(one)(data, log_s, noise, jax.random.split(key_probe, len(data)))
    return jnp.mean(squares) / math.prod(data.shape[1:])
