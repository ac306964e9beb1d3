r"""Noised densities of a known density by importance sampling: diffusion without data.

A network learns noised distributions from data. Where the density itself is known up to a constant there is
nothing to
learn: $p_t(u) = \int p_0(y)\, \mathcal{N}(u; y, \tau_t^2)\, dy$ is an integral, and so is its score.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from .._arguments import whole_number
from .._typing import Array, Scalar
from ..schedules import AbstractSchedule
from .energy import AbstractEnergy
from .noise import added_variance
from .normal import log_normal
from .rough import rough_settings

__all__ = ["DoubleWell", "SmoothedDensity"]


class DoubleWell(eqx.Module):
    r"""Two wells in every coordinate, $-\sum_i (x_i^2 - 1)^2$, to look at."""

    def __call__(self, x: Array) -> Scalar:
        return -jnp.sum((x**2 - 1) ** 2)


class SmoothedDensity(AbstractEnergy):
    r"""A density that is known up to a constant as a diffusion energy, with no data and no training.

    At `t_min` it *is* the density. Above it is smoothed by noise of variance $\tau_t^2$, the variance added
    since `t_min`, as far as $n$ frozen normals $\xi_i$ can tell. They are spread over what a Gaussian
    $g = \mathcal{N}(m, v)$ for clean data says of $y$ given $u$:

    $$\hat p_t(u) = \mathcal{N}(u; m, v + \tau_t^2)\, \frac1n \sum_i \frac{p_0(y_i)}{g(y_i)}, \qquad
      y_i = \frac{v u + \tau_t^2 m}{v + \tau_t^2} + \sqrt{\frac{v \tau_t^2}{v + \tau_t^2}}\; \xi_i .$$

    For $v \to \infty$ the $y_i$ are $u + \tau_t \xi_i$, as in model-based diffusion. A finite $v$ keeps them
    where the density is once noise is larger than that, and $\hat p_t$ tends to a Gaussian as it should.

    The normals never change, so $\hat p_t$ is one smooth density a level, with a gradient of its own, and
    schemes that weigh are exact *whatever* its error: the integral decides only how far neighbouring levels
    are apart. Be frank about the dimension: of $n$ points fewer and fewer count (`effective_draws`), for
    densities unlike $g$ it ends between 10 and 20 dimensions. There the levels are a poor path and tempering,
    `nd.SMC` of the model, is a better one.

    The score is the gradient of this energy, which moves and Metropolis steps need. `weighted_mean` is the
    other estimate of the same, $\sum_i w_i y_i$, without a derivative of $p_0$. With `differentiable=False`,
    for a density without a gradient, it takes the place of the gradient; the value stays what it is, and with
    it every weight and acceptance. At `t_min` moves are then without any gradient.

    Args:
        log_density: `log_density(x)` of shape `()` in nats, up to a constant, for ONE point of shape `shape`.
            A module, rather than a function, where the energy is to be saved.
        shape: Shape of one point.
        num_draws: $n$. Evaluations of the density an evaluation of the energy.
        mean: $m$, a rough mean of the density, broadcast to `shape`.
        variance: $v$, a rough variance, broadcast to `shape`. Better too large than too small: by up to twice
            the width costs little.
        schedule: Noise schedule. The default is `VariancePreserving()`.
        t_min: Time at which the distribution is the density.
        t_max: Time at which sampling starts. Noise there needs to drown $v$.
        log_normalizer: $\log \int p_0$ in nats where known, 0 for a normalised density.
        differentiable: Whether the density has a gradient.
        seed: Chooses the normals, points of a scrambled Sobol' sequence.

    Raises:
        TypeError: If `log_density` is not callable.
        ValueError: If moments, times or `num_draws` make no sense.

    References:
        Pan, Yi, Shi & Qu (2024), Model-Based Diffusion for Trajectory Optimization, arXiv 2407.01573.
    """

    log_density_fn: Callable[[Array], Scalar]
    draws: Array
    mean: Array
    variance: Array
    schedule: AbstractSchedule
    shape: tuple[int, ...] = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    differentiable: bool = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def __init__(
        self,
        log_density: Callable[[Array], Scalar] = DoubleWell(),  # noqa: B008
        shape: tuple[int, ...] | int = (2,),
        *,
        num_draws: int = 256,
        mean: Any = 0.0,
        variance: Any = 1.0,
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        log_normalizer: float | None = None,
        differentiable: bool = True,
        seed: int = 0,
    ):
        num_draws = whole_number("num_draws", num_draws, 1)
        name = "SmoothedDensity"
        settings = rough_settings(name, log_density, shape, schedule, mean, variance, t_min, t_max)
        self.shape, self.schedule, mean, variance, self.t_min, self.t_max = settings
        self.log_density_fn, self.differentiable = log_density, differentiable
        self.mean, self.variance = (jnp.broadcast_to(m, self.shape) for m in (mean, variance))
        self.draws = jnp.asarray(_normals(num_draws, math.prod(self.shape), seed)).reshape(
            num_draws, *self.shape
        )
        self.log_normalizer, self.log_normalizer_error = log_normalizer, 0.0

    def energy(self, x: Array, t: Scalar) -> Scalar:
        alpha_t, _ = self.schedule(t)
        u, tau = x / alpha_t, added_variance(self, t).astype(x.dtype)

        def clean():
            return self._log_density(u)

        def noisy():
            # A variance of 0 belongs to the other branch; a select would still see its derivatives.
            points, log_p, log_ratios = self._draws_at(u, jnp.where(tau > 0, tau, 1.0))
            if self.differentiable:
                mean, variance = self._reference(u.dtype)
                log_mean = jax.nn.logsumexp(log_ratios) - math.log(len(self.draws))
                return jnp.sum(log_normal(u - mean, variance + tau)) + log_mean
            return self._without_gradient(u, jnp.where(tau > 0, tau, 1.0), points, log_p)

        log_p = jax.lax.cond(tau > 0, noisy, clean)
        return x.size * jnp.log(alpha_t) - log_p

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        alpha_t, _ = self.schedule(t)
        mean, variance = self._reference(alpha_t.dtype)
        return alpha_t * mean, alpha_t**2 * (variance + added_variance(self, t))

    def weighted_mean(self, u: Array, t: Scalar) -> tuple[Array, Scalar]:
        r"""$\sum_i w_i y_i$, the mean of $x$ given $u_t$, and how many of the $n$ points count.

        Args:
            u: One point in data units, of shape `shape`.
            t: Time.

        Returns:
            The mean, and $1 / \sum_i w_i^2$ between 1 and $n$.
        """
        points, _, log_ratios = self._draws_at(u, added_variance(self, t).astype(u.dtype))
        weights = jax.nn.softmax(log_ratios)
        return jnp.tensordot(weights, points, 1), 1 / jnp.sum(weights**2)

    def effective_draws(self, u: Array, t: Scalar) -> Scalar:
        """Effective number of the frozen points at `u`, between 1 and `num_draws`. A handful is too few."""
        return self.weighted_mean(u, t)[1]

    def _reference(self, dtype) -> tuple[Array, Array]:
        return self.mean.astype(dtype), self.variance.astype(dtype)

    def _log_density(self, x: Array) -> Scalar:
        x = x if self.differentiable else jax.lax.stop_gradient(x)
        return jnp.asarray(self.log_density_fn(x), x.dtype).reshape(())

    def _posterior(self, u: Array, tau: Scalar) -> tuple[Array, Array]:
        """Mean and variance of clean data given `u`, under the Gaussian."""
        mean, variance = self._reference(u.dtype)
        total = variance + tau
        return (variance * u + tau * mean) / total, variance * tau / total

    def _draws_at(self, u: Array, tau: Scalar) -> tuple[Array, Array, Array]:
        """Points, log densities there, and log ratios to the Gaussian."""
        centre, spread = self._posterior(u, tau)
        points = centre + jnp.sqrt(spread) * self.draws.astype(u.dtype)
        log_p = jax.vmap(self._log_density)(points)
        mean, variance = self._reference(u.dtype)
        reference = jax.vmap(lambda y: jnp.sum(log_normal(y - mean, variance)))(points)
        return points, log_p, log_p - reference

    def _without_gradient(self, u: Array, tau: Scalar, points: Array, log_p: Array) -> Scalar:
        r"""The same value, with the gradient $\sum_i w_i (y_i - u) / \tau^2$: points stay where they are."""
        fixed = jax.lax.stop_gradient
        centre, spread = fixed(self._posterior(u, tau))
        log_q = jax.vmap(lambda y: jnp.sum(log_normal(y - centre, spread)))(fixed(points))
        noise = jax.vmap(lambda y: jnp.sum(log_normal(u - y, tau)))(fixed(points))
        return jax.nn.logsumexp(fixed(log_p) - log_q + noise) - math.log(len(self.draws))


def _normals(num: int, dimension: int, seed: int) -> np.ndarray:
    """Normal quantiles of the first points of a scrambled Sobol' sequence, of shape `(num, dimension)`."""
    sequence = scipy.stats.qmc.Sobol(dimension, rng=np.random.default_rng(seed))
    uniform = sequence.random_base2(max(num - 1, 1).bit_length())[:num]
    return scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
