r"""The evidence lower bound as a function of the largest noise level, and where it is long enough.

A long horizon adds the score's errors of many levels; a short one begins at a distribution that is not quite
the initial one. With a distribution fitted to the data, noised exactly, as the initial one, a short horizon
costs little.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._prng import lean
from .._records import record, record_page
from .._typing import PRNGKey, Scalar
from ..energies import AbstractDenoiser
from ..energies.initial import StandardNormal
from ..energies.normal import log_normal
from .paths import (
    check_data,
    check_finite,
    gauss_legendre,
    log_noise,
    over_examples,
    times_at,
)
from .reference import Reference

__all__ = ["HorizonReport", "elbo_vs_horizon"]


class HorizonReport(NamedTuple):
    r"""The bound and its parts at each horizon; arrays of shape `(num_horizons,)`, in nats an example.

    $\mathrm{ELBO}(T) = \mathbb{E} \log p_{t_{\min}} - G(T) - \mathrm{KL}(p_T \| \nu_T)$.

    Attributes:
        horizons: Times $T$, rising.
        elbo: $\mathrm{ELBO}(T)$, of the data noised to `t_min`.
        elbo_error: Standard errors of `elbo`.
        loss: `elbo` at the best horizon less `elbo`: what each other horizon gives away.
        loss_error: Standard errors of `loss`. The noise is shared, so they are far smaller.
        kl_to_initial: $\mathrm{KL}(p_T \| \nu_T)$, the part of the initial distribution.
        kl_error: Its standard errors.
        score_gap: $G(T) = \tfrac12 \int \mathbb{E} |\Delta \nabla \log p|^2\, ds^2$, the part of the
            score's error; NaN without `truth`.
        score_gap_error: Its standard errors.
        best: The horizon with the largest bound.
    """

    horizons: np.ndarray
    elbo: np.ndarray
    elbo_error: np.ndarray
    loss: np.ndarray
    loss_error: np.ndarray
    kl_to_initial: np.ndarray
    kl_error: np.ndarray
    score_gap: np.ndarray
    score_gap_error: np.ndarray
    best: float

    __repr__ = record
    _repr_html_ = record_page


def elbo_vs_horizon(
    energy: AbstractDenoiser,
    data,
    key: PRNGKey,
    horizons,
    *,
    initial: Callable[[Scalar], Any] | None = None,
    truth: AbstractDenoiser | None = None,
    num_nodes: int = 64,
    num_noises: int = 1,
    batch_size: int | None = 500,
) -> HorizonReport:
    r"""Evidence lower bound of the reverse diffusion that starts at horizon $T$ from $\nu_T$.

    With $u_s = x_0 + s \epsilon$ and $g$ the model's score of $u_s$,

    $$\mathrm{ELBO}(T) = \mathbb{E} \log \nu_T(u_T)
      - \int_{s_{\min}}^{s_T} \mathbb{E}\big[|s g + \epsilon|^2 - |\epsilon|^2\big]\, d \log s ,$$

    a bound on the mean log density, at data noised to `t_min`, of the reverse diffusion in continuous
    time. For the exact score and $\nu_T = p_T$ it is the same at every $T$. It speaks of that sampler; in
    a sampler that weighs its particles the initial weight makes every horizon right, and the horizon costs
    variance and levels alone.

    All horizons share examples and noises, each with its mirror image, and the same quantities of the
    Gaussian of the data, whose mean is known, are subtracted.

    Args:
        energy: The prior; a denoiser is enough.
        data: Clean examples of shape `(num, *shape)`, in the units of the prior.
        key: PRNG key.
        horizons: Rising times in (`t_min`, `t_max`].
        initial: `t -> law` of $u$ with `log_prob(u)`, traceable in `t`, such as
            `fit_mixture(energy, data, 4, key).at`; the standard normal of $x_t$ by default.
        truth: An energy or denoiser with the exact score, where there is one, for the score gap and the
            divergence. Without it the divergence is by the model's own score, from `t_max`, where
            the distribution is taken to be the Gaussian of `energy.moments(t_max)`.
        num_nodes: About how many nodes in log noise level from `t_min` to `t_max`.
        num_noises: Pairs of mirrored noises an example.
        batch_size: Examples that are evaluated at once, to bound memory; all of them if `None`.

    Raises:
        ValueError: If data, horizons or numbers cannot be used.
        FloatingPointError: If a score is NaN; the message names the example.

    References:
        Franzese et al. (2023), How much is enough? A study on diffusion times in score-based generative
        models, Entropy. Li & Yan (2024), arXiv 2408.16765, for the bound.
    """
    counts = {"num_noises": num_noises, "num_nodes": num_nodes, "batch_size": batch_size}
    data = check_data(energy, data, **counts)
    horizons = np.asarray(horizons, float)
    _check_horizons(energy, horizons)
    if initial is None:
        initial = StandardNormal.of(energy).at
    ends = log_noise(energy, [energy.t_min, *horizons, energy.t_max])
    if ends[-1] - ends[-2] < 1e-6:  # the last horizon is t_max
        ends = ends[:-1]
    log_s, weights = gauss_legendre(ends, num_nodes)
    nodes = times_at(energy, log_s), jnp.asarray(weights, data.dtype)
    keys = jax.random.split(lean(key), len(data))
    models = energy, truth, Reference.of(data), initial
    times = jnp.asarray(horizons, data.dtype)
    values = _terms(models, data, keys, nodes, times, num_noises, batch_size)
    elbo, kl, gap = (np.asarray(value, float) for value in values)
    check_finite("elbo_vs_horizon", elbo)
    best = int(elbo.mean(0).argmax())
    loss = elbo[:, best : best + 1] - elbo
    columns = [(v.mean(0), v.std(0, ddof=1) / len(data) ** 0.5) for v in (elbo, loss, kl, gap)]
    return HorizonReport(
        horizons, *columns[0], *columns[1], *columns[2], *columns[3], float(horizons[best])
    )


@eqx.filter_jit
def _terms(models, data, keys, nodes, horizons, num_noises, batch_size):
    """Each example's bound, divergence and score gap at each horizon, shapes `(num, num_horizons)`."""
    energy, truth, reference, initial = models
    judge = energy if truth is None else truth
    (times, weights), count, noise_at = nodes, len(horizons), energy.schedule.noise_level
    t_min, t_max = (jnp.asarray(t, data.dtype) for t in (energy.t_min, energy.t_max))
    mean, variance = judge.moments(t_max)
    alpha_max, _ = energy.schedule(t_max)

    def log_end(u):
        return jnp.sum(log_normal(u - mean / alpha_max, variance / alpha_max**2))

    def path(x0, noise):
        at = lambda t: x0 + noise_at(t) * noise
        log_reference = lambda t: reference.log_density_and_score(at(t), noise_at(t))[0]

        def slope(t):
            s, u = noise_at(t), at(t)
            g = energy.data_score(u, t)
            h = g if truth is None else truth.data_score(u, t)
            _, other = reference.log_density_and_score(u, s)
            term = lambda g: jnp.sum(s * g * (2 * noise + s * g))
            gap = jnp.nan if truth is None else jnp.sum((s * (g - h)) ** 2)
            return term(g), term(h), term(other), gap

        model, judged, other, gap = (weights @ value for value in jax.lax.map(slope, times))
        log_initial = jax.lax.map(lambda t: initial(t).log_prob(at(t)), horizons)
        log_others = jax.lax.map(log_reference, horizons)
        # What the Gaussian of the data has instead, less what is known to be its mean: zero on average.
        spare = log_others - other[:count] - log_reference(t_min)
        elbo = log_initial - model[:count] - spare
        spare = log_reference(t_max) - (other[-1] - other[:count]) - log_others
        log_p = log_end(at(t_max)) - (judged[-1] - judged[:count]) - spare
        return elbo, log_p - log_initial, gap[:count]

    def one(x0, key):
        noises = jax.random.normal(key, (num_noises, *x0.shape), x0.dtype)
        both = jnp.concatenate([noises, -noises])
        values = jax.lax.map(lambda noise: path(x0, noise), both)
        return jax.tree.map(lambda value: jnp.mean(value, 0), values)

    return over_examples(one, batch_size, data, keys)


def _check_horizons(energy, horizons: np.ndarray) -> None:
    inside = horizons.ndim == 1 and horizons.size > 0 and np.all(np.diff(horizons) > 0)
    if not (inside and horizons[0] > energy.t_min and horizons[-1] <= energy.t_max):
        raise ValueError(
            f"`horizons` must be rising times in ({energy.t_min:.4g}, {energy.t_max:.4g}], the energy's own "
            f"t_min and t_max; got {horizons}. Sort them, or lengthen the horizon with "
            f"`with_horizon`. {_faq.schedules}"
        )
