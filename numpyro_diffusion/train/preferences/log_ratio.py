r"""The log ratio of two diffusion models at one example, less that at another.

Preferences are of pairs, so normalisers drop out, and most of the noise does if both examples of a pair meet
the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ... import _faq
from ..._arguments import whole_number
from ..._typing import Array, PRNGKey, Scalar
from ...energies import AbstractDenoiser, AbstractEnergy
from ..levels import level_bounds, times_at_levels

__all__ = ["LogRatio", "denoising_log_ratio", "energy_log_ratio"]

LogRatio = Callable[[AbstractDenoiser, AbstractDenoiser, PRNGKey, Array, Array], Scalar]
"""`log_ratio(model, prior, key, winner, loser)` of shape `()`, in nats, for ONE pair."""


def denoising_log_ratio(num_levels: int = 8) -> LogRatio:
    r"""From errors of denoising, which any diffusion model has.

    $g = -\tfrac1K \sum_k \omega(s_k) \big[ (|e_\theta|^2 - |e|^2)(x_w) - (|e_\theta|^2 - |e|^2)(x_l) \big]$
    with $e = \hat x_0(x + s \epsilon) - x$. **Time and noise are shared in a pair.** Levels have a logistic
    distribution in log-SNR around that of the data, of scale $d$, and $\omega$ is what makes the mean an
    integral over $|e|^2\, d \log s / s^2$: minus the log density, less a number that no model moves. Every
    draw is then right for a shift of a Gaussian of scale $d$; in general the mean is, so that a loss of $g$
    is right as levels become many.

    Args:
        num_levels: $K$, levels a pair, one in each cell of equal probability. Each costs four evaluations.

    References:
        Wallace et al. (2023), Diffusion Model Alignment Using Direct Preference Optimization, arXiv
        2311.12908. Kong, Brekelmans & Ver Steeg (2023), Information-Theoretic Diffusion, arXiv 2302.03792,
        for the density.
    """
    num_levels = whole_number("num_levels", num_levels, 1)

    def log_ratio(model, prior, key, winner, loser):
        key_level, key_noise = jax.random.split(key)
        _, variance = prior.data_moments(jnp.asarray(prior.t_min, winner.dtype))
        log_scale = 0.5 * jnp.log(jnp.mean(variance)).astype(winner.dtype)
        ends = jnp.stack(level_bounds(prior)).astype(winner.dtype)
        low, high = jax.nn.sigmoid(2 * (ends - log_scale))  # quantiles of log s
        cells = (jnp.arange(num_levels) + jax.random.uniform(key_level, (num_levels,))) / num_levels
        log_levels = log_scale + 0.5 * jax.scipy.special.logit(low + (high - low) * cells)
        times = times_at_levels(prior, log_levels).astype(winner.dtype)
        noise = jax.random.normal(key_noise, (num_levels, *winner.shape), winner.dtype)

        def at(t, epsilon):
            alpha_t, sigma_t = prior.schedule(t)
            s, d = sigma_t / alpha_t, jnp.exp(log_scale)

            def excess(x):
                """By how much the model denoises worse than the prior."""
                x_t = alpha_t * x + sigma_t * epsilon
                ours, theirs = model.denoise(x_t, t), prior.denoise(x_t, t)
                return jnp.sum((ours - theirs) * (ours + theirs - 2 * x))

            weight = (high - low) * (s**2 + d**2) ** 2 / (2 * s**4 * d**2)
            return -weight * (excess(winner) - excess(loser))

        return jnp.mean(jax.vmap(at)(times, noise))

    return log_ratio


def energy_log_ratio(model, prior, key: PRNGKey, winner: Array, loser: Array) -> Scalar:
    r"""From energies at `t_min`: exact, without noise, and of that level alone.

    A network that hardly shares weights between levels learns nothing of the others, along which samplers go.

    Args:
        model: An energy.
        prior: The energy it started from.
        key: Not used.
        winner: The preferred example.
        loser: The other one.

    Raises:
        TypeError: If one of the two is no energy.
    """
    del key
    for law in (model, prior):
        if not isinstance(law, AbstractEnergy):
            raise TypeError(
                f"`energy_log_ratio` expects energies; got {type(law).__name__}. Take "
                f"`denoising_log_ratio()`, or `distill` an energy first. {_faq.score_only}"
            )
    t = jnp.asarray(prior.t_min, winner.dtype)
    gain = lambda x: model.log_density(x, t) - prior.log_density(x, t)
    return gain(winner) - gain(loser)
