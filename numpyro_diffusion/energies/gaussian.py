r"""Gaussians and Gaussian mixtures, with a closed form at every noise level.

If $x_0 \sim \sum_k w_k \mathcal{N}(m_k, S_k)$ then
$x_t \sim \sum_k w_k \mathcal{N}(\alpha_t m_k,\ \alpha_t^2 S_k + \sigma_t^2 I)$. Covariances are kept as
eigenvalues and eigenvectors, so that a change of noise level costs no factorisation. Traced ones, such as
those that a model makes of latent variables, are kept as they are: eigenvectors have no derivative where
eigenvalues meet. Their Cholesky factor has one, and is taken at every level.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .checks import horizon_of, is_traced, numbers, sum_to_one
from .energy import AbstractEnergy
from .normal import coloured, decompose, log_noised_normal, recomposed, root, variances

__all__ = ["Gaussian", "GaussianMixture"]


class GaussianMixture(AbstractEnergy):
    r"""Mixture of Gaussians, noised exactly.

    $E(x, t) = -\log \sum_k w_k \mathcal{N}(x; \alpha_t m_k, \alpha_t^2 S_k + \sigma_t^2 I)$.
    Normalised at every level, so `log_normalizer` is 0. Examples are vectors.

    Args:
        weights: Shape `(k,)`, non-negative, of sum 1. May be traced, and are then normalised.
        means: Shape `(k, d)`. May be traced.
        covariances: Shape `(k, d, d)`, symmetric positive definite. May be traced; the density is NaN where
            a traced one is not positive definite.
        schedule: Noise schedule.
        t_min: Time at which the prior is read. The default adds noise of 0.4 % of one unit.
        t_max: Time at which sampling starts. The default adds noise of 100 units.

    Raises:
        ValueError: If shapes disagree, a number is not finite, weights are negative or do not sum to 1, or a
            covariance is not symmetric positive definite.
    """

    weights: Array
    means: Array
    eigenvalues: Array | None
    eigenvectors: Array  # of traced covariances those themselves, and no eigenvalues
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=0.0)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)
    normalized = True

    def __init__(
        self,
        weights=(0.3, 0.7),
        means=((-2.0, 0.5), (1.0, -0.5)),
        covariances=(((0.5, 0.2), (0.2, 0.3)), ((0.2, -0.1), (-0.1, 0.6))),
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        weights, means = numbers(weights, "weights"), numbers(means, "means")
        if means.ndim != 2 or not means.size or weights.shape != means.shape[:1]:
            raise ValueError(
                "`weights` must have shape (k,) and `means` shape (k, d); got "
                f"{weights.shape} and {means.shape}. {_faq.shapes}"
            )
        if is_traced(weights):  # of negative ones, no density
            weights = jnp.where(jnp.all(weights >= 0), weights, jnp.nan)
        elif weights.min() < 0 or weights.max() <= 0:
            raise ValueError(
                f"`weights` must be non-negative with a positive sum; got {weights}. {_faq.numbers}"
            )
        else:
            sum_to_one("weights", weights)
        weights = weights / weights.max()  # or the sum of traced ones could overflow
        values, vectors = decompose(covariances, means.shape[1], "covariances")
        if vectors.shape[:-2] != weights.shape:
            raise ValueError(
                f"`covariances` must hold {len(weights)} matrices, one a weight; got shape "
                f"{np.shape(covariances)}. {_faq.covariances}"
            )
        self.weights = jnp.asarray(weights / weights.sum())
        self.means, self.eigenvectors = jnp.asarray(means), jnp.asarray(vectors)
        self.eigenvalues = None if values is None else jnp.asarray(values)
        self.schedule = VariancePreserving() if schedule is None else schedule
        self.t_min, self.t_max = horizon_of(self.schedule, t_min, t_max)
        self.log_normalizer, self.log_normalizer_error = 0.0, 0.0

    def _written(self):
        return super()._written() | {"covariances": recomposed(self.eigenvalues, self.eigenvectors)}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.means.shape[1:]

    def component_log_densities(self, x: Array, t: Scalar) -> Array:
        r"""$\log w_k + \log \mathcal{N}(x; \alpha_t m_k, \alpha_t^2 S_k + \sigma_t^2 I)$, shape `(k,)`."""
        log_normals = jax.vmap(log_noised_normal, in_axes=(None, 0, 0, 0, None))(
            x, self.means, self.eigenvalues, self.eigenvectors, self.schedule(t)
        )
        return jnp.log(self.weights) + log_normals

    def energy(self, x: Array, t: Scalar) -> Scalar:
        return -jax.nn.logsumexp(self.component_log_densities(x, t))

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        alpha_t, sigma_t = self.schedule(t)
        mean = self.weights @ self.means
        within = variances(self.eigenvalues, self.eigenvectors)
        variance = self.weights @ (within + (self.means - mean) ** 2)
        return alpha_t * mean, alpha_t**2 * variance + sigma_t**2

    def draw(self, key: PRNGKey, t: Scalar) -> Array:
        key_component, key_noise = jax.random.split(key)
        alpha_t, sigma_t = self.schedule(t)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        white = jax.random.normal(key_noise, self.shape, self.means.dtype)
        values = None if self.eigenvalues is None else self.eigenvalues[k]
        vectors = self.eigenvectors[k]
        return alpha_t * self.means[k] + coloured(white, values, vectors, alpha_t, sigma_t)


class Gaussian(AbstractEnergy):
    r"""Gaussian prior with its exact noised marginals: $x_t \sim \mathcal{N}(\alpha_t m,\ \alpha_t^2 S +
    \sigma_t^2 I)$.

    Args:
        mean: Shape `(d,)`. May be traced.
        covariance: Shape `(d, d)`, symmetric positive definite. May be traced; the density is NaN where it is
            not positive definite.
        schedule: Noise schedule.
        t_min: Time at which the prior is read.
        t_max: Time at which sampling starts.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or the covariance is not symmetric positive
            definite.
    """

    mean: Array
    eigenvalues: Array | None
    eigenvectors: Array  # of a traced covariance that itself, and no eigenvalues
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=0.0)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)
    normalized = True

    def __init__(
        self,
        mean=(0.5, -1.0),
        covariance=((1.0, 0.6), (0.6, 0.8)),
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        mean = numbers(mean, "mean")
        if mean.ndim != 1 or not mean.size:
            raise ValueError(
                f"`mean` must be a vector; got shape {mean.shape}. Flatten it first. {_faq.shapes}"
            )
        values, vectors = decompose(covariance, mean.shape[0], "covariance")
        if vectors.ndim != 2:
            raise ValueError(
                "`covariance` must be one matrix; got shape "
                f"{np.shape(covariance)}. {_faq.covariances}"
            )
        self.mean, self.eigenvectors = jnp.asarray(mean), jnp.asarray(vectors)
        self.eigenvalues = None if values is None else jnp.asarray(values)
        self.schedule = VariancePreserving() if schedule is None else schedule
        self.t_min, self.t_max = horizon_of(self.schedule, t_min, t_max)
        self.log_normalizer, self.log_normalizer_error = 0.0, 0.0

    def _written(self):
        return super()._written() | {"covariance": recomposed(self.eigenvalues, self.eigenvectors)}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def energy(self, x: Array, t: Scalar) -> Scalar:
        return -log_noised_normal(
            x, self.mean, self.eigenvalues, self.eigenvectors, self.schedule(t)
        )

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        alpha_t, sigma_t = self.schedule(t)
        variance = variances(self.eigenvalues, self.eigenvectors)
        return alpha_t * self.mean, alpha_t**2 * variance + sigma_t**2

    def draw(self, key: PRNGKey, t: Scalar) -> Array:
        alpha_t, sigma_t = self.schedule(t)
        white = jax.random.normal(key, self.shape, self.mean.dtype)
        noise = coloured(white, self.eigenvalues, self.eigenvectors, alpha_t, sigma_t)
        return alpha_t * self.mean + noise

    def log_variances(self, t: Scalar) -> Array:
        r"""Numbers that sum to $\log \det (\alpha_t^2 S + \sigma_t^2 I)$, shape `(d,)`."""
        alpha_t, sigma_t = self.schedule(t)
        if self.eigenvalues is None:
            return 2 * jnp.log(jnp.diag(root(self.eigenvectors, alpha_t, sigma_t)))
        return jnp.log(alpha_t**2 * self.eigenvalues + sigma_t**2)

    def natural(self, t: Scalar) -> tuple[Array, Array, Scalar]:
        r"""Of the distribution at a level: precision $P$, $P m$ and $m^\top P m + \log \det 2 \pi P^{-1}$."""
        alpha_t, sigma_t = self.schedule(t)
        mean = alpha_t * self.mean
        if self.eigenvalues is None:
            factor = root(self.eigenvectors, alpha_t, sigma_t)
            precision = jax.scipy.linalg.cho_solve(
                (factor, True), jnp.eye(len(mean), dtype=mean.dtype)
            )
        else:
            shares = 1 / (alpha_t**2 * self.eigenvalues + sigma_t**2)
            precision = (self.eigenvectors * shares) @ self.eigenvectors.T
        linear = precision @ mean
        return (
            precision,
            linear,
            mean @ linear + jnp.sum(jnp.log(2 * jnp.pi) + self.log_variances(t)),
        )
