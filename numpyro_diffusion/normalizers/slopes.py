"""Derivatives of a log evidence in the parameters of its prior, from runs of a sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PRNGKey
from ..bridge import from_energy
from ..schemes.base import AbstractScheme
from ..smc import run_smc
from .by_sampler import summed_up

__all__ = ["Derivatives", "Slopes"]

_LEAST = 0.05  # share of the information that the datum must leave for a Newton step


class Derivatives(NamedTuple):
    """Derivatives of the log evidence at one parameter."""

    gradient: np.ndarray
    error: np.ndarray
    curvature: np.ndarray  # minus the second derivative
    scoring: np.ndarray  # what it would be if the datum said nothing
    log_evidence: tuple[float, float]

    def metric(self) -> np.ndarray:
        """The curvature where it is safely positive, else that for scoring."""
        shares = np.linalg.eigvals(np.linalg.solve(self.scoring, self.curvature)).real
        return self.curvature if shares.min() > _LEAST else self.scoring

    def newton(self) -> tuple[np.ndarray, np.ndarray]:
        """A step and its standard error."""
        inverse = np.linalg.inv(self.metric())
        return inverse @ self.gradient, np.sqrt(inverse**2 @ self.error**2)

    def spread(self) -> np.ndarray:
        values = np.linalg.eigvalsh(self.curvature)
        if values.min() <= 0:
            return np.full(len(values), np.inf)
        return np.sqrt(np.diag(np.linalg.inv(self.curvature)))


class Slopes(NamedTuple):
    family: Callable
    log_likelihood: Callable
    scheme: AbstractScheme
    num_particles: int
    num_chains: int
    batch_size: int | None

    def __call__(self, key: PRNGKey, theta: np.ndarray) -> Derivatives:
        value = jnp.asarray(theta, jnp.result_type(float))
        energy = eqx.filter_jit(self.family)(value)
        key_prior, key_post = jax.random.split(key)
        post = self._run(key_post, energy, value, self.log_likelihood)
        if energy.log_normalizer is not None:  # and its derivatives are those of a normalised law
            scoring = post.second
            curvature = post.second - post.covariance
            return Derivatives(-post.mean, post.error, curvature, scoring, post.log_z)
        prior = self._run(key_prior, energy, value, None)
        return Derivatives(
            prior.mean - post.mean,
            np.hypot(prior.error, post.error),
            prior.covariance - post.covariance + post.second - prior.second,
            prior.covariance,
            (post.log_z[0] - prior.log_z[0], float(np.hypot(post.log_z[1], prior.log_z[1]))),
        )

    def _run(self, key: PRNGKey, energy: Any, theta: Array, log_likelihood: Any) -> "_Means":
        key_pilot, key_run = jax.random.split(key)
        bridge = from_energy(energy, log_likelihood, twist=self.scheme.twist)
        result = run_smc(
            key_run,
            self.scheme(bridge, key_pilot),
            self.num_particles,
            num_chains=self.num_chains,
            batch_size=self.batch_size,
        )
        slopes, second = _derivatives(self.family, theta, result.positions["x"])
        slopes, second = np.asarray(slopes, float), np.asarray(second, float)
        weights = np.asarray(jax.nn.softmax(result.log_weights, -1), float)
        means = np.einsum("cn,cnk->ck", weights, slopes)
        about = slopes - means[:, None]
        covariance = np.einsum("cn,cnk,cnl->ckl", weights, about, about).mean(0)
        within = np.einsum("cn,cnk->ck", weights**2, about**2).mean(0)
        error = np.sqrt(np.maximum(within, means.var(0, ddof=1)) / len(means))
        bends = np.einsum("cn,cnkl->ckl", weights, second).mean(0)
        return _Means(means.mean(0), error, covariance, bends, summed_up(result))


class _Means(NamedTuple):
    """Of the derivatives of the energy over particles: mean, its error, covariance, mean second ones."""

    mean: np.ndarray
    error: np.ndarray
    covariance: np.ndarray
    second: np.ndarray
    log_z: tuple[float, float]


@eqx.filter_jit
def _derivatives(family: Callable, theta: Array, x: Array) -> tuple[Array, Array]:
    r"""$\partial_\theta E$ and $\partial^2_\theta E$ at particles, in flat coordinates."""
    flat = theta.ravel()

    def energy(flat, u):
        member = family(flat.reshape(theta.shape))
        t = jnp.asarray(member.t_min, u.dtype)
        return member.energy(member.schedule(t)[0] * u, t)

    def one(u):
        return jax.grad(energy)(flat, u), jax.hessian(energy)(flat, u)

    return jax.vmap(jax.vmap(one))(x)
