r"""Anchors: points with a known log density, to which an energy is tied in training.

A well-trained score knows the density everywhere, through an integral over noise levels. An energy
that fits the same scores may still be off by nats between far-off regions, since the path between
them leads through places that its training never saw. Anchors close the gap: compute the log density
of some points once, by the score formula, and let the energy fit it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import whole_number, whole_numbers
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from ..energies.reverse import reverse_process

__all__ = ["Anchors", "anchor_loss", "make_anchors", "score_log_density"]


class Anchors(NamedTuple):
    r"""Points with known log densities.

    Attributes:
        points: $u = x_t / \alpha_t$, shape `(num, *shape)`, in data units.
        times: Shape `(num,)`.
        log_densities: $\log p$ of $u$ at those times, shape `(num,)`, in nats.
    """

    points: Array
    times: Array
    log_densities: Array

    __repr__ = record
    _repr_html_ = record_page


def score_log_density(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    u: Array,
    t: Scalar,
    *,
    num_levels: int = 32,
    num_draws: int = 16,
) -> Scalar:
    r"""Log density of $u = x_t/\alpha_t$ under the reverse process of a denoiser, from scores alone.

    Adding noise $r z$ to $u$ takes it from level $s$ to $\sqrt{s^2 + r^2}$, where $q$ is the score:

    $$\log p_t(u) = \log g_t(u) - \int \mathbb{E}_z\big[|r q(u + r z) + z|^2 - |r q^g(u + r z) + z|^2\big]\,
      d \log r.$$

    The Gaussian $g$ of the data takes the place of the unknown density at pure noise and, with the same
    noise $z$ (in pairs $\pm z$), most of the variance.

    Args:
        denoiser: A denoiser or energy.
        key: PRNG key.
        u: Point in data units, of shape `shape`.
        t: Its time.
        num_levels: Nodes of the integral, equal steps in $\log r$.
        num_draws: Draws of $z$ a node, even.

    References:
        Li & Yan (2024), A Score-Based Density Formula, arXiv 2408.16765. Kong, Brekelmans & Ver Steeg
        (2023), Information-Theoretic Diffusion, ICLR.
    """
    num_levels, num_draws = whole_numbers(2, num_levels=num_levels, num_draws=num_draws)
    schedule = denoiser.schedule
    level = lambda t: schedule.noise_level(jnp.asarray(t, u.dtype))
    s, s_min, s_max = level(t), level(denoiser.t_min), level(denoiser.t_max)
    t_min = jnp.asarray(denoiser.t_min, u.dtype)
    mean, variance = denoiser.data_moments(t_min)
    data_variance = jnp.maximum(variance - s_min**2, 0.0)

    def gap(log_r, z):
        r = jnp.exp(log_r)
        t_r = jnp.clip(schedule.time(-jnp.log(s**2 + r**2)), denoiser.t_min, denoiser.t_max)
        alpha_r, sigma_r = schedule(t_r)
        v = u + r * z
        q = (denoiser.denoise(alpha_r * v, t_r) - v) * (alpha_r / sigma_r) ** 2
        q_gaussian = (mean - v) / (data_variance + s**2 + r**2)
        return jnp.sum((r * q + z) ** 2) - jnp.sum((r * q_gaussian + z) ** 2)

    # Below r = 0.05 s the integrand is of order r / s and the pairs cancel it.
    log_r = jnp.linspace(jnp.log(0.05 * s), jnp.log(s_max), num_levels)
    z = jax.random.normal(key, (num_levels, num_draws // 2, *u.shape), u.dtype)
    gaps = jax.vmap(jax.vmap(gap, (None, 0)))(log_r, jnp.concatenate([z, -z], 1))
    log_gaussian = -0.5 * jnp.sum(
        (u - mean) ** 2 / (data_variance + s**2) + jnp.log(2 * jnp.pi * (data_variance + s**2))
    )
    return log_gaussian - jnp.trapezoid(jnp.mean(gaps, 1), log_r)


def make_anchors(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    *,
    num: int = 8192,
    noise_max: float = 2.0,
    num_steps: int = 100,
) -> Anchors:
    """Anchors near the data: half of them training examples, half draws of the reverse process.

    Half of each lie at `t_min`, where the prior is read; the others at higher levels, uniform in
    log-SNR up to `noise_max`.

    Args:
        denoiser: A trained denoiser or energy; its scores say the densities.
        key: PRNG key.
        data: Training examples of shape `(num_data, *shape)`.
        num: Number of anchors.
        noise_max: Highest noise level of an anchor, in data units; about the scale of the data.
        num_steps: Steps of the reverse process.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    num = whole_number("num", num, 2)
    key_draw, key_pick, key_level, key_noise, key_density = jax.random.split(key, 5)
    t_min = jnp.asarray(denoiser.t_min, data.dtype)
    draw = lambda k: denoiser.denoise(reverse_process(denoiser, k, num_steps), t_min)
    draws = jax.jit(jax.vmap(draw))(jax.random.split(key_draw, num // 2))
    picks = data[jax.random.randint(key_pick, (num - num // 2,), 0, len(data))]
    clean = jnp.concatenate([draws.astype(data.dtype), picks])
    schedule = denoiser.schedule
    low = jnp.log(schedule.noise_level(t_min))
    place = jnp.maximum(0.0, 2 * jax.random.uniform(key_level, (num,), data.dtype) - 1)
    log_s = low + place * (jnp.log(noise_max) - low)
    times = jnp.clip(jax.vmap(schedule.time)(-2 * log_s), denoiser.t_min, denoiser.t_max)
    noise = jax.random.normal(key_noise, clean.shape, data.dtype)
    points = clean + jnp.exp(log_s)[(...,) + (None,) * (clean.ndim - 1)] * noise
    args = jax.random.split(key_density, num), points, times
    density = lambda arg: score_log_density(denoiser, *arg)
    return Anchors(points, times, jax.jit(lambda a: jax.lax.map(density, a, batch_size=32))(args))


def anchor_loss(energy: AbstractEnergy, anchors: Anchors, *, scale: float = 5.0) -> Scalar:
    r"""Distance of energies from their anchors: pseudo-Huber loss of $E + \log p$, per dimension.

    Args:
        energy: Energy to be judged; with this loss it learns its own normaliser too.
        anchors: The anchors.
        scale: Errors beyond this many nats count linearly.
    """

    def one(u, t, log_density):
        alpha_t, _ = energy.schedule(t)
        error = energy.energy(alpha_t * u, t) - u.size * jnp.log(alpha_t) + log_density
        return 2 * scale**2 * (jnp.sqrt(1 + (error / scale) ** 2) - 1) / u.size

    return jnp.mean(jax.vmap(one)(*anchors))
