r"""Problems with a posterior in closed form, up to one integral over the noise level.

$x \sim \sum_k w_k \mathcal{N}(m_k, S_k)$ (plus the noise that the prior keeps at `t_min`), an offset
$b \sim \mathcal{N}(0, s_b^2)$ common to all data, $y = H x + b + \sigma \epsilon$, and $\sigma$ either known
or half-normal. Given $\sigma$ everything is a mixture of Gaussians; the integral over $\sigma$ is a sum over
a fine grid.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import halfnorm, multivariate_normal

import numpyro_diffusion as nd


class Exact(NamedTuple):
    """Posterior of a problem: evidence, mode probabilities and moments."""

    log_evidence: float
    modes: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    sigma_mean: float
    sigma_sd: float
    offset_mean: float
    offset_sd: float


class Problem(NamedTuple):
    """A mixture prior and linear data."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    operator: np.ndarray
    data: np.ndarray
    sigma: float | None = None  # known noise level; `None` for HalfNormal(sigma_scale)
    sigma_scale: float = 0.5
    offset_scale: float = 0.0

    @property
    def prior(self) -> nd.GaussianMixture:
        return nd.GaussianMixture(self.weights, self.means, self.covariances)

    def model(self, operator, y):
        x = numpyro.sample("x", nd.DiffusionPrior(self.prior))
        mean = operator @ x
        if self.offset_scale:
            mean = mean + numpyro.sample("offset", dist.Normal(0.0, self.offset_scale))
        sigma = self.sigma
        if sigma is None:
            sigma = numpyro.sample("sigma", dist.HalfNormal(self.sigma_scale))
        numpyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)

    def component(self, x: np.ndarray) -> np.ndarray:
        """Most probable component of points of shape `(..., d)`."""
        log_densities = [
            np.log(w) + multivariate_normal.logpdf(x, m, s)
            for w, m, s in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return np.argmax(np.stack(log_densities, -1), -1)

    def exact(self, num_grid: int = 4001) -> Exact:
        prior = self.prior
        noise = float(prior.schedule.noise_level(jnp.asarray(prior.t_min)))
        d, h = self.means.shape[1], self.operator
        if self.sigma is None:
            edges = np.linspace(0, 6 * self.sigma_scale, num_grid)
            grid = 0.5 * (edges[1:] + edges[:-1])
            log_prior = halfnorm.logpdf(grid, scale=self.sigma_scale) + np.log(edges[1])
        else:
            grid, log_prior = np.array([self.sigma]), np.zeros(1)
        size = len(self.data)
        base = self.offset_scale**2 * np.ones((size, size))
        log_joint = np.zeros((len(self.weights), len(grid)))
        means = np.zeros((*log_joint.shape, d))
        variances = np.zeros_like(means)
        offset = np.zeros((2, *log_joint.shape))
        for k, (w, m, cov) in enumerate(
            zip(self.weights, self.means, self.covariances, strict=True)
        ):
            s = cov + noise**2 * np.eye(d)
            residual = self.data - h @ m
            v = h @ s @ h.T + base + grid[:, None, None] ** 2 * np.eye(size)
            gain = np.swapaxes(np.linalg.solve(v, h @ s), 1, 2)
            distance = np.linalg.solve(v, residual[:, None])[..., 0] @ residual
            log_determinant = np.linalg.slogdet(2 * np.pi * v)[1]
            log_joint[k] = np.log(w) + log_prior - 0.5 * (distance + log_determinant)
            means[k] = m + gain @ residual
            variances[k] = np.diag(s) - np.einsum("jim,mi->ji", gain, h @ s)
            row = np.linalg.solve(v, self.offset_scale**2 * np.ones((size, 1)))[..., 0]
            offset[0, k] = row @ residual
            offset[1, k] = self.offset_scale**2 * (1 - row.sum(1))
        log_evidence = logsumexp(log_joint)
        p = np.exp(log_joint - log_evidence)
        mean = np.einsum("kj,kji->i", p, means)
        second = np.einsum("kj,kji->i", p, variances + means**2)
        sigma_mean = float((p.sum(0) * grid).sum())
        b_mean = float((p * offset[0]).sum())
        b_second = float((p * (offset[1] + offset[0] ** 2)).sum())
        return Exact(
            float(log_evidence),
            p.sum(1),
            mean,
            second - mean**2,
            sigma_mean,
            float(np.sqrt(max((p.sum(0) * grid**2).sum() - sigma_mean**2, 0.0))),
            b_mean,
            float(np.sqrt(max(b_second - b_mean**2, 0.0))),
        )


def two_dimensional(**options) -> Problem:
    """Two correlated, unequal components and one datum between them."""
    return Problem(
        np.array([0.35, 0.65]),
        np.array([[-2.0, 0.5], [1.0, -0.5]]),
        np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]]),
        np.array([[1.0, 2.5]]),
        np.array([-0.6]),
        **options,
    )


def eight_dimensional(num_data: int = 3, **options) -> Problem:
    """Four correlated components of different shapes in eight dimensions."""
    rng = np.random.default_rng(3)
    means = 2.0 * rng.normal(size=(4, 8))
    factors = rng.normal(size=(4, 8, 8))
    covariances = 0.04 * factors @ np.swapaxes(factors, 1, 2)
    covariances += np.stack([np.diag(rng.uniform(0.05, 0.4, 8)) for _ in range(4)])
    operator = rng.normal(size=(num_data, 8)) / np.sqrt(8)
    data = operator @ (0.5 * means[0] + 0.5 * means[2]) + 0.2 * rng.normal(size=num_data)
    return Problem(np.array([0.2, 0.3, 0.35, 0.15]), means, covariances, operator, data, **options)


def ambiguous() -> Problem:
    """Eight dimensions, four far modes, one ambiguous datum, unknown noise level.

    The data fit all four modes to different degrees; a gradient-based chain stays in the mode in
    which it starts.
    """
    rng = np.random.default_rng(11)
    centres = np.array([[-6.0, -5.0], [-5.0, 6.0], [5.0, 5.5], [6.0, -4.5]])
    means = np.concatenate([centres, rng.normal(size=(4, 6))], 1)
    factors = rng.normal(size=(4, 8, 8))
    covariances = 0.05 * factors @ np.swapaxes(factors, 1, 2)
    covariances += np.stack([np.diag(rng.uniform(0.1, 0.5, 8)) for _ in range(4)])
    operator = np.array([[0.10, 0.06, 0.3, -0.2, 0.1, 0.2, -0.3, 0.15]])
    return Problem(np.array([0.15, 0.3, 0.35, 0.2]), means, covariances, operator, np.array([0.35]))


def three_modes() -> Problem:
    """Three anisotropic components, two data and a common offset: a posterior with two modes."""
    return Problem(
        weights=np.array([0.3, 0.5, 0.2]),
        means=np.array([[-2.0, 0.5], [1.5, 1.0], [0.5, -2.0]]),
        covariances=np.array(
            [[[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.2], [-0.2, 0.6]], [[0.3, 0.1], [0.1, 0.2]]]
        ),
        operator=np.array([[0.3, 0.5], [-0.2, 1.0]]),
        data=np.array([0.2, 1.1]),
        sigma=0.4,
        offset_scale=1.0,
    )
