r"""The prior's normaliser from ratios of adjacent noise levels (bridge sampling along noised data)."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._prng import check_key, lean
from .._typing import PRNGKey
from ..density.paths import check_data, check_finite, log_noise, over_examples, times_at
from ..density.reference import Reference
from ..energies import AbstractEnergy
from ..energies.check import check_has_density
from .thermodynamic import Normalizer, anchor_normalizer, unnormalized

__all__ = ["adjacent_normalizer"]


def adjacent_normalizer(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    *,
    num_levels: int = 64,
    num_pilot: int = 256,
    num_anchors: int = 2000,
    initial: Any = None,
    batch_size: int | None = 500,
) -> Normalizer:
    r"""Normaliser by the identity of adjacent levels, from data that are noised step by step.

    For levels $s < t$, any density $m$ and the noising $q(u_t \mid u_s) = \mathcal{N}(u_s, v I)$,

    $$\frac{Z_t}{Z_s} = \mathbb{E}_{p_s(u_s)\, q(u_t \mid u_s)}\left[
      \frac{e^{-E(u_t, t)}\, m(u_s \mid u_t)}{e^{-E(u_s, s)}\, q(u_t \mid u_s)}\right] .$$

    The levels are equal steps of log noise. $m = \mathcal{N}(u_t + v \nabla \log p_t(u_t),\ r)$ has one
    variance a coordinate of the data's eigenbasis, $r = v (1 - v\, \mathbb{E}[g^2])$ with $g$ the score,
    from a pilot sample; were it the exact reverse kernel, nothing would be left to average. What is left
    falls as the number of levels grows. At `t_max` an importance sample is the anchor.

    Right if the data follow the energy's own distribution; the energies of the levels in between may then be
    anything, at the price of variance. Otherwise biased by the model's error. The error is by the delta
    method over independent examples; the logarithm of a mean is biased low, by half its variance.

    Args:
        energy: The prior. A stored `log_normalizer` is not looked at.
        data: Clean examples of shape `(num, *shape)`, in the units of the prior.
        key: PRNG key.
        num_levels: Steps from `t_min` to `t_max`.
        num_pilot: Examples, noised otherwise, that set the variances of $m$.
        num_anchors: Draws of the importance sample at `t_max`.
        initial: Distribution that they are drawn from, with `sample(key)` and `log_prob(u)`; the Gaussian of
            `energy.moments(t_max)` by default.
        batch_size: Examples that are evaluated at once, to bound memory; all of them if `None`.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data or numbers cannot be used.
        FloatingPointError: If a log density is NaN or +inf; the message names the example.

    References:
        Bennett (1976), Efficient estimation of free energy differences, J. Comput. Phys. He et al.
        (2025), RNE: plug-and-play diffusion inference-time control and energy-based training.
    """
    key = check_key(key)
    check_has_density("adjacent_normalizer", energy)
    counts = {"num_pilot": num_pilot, "num_anchors": num_anchors, "batch_size": batch_size}
    data = check_data(energy, data, num_levels=num_levels, **counts)
    low, high = log_noise(energy, [energy.t_min, energy.t_max])
    times = times_at(energy, np.linspace(low, high, num_levels + 1))
    key_anchor, key_pilot, key_data = jax.random.split(lean(key), 3)
    caller = "adjacent_normalizer"
    anchor, anchor_error = anchor_normalizer(energy, key_anchor, num_anchors, initial, caller)
    reference, num_pilot = Reference.of(data), min(num_pilot, len(data))
    keys = jax.random.split(key_pilot, num_pilot), jax.random.split(key_data, len(data))
    spreads = _pilot(energy, reference, data[:num_pilot], keys[0], times, batch_size)
    log_ratios = _log_ratios(energy, reference, data, keys[1], times, spreads, batch_size)
    log_ratios = np.asarray(log_ratios, float)
    check_finite(caller, log_ratios)
    top = log_ratios.max(0)
    ratios = np.exp(log_ratios - top)
    influence = (ratios / ratios.mean(0)).sum(1)
    error = influence.std(ddof=1) / len(data) ** 0.5
    return Normalizer(
        anchor - float((top + np.log(ratios.mean(0))).sum()),
        math.hypot(anchor_error, error),
        f"adjacent levels, {num_levels} steps, {len(data)} noised examples",
        (num_levels + 1) * (len(data) + num_pilot) + num_anchors,
        float(log_ratios.sum(1).std(ddof=1)),
    )


def _walk(energy, times, x0, key):
    """One example noised step by step: log densities, steps, scores, and the variances of steps."""
    noise = jax.vmap(energy.schedule.noise_level)(times)
    # Twice the same digits would cancel in a difference of squares at low noise.
    variances = (noise[1:] - noise[:-1]) * (noise[1:] + noise[:-1])
    key_start, key_steps = jax.random.split(key)
    shape = (len(variances), *x0.shape)
    scale = jnp.sqrt(variances).reshape(-1, *(1 for _ in x0.shape))
    steps = scale * jax.random.normal(key_steps, shape, x0.dtype)
    start = x0 + noise[0] * jax.random.normal(key_start, x0.shape, x0.dtype)
    path = jnp.concatenate([start[None], start + jnp.cumsum(steps, 0)])
    log_densities, scores = jax.lax.map(lambda at: unnormalized(energy, *at), (path, times))
    least = (noise[:-1] / noise[1:]) ** 2  # what noise leaves of the step's variance for one point
    return log_densities, steps, scores[1:], variances, least


@eqx.filter_jit
def _pilot(energy, reference, data, keys, times, batch_size):
    """Variances of the reverse kernels, shape `(num_levels, d)`."""

    def one(x0, key):
        _, _, scores, variances, least = _walk(energy, times, x0, key)
        return jax.vmap(reference.turn)(scores) ** 2, variances, least

    squares, variances, least = over_examples(one, batch_size, data, keys)
    v = variances[0][:, None]
    return v * jnp.clip(1 - v * jnp.mean(squares, 0), least[0][:, None], 1.0)


@eqx.filter_jit
def _log_ratios(energy, reference, data, keys, times, spreads, batch_size):
    """Log ratios of adjacent levels by example, shape `(num, num_levels)`."""

    def one(x0, key):
        log_densities, steps, scores, v, _ = _walk(energy, times, x0, key)
        steps, scores = jax.vmap(reference.turn)(steps), jax.vmap(reference.turn)(scores)
        v = v[:, None]
        back = (steps + v * scores) ** 2 / spreads
        log_kernels = 0.5 * (steps**2 / v - back - jnp.log(spreads / v))
        return log_densities[1:] - log_densities[:-1] + jnp.sum(log_kernels, -1)

    return over_examples(one, batch_size, data, keys)
