r"""Posterior draws of a clean example given what is seen of it (E-step), exact for many particles.

A twisted diffusion sampler. The prior is the distribution of a reverse sampler over noise levels
$s_0 < \dots < s_K$ in units of the data, with a Gaussian $\mathcal{N}(m, S)$ like the prior for the
covariance of its steps:

$$p(u' \mid u) = \mathcal{N}(u + v\,\nabla \log p_s(u),\ Q), \qquad Q = v\,(S + s'^2)(S + s^2)^{-1}, \quad
v = s^2 - s'^2 .$$

With $\hat x(u)$ the mean of the clean value given $u$ and $C_s$ its covariance under the Gaussian, the twist
is $\psi_s(u) = \mathcal{N}(y;\ f(c) + H (\hat x(u) - c),\ \Sigma_y + H C_s H^\top)$, $H$ the derivative of
the operator at the mean $c$ of the cloud. A step is drawn from the product $M$ of $p(u' \mid u)$ and the
twist as it is expected to be at $u'$, in closed form, and weighed by

$$w = \frac{\psi_{s'}(u')}{\psi_s(u)} \frac{p(u' \mid u)}{M(u' \mid u)}, \qquad
\psi_{s_0}(u) = \mathcal{N}(y; f(u), \Sigma_y) .$$

For a Gaussian prior and a linear operator the sampler's distribution is the prior, and all weights are equal,
at any number of levels: the evidence is then exact.

References:
    Wu, Trippe, Naesseth, Blei & Cunningham (2023), Practical and Asymptotically Exact Conditional Sampling in
    Diffusion Models, NeurIPS.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array, PRNGKey, PyTree, Scalar
from ...energies import AbstractDenoiser, denoised_mean
from ...smc.cloud import CloudModel, CloudRun, run_cloud

__all__ = ["Datum", "Reference", "posterior"]


class Reference(NamedTuple):
    r"""A Gaussian like the prior, $\mathcal{N}(m, B\,\mathrm{diag}(\lambda) B^\top)$, over flat examples.

    Attributes:
        mean: $m$, of shape `(d,)`.
        values: $\lambda$, of shape `(d,)`, not negative, without the noise of `t_min`.
        vectors: $B$, of shape `(d, d)`.
    """

    mean: Array
    values: Array
    vectors: Array

    @classmethod
    def of(cls, mean, covariance, least: float = 0.0) -> "Reference":
        """That of a mean and a covariance, which is symmetrised; eigenvalues are at least `least`."""
        covariance = np.asarray(covariance, np.float64)
        values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        floats = lambda a: jnp.asarray(a, jnp.result_type(float))
        return cls(floats(mean), floats(np.maximum(values, least)), floats(vectors))

    def matrix(self, values: Array) -> Array:
        """The symmetric matrix with these eigenvalues."""
        return (self.vectors * values) @ self.vectors.T


class Datum(NamedTuple):
    """What is seen of one example, flat.

    Attributes:
        y: The entries, 0 where missing, of shape `(n,)`.
        seen: Which are there.
        noise: Standard deviations of the noise; anything positive where missing.
    """

    y: Array
    seen: Array
    noise: Array


class _Level(NamedTuple):
    noise: Array  # s, where the particles are
    time: Array  # of where they go
    next_noise: Array


class _Particle(NamedTuple):
    u: Array
    x_hat: Array
    log_twist: Scalar


class _Linear(NamedTuple):
    """The twist of a level, and the product of it with a step of covariance Q, about one cloud."""

    forward: Array  # H, with rows of missing entries 0
    offset: Array  # y - f(c) + H c there
    noised: Array  # Cholesky factor L of R' = Sigma_y + H C' H^T
    noised_inverse: Array  # L^-1
    total_inverse: Array  # that of W = R' + G Q G^T
    ahead: Array  # G = H A'
    gain: Array  # Q G^T


def posterior(
    key: PRNGKey,
    energy: AbstractDenoiser,
    reference: Reference,
    observe: Callable[[Array], Array],
    datum: Datum,
    times: Array,
    num_particles: int,
    threshold: float,
) -> CloudRun:
    """Weighted draws of one clean example, flat, and the log evidence of what is seen of it; for `vmap`.

    Args:
        key: PRNG key.
        energy: The prior.
        reference: A Gaussian like it.
        observe: What an instrument would see of a clean example, flat to flat, but for noise.
        datum: What is seen.
        times: Falling from `t_max` to `t_min`.
        num_particles: Particles.
        threshold: Resample below this share of the effective sample size.
    """
    floor = energy.schedule.noise_level(times[-1])
    shape, s = energy.shape, jax.vmap(energy.schedule.noise_level)(times)
    wide = reference.values + floor**2  # variances of the prior at t_min
    num_seen = jnp.sum(datum.seen)
    variance = jnp.where(datum.seen, datum.noise**2, 1.0)

    def linear(centre: Array, step: Array, s_new: Scalar) -> _Linear:
        whole = reference.values + s_new**2
        shrink = wide / whole
        left = wide * jnp.maximum(s_new**2 - floor**2, 0.0) / whole
        h = jax.jacfwd(observe)(centre)
        both = datum.seen[:, None] & datum.seen
        gram = lambda values: jnp.where(both, h @ reference.matrix(values) @ h.T, 0.0)
        noised = gram(left) + jnp.diag(variance)
        total = gram(left + shrink**2 * step) + jnp.diag(variance)
        rows = datum.seen[:, None]
        keep = lambda a: jnp.where(rows, a, 0.0)
        offset = jnp.where(datum.seen, datum.y - observe(centre) + h @ centre, 0.0)
        # Both factors in one call, and inverted: particles then cost matrix products alone. Batched calls of
        # LAPACK that run side by side can wait for each other's threads for ever: those of a level wait for
        # the particles.
        factors = jnp.linalg.cholesky(jnp.stack([noised, total]) + 0 * jnp.sum(centre))
        ones = jnp.broadcast_to(jnp.eye(len(variance), dtype=factors.dtype), factors.shape)
        inverses = jax.scipy.linalg.solve_triangular(factors, ones, lower=True)
        return _Linear(
            keep(h), offset, factors[0], inverses[0], inverses[1],
            keep(h @ reference.matrix(shrink)), keep(h @ reference.matrix(shrink * step)).T,
        )  # fmt: skip

    def log_normal(residual: Array, inverse: Array) -> Scalar:
        # Missing entries have residual 0 and variance 1: no trace of them but the constant, which is left
        # out.
        log_det = -jnp.sum(jnp.log(jnp.diagonal(inverse)))
        white = inverse @ residual
        return -0.5 * jnp.sum(white**2) - log_det - 0.5 * num_seen * jnp.log(2 * jnp.pi)

    def advance(key, mean, step, x_hat, log_twist, time, about: _Linear):
        key_step, key_data = jax.random.split(key)
        residual = about.offset - about.forward @ x_hat
        white = jax.random.normal(key_step, mean.shape, mean.dtype)
        free = reference.vectors @ (jnp.sqrt(step) * white)
        error = about.noised @ jax.random.normal(key_data, residual.shape, mean.dtype)
        # A draw of the product from a draw of both, as in Kriging.
        pull = residual - about.ahead @ free - error
        move = free + about.gain @ (about.total_inverse.T @ (about.total_inverse @ pull))
        log_ratio = log_normal(residual, about.total_inverse)
        log_ratio -= log_normal(residual - about.ahead @ move, about.noised_inverse)
        u = mean + move
        last = time <= times[-1]
        new_hat = jnp.where(last, u, denoised_mean(energy, u.reshape(shape), time).ravel())
        new_residual = about.offset - about.forward @ new_hat
        exact = jnp.where(datum.seen, datum.y - observe(u), 0.0)
        new_residual = jnp.where(last, exact, new_residual)
        new_twist = log_normal(new_residual, about.noised_inverse)
        return _Particle(u, new_hat, new_twist), new_twist - log_twist + log_ratio

    start_variance = reference.values + s[0] ** 2
    start = linear(reference.mean, start_variance, s[0])

    def init(key):
        zero, mean = jnp.zeros((), s.dtype), reference.mean
        return advance(key, mean, start_variance, mean, zero, times[0], start)

    def step_variance(level: _Level) -> Array:
        v = level.noise**2 - level.next_noise**2
        whole = reference.values + level.noise**2
        return v * (reference.values + level.next_noise**2) / whole

    def shared(particles: _Particle, weights: Array, level: _Level) -> _Linear:
        # The cloud as it is before the step: weights stay right, wherever the operator is made linear.
        return linear(weights @ particles.x_hat, step_variance(level), level.next_noise)

    def step(key, particle: _Particle, level: _Level, about: _Linear):
        v = level.noise**2 - level.next_noise**2
        share = v / (level.noise**2 - floor**2)
        mean = particle.u + share * (particle.x_hat - particle.u)
        variances = step_variance(level)
        return advance(key, mean, variances, particle.x_hat, particle.log_twist, level.time, about)

    model = CloudModel(init, shared, step, _Level(s[:-1], times[1:], s[1:]))
    run = run_cloud(key, model, num_particles, threshold=threshold)
    return run._replace(particles=run.particles.u)


def level_times(energy: AbstractDenoiser, num_levels: int) -> Array:
    """Times from `t_max` to `t_min`, equal in log-SNR."""
    dtype = jnp.result_type(float)
    ends = jnp.asarray([energy.t_max, energy.t_min], dtype)
    log_snr = jax.vmap(energy.schedule.log_snr)(ends)
    times = jax.vmap(energy.schedule.time)(jnp.linspace(log_snr[0], log_snr[1], num_levels + 1))
    return times.at[0].set(ends[0]).at[-1].set(ends[1])


@eqx.filter_jit
def posteriors(
    keys: PRNGKey,
    energy: AbstractDenoiser,
    reference: Reference,
    observe: Any,
    parameters: PyTree,
    data: Datum,
    num_levels: int,
    num_particles: int,
    threshold: float,
) -> CloudRun:
    """`posterior` of many examples in one program: everything but numbers of levels and particles is data."""
    times = level_times(energy, num_levels)
    run = lambda key, datum: posterior(
        key,
        energy,
        reference,
        lambda x: observe(x, parameters),
        datum,
        times,
        num_particles,
        threshold,
    )
    return jax.vmap(run)(keys, data)
