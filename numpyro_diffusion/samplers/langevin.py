r"""Unadjusted and annealed Langevin algorithms: chains that follow a score, without a Metropolis test."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._arguments import whole_numbers
from .._prng import check_key, lean
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from .langevin_chains import LangevinDraws, Slope, chains, checked, found, last_noise, posterior

__all__ = ["annealed_langevin", "unadjusted_langevin"]


def unadjusted_langevin(
    key: PRNGKey,
    denoiser: AbstractDenoiser,
    log_likelihood: Callable[[Array], Scalar] | None = None,
    *,
    step_size: float = 0.05,
    num_steps: int = 200,
    num_samples: int = 1000,
    initial: Array | None = None,
) -> LangevinDraws:
    r"""Unadjusted Langevin algorithm (ULA) at `t_min`: a heuristic, biased by its step size.

    $$u \leftarrow u + \tfrac h2 \big(\nabla \log p(u) + \nabla \log L(u)\big) + \sqrt h\, \xi .$$

    Of a Gaussian with variance $s^2$ it keeps the mean and has the variance $s^2 / (1 - h / (4 s^2))$; it
    diverges from $h = 4 s^2$ on, with $s$ the smallest standard deviation of any direction, that of noise at
    `t_min` with a prior on a surface. Chains do not cross from mode to mode. Exact in the limit of small
    steps and long chains; with an energy use `MoveKernel` or `SMC`, with a score alone `Twisted`.

    Args:
        key: PRNG key.
        denoiser: The prior; a score is enough, and only that at `t_min` is used.
        log_likelihood: Log of $L$, `x -> ()` in nats for ONE example in units of the data; `None` for the
            prior.
        step_size: $h$, in squared units of the data.
        num_steps: Steps of each chain.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts, shape `(num_samples, *shape)`; by default draws of the Gaussian of
            `denoiser.data_moments(t_min)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `denoiser` is none.
        FloatingPointError: If a chain's position is not finite, or the likelihood is 0 there.

    Warns:
        UserWarning: If steps are too large to be stable where chains ended.

    References:
        Roberts & Tweedie (1996), Exponential convergence of Langevin distributions and their discrete
        approximations, Bernoulli.
    """
    key = check_key(key)
    num_steps, num_samples = whole_numbers(1, num_steps=num_steps, num_samples=num_samples)
    who = "unadjusted_langevin"
    step_size, initial, data = checked(
        who, denoiser, num_samples, initial, step_size, log_likelihood, False
    )
    times = jnp.full(1, denoiser.t_min, jnp.result_type(float))
    sizes = jnp.full(1, step_size, times.dtype)
    draws = chains(
        jax.random.split(lean(key), num_samples), denoiser, data, times, sizes, num_steps, initial
    )
    target = (
        f"unadjusted Langevin steps of size {step_size:g}, {num_steps} a chain; in the "
        f"limit of small steps: {posterior(log_likelihood)}"
    )
    return found(
        who, key, draws, Slope(denoiser, data, times[-1], last_noise(denoiser)), sizes, target
    )


def annealed_langevin(
    key: PRNGKey,
    denoiser: AbstractDenoiser,
    log_likelihood: Callable[[Array, Scalar], Scalar] | None = None,
    *,
    step_size: float = 0.2,
    num_levels: int = 10,
    num_steps: int = 100,
    num_samples: int = 1000,
    initial: Array | None = None,
) -> LangevinDraws:
    r"""Annealed Langevin dynamics: Langevin steps at one noise level after the other, as published.

    At noise levels $s_1 > \dots > s_L$, equal in log-SNR from `t_max` to `t_min`, `num_steps` steps each of

    $$u \leftarrow u + \tfrac{h_i}{2} \big(\nabla \log p_{s_i}(u) + \nabla \log L_{s_i}(u)\big) +
    \sqrt{h_i}\, \xi, \qquad h_i = \epsilon\, s_i^2 .$$

    A heuristic: of a Gaussian with variance $d^2$ a step multiplies the deviation from the mean by $1 - h_i
    / 2 (d^2 + s_i^2)$. Where $s_i \ll d$ that is hardly less than 1, and what earlier levels left is kept:
    with few steps the draws are too wide. With data the likelihood $L_s$ is that of the noised variable, and
    is to widen with the noise, $\mathcal{N}(y; H u, \sigma^2 + s^2)$ (Jalal et al.): steps are not stable
    where it is more precise than the level. The weighted method for a score is `Twisted`.

    Args:
        key: PRNG key.
        denoiser: The prior; a score is enough.
        log_likelihood: Log of $L_s$, `(u, s) -> ()` in nats for ONE noised example in units of the data and
            its noise level; `None` for the prior.
        step_size: $\epsilon$, below 4: the step in squared noise levels. Song & Ermon have 0.2 (2e-5 over
            0.01 squared).
        num_levels: $L$.
        num_steps: Steps at each level.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts at `t_max`, shape `(num_samples, *shape)`; by default draws of the Gaussian of
            `denoiser.data_moments(t_max)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `denoiser` is none.
        FloatingPointError: If a chain's position is not finite, or the likelihood is 0 there.

    Warns:
        UserWarning: If steps are too large to be stable where chains ended.

    References:
        Song & Ermon (2019), Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS,
        arXiv 1907.05600. Jalal, Arvinte, Daras, Price, Dimakis & Tamir (2021), Robust Compressed Sensing MRI
        with Deep Generative Priors, NeurIPS, arXiv 2108.01368.
    """
    key = check_key(key)
    num_steps, num_samples, num_levels = whole_numbers(
        1, num_steps=num_steps, num_samples=num_samples, num_levels=num_levels
    )
    who = "annealed_langevin"
    step_size, initial, data = checked(
        who, denoiser, num_samples, initial, step_size, log_likelihood, True
    )
    schedule = denoiser.schedule
    noisy, clean = (schedule.log_snr(jnp.asarray(t)) for t in (denoiser.t_max, denoiser.t_min))
    shares = jnp.linspace(0.0, 1.0, num_levels) if num_levels > 1 else jnp.ones(1)
    times = schedule.time(noisy + shares * (clean - noisy))
    times = jnp.clip(times, denoiser.t_min, denoiser.t_max)
    sizes = step_size * jax.vmap(schedule.noise_level)(times) ** 2
    draws = chains(
        jax.random.split(lean(key), num_samples), denoiser, data, times, sizes, num_steps, initial
    )
    target = (
        f"annealed Langevin steps of {step_size:g} squared noise levels, {num_steps} at each of "
        f"{num_levels}; in the "
        f"limit of small steps and many: {posterior(log_likelihood)}"
    )
    return found(
        who, key, draws, Slope(denoiser, data, times[-1], last_noise(denoiser)), sizes, target
    )
