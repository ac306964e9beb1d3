"""Mixtures of Gaussians and Student's distributions: proposals of which the tails are wide."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln

from .._typing import Array, PRNGKey, Scalar

__all__ = ["StudentMixture"]

FREEDOM = 5.0  # of Student's distributions


class StudentMixture(eqx.Module):
    r"""A mixture of Gaussians over vectors, each with a share of Student's distribution for its tails.

    $u = m_k + Q_k^{-1} e$ with $e$ standard normal, or with probability `tails[k]` of Student's distribution
    with 5 degrees of freedom, $e / \sqrt{\chi^2_5 / 5}$.

    Attributes:
        log_weights: Of the components, normalised, shape `(num,)`.
        means: $m_k$, shape `(num, d)`.
        roots: $Q_k$, lower triangular, $Q_k^\top Q_k$ the inverse covariance; shape `(num, d, d)`.
        tails: Share of Student's distribution, shape `(num,)`, in [0, 1].
    """

    log_weights: Array
    means: Array
    roots: Array
    tails: Array

    def log_prob(self, u: Array) -> Scalar:
        """Log density of one vector, of shape `()`, in nats."""
        dimension = u.shape[-1]

        def one(mean, root, tail):
            squares = jnp.sum((root @ (u - mean)) ** 2)
            volume = jnp.sum(jnp.log(jnp.abs(jnp.diag(root))))
            normal = -0.5 * squares - 0.5 * dimension * math.log(2 * math.pi)
            half = 0.5 * (FREEDOM + dimension)
            student = (
                gammaln(half)
                - gammaln(0.5 * FREEDOM)
                - 0.5 * dimension * math.log(FREEDOM * math.pi)
                - half * jnp.log1p(squares / FREEDOM)
            )
            return volume + jnp.logaddexp(jnp.log1p(-tail) + normal, jnp.log(tail) + student)

        each = jax.vmap(one)(self.means, self.roots, self.tails)
        return jax.nn.logsumexp(self.log_weights + each)

    def sample(self, key: PRNGKey) -> Array:
        """A draw of shape `(d,)`."""
        key_which, key_tail, key_normal, key_square = jax.random.split(key, 4)
        k = jax.random.categorical(key_which, self.log_weights)
        e = jax.random.normal(key_normal, self.means.shape[1:], self.means.dtype)
        spread = jnp.sqrt(2 * jax.random.gamma(key_square, 0.5 * FREEDOM) / FREEDOM)
        far = jax.random.bernoulli(key_tail, self.tails[k])
        e = e / jnp.where(far, spread, 1.0).astype(e.dtype)
        return self.means[k] + solve_triangular(self.roots[k], e, lower=True)

    def beside(self, other: "StudentMixture", share: float) -> "StudentMixture":
        """The mixture in which another one has a share of the mass."""
        weights = (1 - share, self.log_weights), (share, other.log_weights)
        log_weights = [math.log(w) + log_weights for w, log_weights in weights]
        parts = [
            jnp.concatenate([getattr(self, n), getattr(other, n)])
            for n in ("means", "roots", "tails")
        ]
        return StudentMixture(jnp.concatenate(log_weights), *parts)
