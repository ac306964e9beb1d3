r"""The M-step: the prior, and unknown parameters of the operator, that are most likely given posterior draws.

Draws are of the variable at `t_min`, with the noise $s_0$ at which the prior is read, whose variance is taken
off: in closed form for Gaussians, and by `network.clean` for a network, which is trained on clean values.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..._typing import Array, PRNGKey, PyTree
from ...energies import Gaussian, GaussianMixture
from .posterior import Reference

__all__ = ["AbstractPart", "GaussianPart", "MixturePart", "fit_operator", "mean_squares", "moments"]

_LEAST = 1e-8  # least variance of a fitted Gaussian, as a share of its largest


class AbstractPart(abc.ABC):
    """The prior of a fit: the present energy, how it is updated, and a Gaussian like it."""

    energy: Any

    @abc.abstractmethod
    def update(self, key: PRNGKey, draws: Array, weights: Array) -> None:
        """Take the energy that is most likely given weighted draws.

        Args:
            key: PRNG key.
            draws: At `t_min`, flat, of shape `(num, num_particles, d)`.
            weights: Those of each example sum to 1, `(num, num_particles)`.
        """

    @abc.abstractmethod
    def reference(self) -> Reference:
        """A Gaussian like the prior."""

    @property
    def floor(self) -> float:
        """Noise level at which the prior is read."""
        t = jnp.asarray(self.energy.t_min, jnp.result_type(float))
        return float(self.energy.schedule.noise_level(t))


def _settings(energy: Any) -> dict[str, Any]:
    return {"schedule": energy.schedule, "t_min": energy.t_min, "t_max": energy.t_max}


def moments(draws: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of weighted draws, in 64 bits."""
    flat, shares = draws.reshape(-1, draws.shape[-1]), weights.ravel() / weights.sum()
    mean = shares @ flat
    centred = flat - mean
    return mean, (shares[:, None] * centred).T @ centred


def _proper(covariance: np.ndarray, floor: float) -> np.ndarray:
    """The covariance without the noise of `t_min`, positive definite."""
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    values = np.maximum(values - floor**2, _LEAST * max(values[-1], floor**2))
    covariance = (vectors * values) @ vectors.T
    return 0.5 * (covariance + covariance.T)


class GaussianPart(AbstractPart):
    """A Gaussian: mean and covariance of the draws."""

    def __init__(self, energy: Gaussian):
        self.energy = energy

    def update(self, key, draws, weights):
        del key
        mean, covariance = moments(np.asarray(draws, float), np.asarray(weights, float))
        self.energy = Gaussian(mean, _proper(covariance, self.floor), **_settings(self.energy))

    def reference(self):
        e = self.energy
        return Reference(e.mean, e.eigenvalues, e.eigenvectors)


class MixturePart(AbstractPart):
    """A mixture of Gaussians: one step of EM, in which the component of every draw is missing too."""

    def __init__(self, energy: GaussianMixture):
        self.energy = energy

    def update(self, key, draws, weights):
        del key
        shares = np.asarray(_shares(self.energy, draws), float) * np.asarray(weights)[..., None]
        draws = np.asarray(draws, float)
        parts = [moments(draws, share) for share in np.moveaxis(shares, -1, 0)]
        means = np.stack([mean for mean, _ in parts])
        covariances = np.stack([_proper(c, self.floor) for _, c in parts])
        totals = shares.sum((0, 1))
        self.energy = GaussianMixture(
            totals / totals.sum(), means, covariances, **_settings(self.energy)
        )

    def reference(self):
        e = self.energy
        w, means = np.asarray(e.weights, float), np.asarray(e.means, float)
        vectors, values = np.asarray(e.eigenvectors, float), np.asarray(e.eigenvalues, float)
        mean = w @ means
        within = np.einsum("k,kij,kj,klj->il", w, vectors, values, vectors)
        between = np.einsum("k,ki,kj->ij", w, means - mean, means - mean)
        return Reference.of(mean, within + between)


@eqx.filter_jit
def _shares(energy: GaussianMixture, draws: Array) -> Array:
    """Probabilities of the components, as a last axis."""
    t = jnp.asarray(energy.t_min, draws.dtype)
    alpha, _ = energy.schedule(t)
    of_one = lambda u: jax.nn.softmax(energy.component_log_densities(alpha * u, t))
    return jax.vmap(jax.vmap(of_one))(draws)


@eqx.filter_jit
def fit_operator(
    observe: Any, parameters: PyTree, draws: Array, weights: Array, y: Array, seen: Array,
    noise: Array, steps: int, learning_rate: float,
) -> PyTree:  # fmt: skip
    """Unknown parameters of the operator: Adam on the expected log likelihood of the data."""
    optimiser = optax.adam(learning_rate)
    total = jnp.sum(seen)

    def loss(parameters):
        fitted = jax.vmap(jax.vmap(lambda u: observe(u, parameters)))(draws)
        gaps = jnp.where(seen[:, None], y[:, None] - fitted, 0.0)
        squares = jnp.sum((gaps / noise[:, None]) ** 2, -1)
        return 0.5 * jnp.sum(weights * squares) / total

    def update(carry, _):
        parameters, state = carry
        change, state = optimiser.update(jax.grad(loss)(parameters), state, parameters)
        return (optax.apply_updates(parameters, change), state), None

    start = parameters, optimiser.init(parameters)
    return jax.lax.scan(update, start, None, steps)[0][0]


@eqx.filter_jit
def mean_squares(observe: Any, parameters: PyTree, draws: Array, weights: Array, y: Array) -> Array:
    """Mean over the posterior of the squared residual of every entry, `(num, n)`."""
    fitted = jax.vmap(jax.vmap(lambda u: observe(u, parameters)))(draws)
    return jnp.einsum("ik,ikn->in", weights, (y[:, None] - fitted) ** 2)
