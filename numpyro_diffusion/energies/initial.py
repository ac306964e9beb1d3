r"""Initial distributions at the largest noise level.

Particles start at `t_max` from a distribution $\nu$ of $u = x_t / \alpha_t$ and carry the weight $p_t(u) /
\nu(u)$, so any distribution with wide enough tails is right; one close to $p_t$ wastes nothing. With the
standard normal the horizon must be long, until noise drowns the data. A mixture fitted to the data and
noised exactly is close to $p_t$ much earlier, and a short horizon needs fewer levels.

Every distribution here has `sample(key)` and `log_prob(u)` for ONE example, and `at(t)`, the same
distribution at another time. `DiffusionSite`, `from_energy(..., initial=law)` and `SMC(..., initial={"x":
distribution})` take them.

Not scikit-learn's `GaussianMixture`: its fits are as good and faster, but it would be a large
dependency for one function.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_numbers
from .._numbers import several_examples
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .base import AbstractDenoiser
from .energy import AbstractEnergy
from .gaussian import Gaussian, GaussianMixture
from .normal import log_normal, log_normal_of_root

__all__ = ["NoisedLaw", "StandardNormal", "fit_gaussian", "fit_mixture"]


class StandardNormal(eqx.Module):
    r"""$x_t \sim \mathcal{N}(0, I)$, that is $u \sim \mathcal{N}(0, \alpha_t^{-2} I)$.

    What diffusion samplers start from by custom. It is the distribution of $x_t$ where a variance-preserving
    schedule has come to its end; before that, only the weight makes it right.

    Attributes:
        shape: Shape of one example.
        schedule: Noise schedule.
        t: Time, shape `()`.
    """

    shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    schedule: AbstractSchedule = eqx.field(default_factory=VariancePreserving)
    t: Scalar = eqx.field(default=1.0, converter=jnp.asarray)

    @classmethod
    def of(cls, energy: AbstractDenoiser) -> "StandardNormal":
        """The standard normal at an energy's `t_max`."""
        return cls(energy.shape, energy.schedule, energy.t_max)  # pyright: ignore[reportArgumentType]

    def at(self, t: Scalar | float) -> "StandardNormal":
        """The standard normal of $x_t$ at another time."""
        return StandardNormal(self.shape, self.schedule, t)  # pyright: ignore[reportArgumentType]

    def sample(self, key: PRNGKey) -> Array:
        """Draw $u$."""
        alpha_t, _ = self.schedule(self.t)
        return jax.random.normal(key, self.shape, alpha_t.dtype) / alpha_t

    def log_prob(self, u: Array) -> Scalar:
        """Log density of $u$, in nats."""
        alpha_t, _ = self.schedule(self.t)
        return jnp.sum(log_normal(u, 1 / alpha_t**2))


class NoisedLaw(eqx.Module):
    r"""A closed-form distribution of clean data, noised exactly to a time.

    $\sum_k w_k \mathcal{N}(u; m_k, S_k + s_t^2 I)$ with $s_t = \sigma_t / \alpha_t$, from `fit_gaussian` or
    `fit_mixture`.

    Attributes:
        energy: `Gaussian` or `GaussianMixture` over flattened examples.
        shape: Shape of one example.
        t: Time, shape `()`.
    """

    energy: AbstractEnergy = eqx.field(default_factory=GaussianMixture)
    shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    t: Scalar = eqx.field(default=1.0, converter=jnp.asarray)

    def __check_init__(self):
        if not self.energy.normalized:
            raise TypeError(
                "`NoisedLaw` expects an energy with a closed form at every level, `Gaussian` or "
                f"`GaussianMixture`; got {type(self.energy).__name__}. {_faq.kinds}"
            )

    def at(self, t: Scalar | float) -> "NoisedLaw":
        """Return the same distribution of the data, noised to another time."""
        return NoisedLaw(self.energy, self.shape, t)  # pyright: ignore[reportArgumentType]

    def sample(self, key: PRNGKey) -> Array:
        """Draw $u$ exactly."""
        draw = self.energy.draw(key, self.t)
        assert draw is not None
        return (draw / self.energy.schedule(self.t)[0]).reshape(self.shape)

    def log_prob(self, u: Array) -> Scalar:
        """Log density of $u$, in nats."""
        return self.energy.log_density(u.ravel(), self.t)


def fit_gaussian(energy: AbstractDenoiser, data) -> NoisedLaw:
    r"""The Gaussian with the mean and covariance of data, noised exactly to the energy's `t_max`.

    Args:
        energy: The prior, for its shape, schedule and `t_max`.
        data: Clean examples of shape `(num, *shape)`.

    Raises:
        ValueError: If the data do not fit the energy.
    """
    flat = _flat(energy, data)
    covariance = np.cov(flat.T, bias=True).reshape(2 * flat.shape[1:])
    covariance = covariance + _floor(energy) * np.eye(flat.shape[1])
    return NoisedLaw(
        Gaussian(flat.mean(0), covariance, energy.schedule), energy.shape, energy.t_max
    )  # pyright: ignore[reportArgumentType]


def fit_mixture(
    energy: AbstractDenoiser,
    data,
    num_components: int,
    key: PRNGKey,
    *,
    diagonal: bool = False,
    num_steps: int = 100,
) -> NoisedLaw:
    r"""A mixture of Gaussians fitted to data by EM, each component noised exactly to `t_max`.

    A poor fit costs variance of the initial weight and nothing else.

    Args:
        energy: The prior, for its shape, schedule and `t_max`.
        data: Clean examples of shape `(num, *shape)`.
        num_components: Number of Gaussians, at most the number of examples.
        key: Chooses the first centres, far apart (as k-means++ does).
        diagonal: Keep variances alone instead of full covariances, for data of many dimensions.
        num_steps: Steps of expectation and maximisation.

    Raises:
        ValueError: If the data do not fit the energy, or a number is out of range.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm,
        JRSS B. Arthur & Vassilvitskii (2007), k-means++, SODA.
    """
    key = check_key(key)
    num_components, num_steps = whole_numbers(1, num_components=num_components, num_steps=num_steps)
    flat = _flat(energy, data)
    if num_components > len(flat):
        raise ValueError(
            f"`num_components` must be at most {len(flat)}, the number of examples; got "
            f"{num_components}. {_faq.numbers}"
        )
    points = jnp.asarray(flat)
    means = _spread_centres(key, points, num_components)
    floor = jnp.asarray(_floor(energy), points.dtype)
    weights, means, covariances = _fit(points, means, floor, num_steps, diagonal)
    # Symmetric to the last digit, also in float32.
    covariances = np.asarray(covariances, np.float64)
    covariances = 0.5 * (covariances + np.swapaxes(covariances, -1, -2))
    mixture = GaussianMixture(weights, means, covariances, energy.schedule)
    return NoisedLaw(mixture, energy.shape, energy.t_max)  # pyright: ignore[reportArgumentType]


def _spread_centres(key: PRNGKey, points: Array, num: int) -> Array:
    """Points far from each other: each next one with probability as its squared distance."""
    first, *rest = jax.random.split(key, num)
    centres = [points[jax.random.randint(first, (), 0, len(points))]]
    squares = jnp.full(len(points), jnp.inf)
    for key_next in rest:
        squares = jnp.minimum(squares, jnp.sum((points - centres[-1]) ** 2, -1))
        # A tiny constant, so that data with few distinct points still give enough centres.
        log_chances = jnp.log(squares + jnp.finfo(points.dtype).tiny)
        centres.append(points[jax.random.categorical(key_next, log_chances)])
    return jnp.stack(centres)


@eqx.filter_jit
def _fit(points: Array, means: Array, floor: Scalar, num_steps: int, diagonal: bool):
    """Expectation and maximisation from some centres: weights, means, full covariances."""
    num, dimension = points.shape
    eye, k = jnp.eye(dimension, dtype=points.dtype), len(means)
    whole = jnp.mean(jnp.var(points, 0)) + floor
    start = jnp.full(k, 1 / k, points.dtype), means, jnp.broadcast_to(whole * eye, (k, *eye.shape))

    def log_densities(mean, covariance):
        root = jnp.linalg.cholesky(covariance)
        return jax.vmap(log_normal_of_root, in_axes=(0, None))(points - mean, root)

    def moments(share):
        total = jnp.sum(share) + jnp.finfo(points.dtype).tiny
        mean = share @ points / total
        centred = points - mean
        covariance = (share[:, None] * centred).T @ centred / total
        if diagonal:
            covariance = covariance * eye
        return total / num, mean, covariance + floor * eye

    def step(state, _):
        weights, means, covariances = state
        log_joint = jnp.log(weights)[:, None] + jax.vmap(log_densities)(means, covariances)
        shares = jax.nn.softmax(log_joint, 0)
        return jax.vmap(moments)(shares), None

    return jax.lax.scan(step, start, None, num_steps)[0]


def _floor(energy: AbstractDenoiser) -> float:
    """Least variance of a component: the resolution at which the prior is read."""
    return float(energy.schedule.noise_level(jnp.asarray(energy.t_min))) ** 2


def _flat(energy: AbstractDenoiser, data) -> np.ndarray:
    """Data as float64 vectors, checked."""
    data = several_examples(data, energy.shape)
    return data.reshape(len(data), -1)
