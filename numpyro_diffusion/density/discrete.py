r"""Evidence lower bounds (ELBO) of discrete-time diffusion models (DDPM).

With $\tau_k = 1 - \bar\alpha_k$, the noise variance of step $k$, the usual sum

$$\log p(x) \approx -\tfrac d2 (1 + \log 2 \pi \tau_1) - \sum_{k \ge 2} c_k\,
  \mathbb{E} |\epsilon - \hat\epsilon_k|^2$$

is the score-based density formula by a rule that misses the singular part of its integrand, $d / 2\tau$, in
the first steps: it is off by about +0.35 ($c_k$ of the Riemann sum or of DDPM) or -0.5 nats a dimension
(exact weights of the bound), nearly the same at every $x$. That is harmless for ranking and fatal for
evidence, bits a dimension and comparison of models. `elbo` keeps the singular part inside the sum, where it
cancels.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain, whole_or_none
from .._typing import Array, PRNGKey
from ..energies import AbstractDenoiser, AbstractEnergy
from ..schedules import Tabulated
from .estimate import AbstractLogDensity, DensityEstimate, Point
from .formula import ScoreFormula
from .noises import AbstractNoises, Mirrored
from .reference import check_noised
from .times import AbstractTimes

__all__ = ["Steps", "UsualSum", "ddpm_weights", "elbo", "riemann_weights", "snr_weights"]


class Steps(AbstractTimes):
    r"""The steps of a discrete model, by the trapezoidal rule in $\tau$.

    Equally spaced times from `t_min`, the first step, to `t_max`. That is the grid of DDPM for
    `VariancePreserving`, and the table itself for a `Tabulated` schedule of as many steps.

    Attributes:
        num: Number of steps after the first.
    """

    num: int = eqx.field(static=True, converter=plain, default=999)

    def __call__(self, key, num_noises, span):
        del key
        t = jnp.linspace(span.t_min, span.t_max, self.num + 1)[1:]
        r = jax.vmap(span.added)(t)
        tau = r / (span.scale + r)
        gaps = jnp.diff(tau, prepend=0.0)
        # At tau = 0 the integrand is bounded, and taken to be that of the first step.
        weights = 0.5 * (gaps + jnp.append(gaps[1:], 0.0))
        weights = weights.at[0].add(0.5 * gaps[0])
        ones = jnp.ones((1, num_noises), t.dtype)
        return span.variances(tau[:, None] * ones, weights[:, None] * ones)


def elbo(
    prior: AbstractDenoiser,
    x,
    key: PRNGKey | None = None,
    *,
    num_steps: int | None = None,
    noises: AbstractNoises | None = None,
    reference: AbstractEnergy | None = None,
    batch_size: int = 4096,
) -> DensityEstimate:
    r"""Log density by the steps of a discrete model, without the constant that the usual sum is off by.

    The score-based density formula (`score_formula`) by the trapezoidal rule over the model's steps, with
    $d / 2 \tau$, or a Gaussian in its place, inside the sum. With 1,000 steps of DDPM the error of the rule
    is below 1e-3 nats. As the number of steps grows it is the evidence lower bound of the model.

    Args:
        prior: Denoiser or energy.
        x: Examples of shape `(*batch, *shape)`.
        key: PRNG key; by default the same noises at every call.
        num_steps: Number of steps; those of a `Tabulated` schedule, or 1,000.
        noises: `Mirrored(2)` by default, which is 4 evaluations a step and point.
        reference: As in `ScoreFormula`.
        batch_size: Evaluations of the network held in memory at once.

    Returns:
        As `score_formula`.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If shapes or numbers do not fit.

    References:
        Ho, Jain & Abbeel (2020), Denoising Diffusion Probabilistic Models, NeurIPS. Li & Yan (2024), arXiv
        2408.16765; the rule for the first steps is derived here.
    """
    num_steps = whole_or_none("num_steps", num_steps, 3, "`None` takes the prior's own.")
    schedule = getattr(prior, "schedule", None)
    if num_steps is None:
        num_steps = len(schedule.log_snrs) if isinstance(schedule, Tabulated) else 1000
    noises = Mirrored(2) if noises is None else noises
    estimator = ScoreFormula(Steps(num_steps - 1), noises, None, reference)
    return estimator(prior, x, key, batch_size=batch_size)


def riemann_weights(tau: Array) -> Array:
    r"""$c_k = (1 - \alpha_k) / 2 (1 - \bar\alpha_k)$ of steps $k \ge 2$, shape `(K - 1,)`."""
    return 0.5 * _betas(tau) / tau[1:]


def ddpm_weights(tau: Array) -> Array:
    r"""$c_k = (1 - \alpha_k) / 2 \alpha_k (1 - \bar\alpha_k)$: the bound with variances $\beta_k$."""
    betas = _betas(tau)
    return 0.5 * betas / (1 - betas) / tau[1:]


def snr_weights(tau: Array) -> Array:
    r"""$c_k = (1 - \alpha_k) / 2 \alpha_k (1 - \bar\alpha_{k-1})$: the bound with exact variances.

    It is half the fall of the signal-to-noise ratio times the noise-to-signal ratio.
    """
    betas = _betas(tau)
    return 0.5 * betas / (1 - betas) / tau[:-1]


def _betas(tau: Array) -> Array:
    return jnp.diff(tau) / (1 - tau[:-1])


class UsualSum(AbstractLogDensity):
    r"""The usual sum of denoising losses over steps: for comparison, and for ranking within one model.

    $-\tfrac d2 (1 + \log 2 \pi \tau_1) - \sum_{k \ge 2} c_k\, \mathbb{E} |\epsilon - \hat\epsilon_k|^2$ with
    $\tau_k$ the noise variance of step $k$ and unit signal. It is NOT a log density: with any of the three
    weights it is off by .3 to .5 nats a dimension.

    Attributes:
        weights: `tau -> c`, from $\tau$ of shape `(K,)` to the weights of all but the first step; such as
            `ddpm_weights`, or `lambda tau: jnp.ones(len(tau) - 1)` for what is called the simple loss.
        num: Number of steps, equally spaced in time.
        noises: Random noises at each step.
    """

    weights: Callable[[Array], Array] = eqx.field(static=True, default=ddpm_weights)
    num: int = eqx.field(static=True, converter=plain, default=1000)
    noises: AbstractNoises = eqx.field(default_factory=lambda: Mirrored(2))

    def __check_init__(self):
        check_counts(self, num=2)

    @property
    def law(self) -> str:
        return (
            "usual sum of denoising losses: off by a constant of some tenths of a nat a dimension"
        )

    def prepare(self, prior):
        check_noised(prior)

    def size(self, prior):
        return 2 * (self.num - 1) * self.noises.num_noises(math.prod(prior.shape))

    def point(self, prior, shared, x, key, at_once):
        t = jnp.linspace(prior.t_min, prior.t_max, self.num, dtype=x.dtype)
        tau = 1 / (1 + jnp.exp(jax.vmap(prior.schedule.log_snr)(t)))
        noises, shares = self.noises(key, self.num - 1, x)

        def loss(at):
            t, epsilon = at
            alpha_t, sigma_t = prior.schedule(t)

            def one(epsilon):
                x_t = alpha_t * x + sigma_t * epsilon
                guess = (x_t - alpha_t * prior.denoise(x_t, t)) / sigma_t
                return 0.5 * jnp.sum((epsilon - guess) ** 2)

            return one(epsilon) + one(-epsilon)

        times = jnp.repeat(t[1:], noises.shape[1])
        flat = noises.reshape(-1, *x.shape)
        step = max(1, min(len(flat), at_once // 2))
        losses = jax.lax.map(loss, (times, flat), batch_size=step).reshape(noises.shape[:2])
        columns = self.weights(tau) @ losses
        start, evaluations = -0.5 * x.size * (1 + jnp.log(2 * jnp.pi * tau[0])), self.size(prior)
        value = start - columns @ shares
        if not self.noises.random:
            return Point(value, jnp.zeros_like(value), jnp.asarray(evaluations))
        variance = jnp.var(columns, ddof=1) / len(columns)
        return Point(value, variance, jnp.asarray(evaluations), start - columns)
