"""Langevin chains without a Metropolis test: the distributions that they have, by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import annealed_langevin, unadjusted_langevin

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
PRIOR = nd.ScoreFunction(
    lambda energy, x, t: energy.score(x, t), (2,), params=nd.Gaussian(MEAN, COVARIANCE)
)
FLOOR = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2
VALUES, BASIS = np.linalg.eigh(COVARIANCE + FLOOR * np.eye(2))


def assert_moments(x, mean, covariance):
    gap = np.asarray(x) - mean
    second = gap[:, :, None] * gap[:, None] - covariance
    values = np.concatenate([gap, second.reshape(len(gap), 4)], 1)
    error = values.std(0) / len(gap) ** 0.5
    assert (np.abs(values.mean(0)) < 4 * error).all(), values.mean(0) / error


def test_steps_of_a_gaussian_widen_it():
    """The variance s^2 / (1 - h / 4 s^2) along each principal direction; the mean as it is."""
    step = 0.5
    draws = unadjusted_langevin(
        jax.random.key(1), PRIOR, step_size=step, num_steps=150, num_samples=20_000
    )
    widened = VALUES / (1 - step / (4 * VALUES))
    assert widened[0] / VALUES[0] > 1.5
    assert_moments(draws.positions, MEAN, (BASIS * widened) @ BASIS.T)
    assert not draws.exact and "size 0.5" in draws.target and draws.target.endswith("p(x, t_min)")


def test_steps_of_a_posterior():
    """With a datum of the first coordinate; the same widening about the posterior's mean."""
    step, sigma2, y = 0.2, 0.3, 2.0
    log_likelihood = lambda x: -0.5 * (x[0] - y) ** 2 / sigma2
    precision = (BASIS / VALUES) @ BASIS.T + np.diag([1 / sigma2, 0.0])
    covariance = np.linalg.inv(precision)
    mean = covariance @ ((BASIS / VALUES) @ BASIS.T @ MEAN + np.array([y / sigma2, 0.0]))
    values, basis = np.linalg.eigh(covariance)
    draws = unadjusted_langevin(
        jax.random.key(2), PRIOR, log_likelihood, step_size=step, num_steps=150, num_samples=20_000
    )
    widened = values / (1 - step / (4 * values))
    assert_moments(draws.positions, mean, (basis * widened) @ basis.T)
    assert draws.target.endswith("p(x, t_min) p(y | x)")


def test_annealed_steps_of_a_posterior():
    """Level by level mean and covariance are those of a linear recursion: what few steps leave is seen."""
    step, num_levels, num_steps, sigma2, y = 0.3, 8, 4, 0.3, 2.0
    ends = [float(PRIOR.schedule.noise_level(jnp.asarray(t))) for t in (PRIOR.t_max, PRIOR.t_min)]
    mean, variance = (np.asarray(v) for v in PRIOR.data_moments(jnp.asarray(PRIOR.t_max)))
    covariance, first = np.diag(variance), np.diag([1.0, 0.0])
    for s in np.geomspace(*ends, num_levels):
        prior, data = np.linalg.inv(COVARIANCE + s**2 * np.eye(2)), first / (sigma2 + s**2)
        slope = np.eye(2) - 0.5 * step * s**2 * (prior + data)
        shift = 0.5 * step * s**2 * (prior @ MEAN + data @ [y, 0.0])
        for _ in range(num_steps):
            mean = slope @ mean + shift
            covariance = slope @ covariance @ slope.T + step * s**2 * np.eye(2)
    draws = annealed_langevin(
        jax.random.key(3),
        PRIOR,
        lambda u, s: -0.5 * (u[0] - y) ** 2 / (sigma2 + s**2),
        step_size=step,
        num_levels=num_levels,
        num_steps=num_steps,
        num_samples=20_000,
    )
    posterior = np.linalg.inv(np.linalg.inv(COVARIANCE) + first / sigma2)
    assert np.abs(covariance / posterior - 1).max() > 0.5
    assert_moments(draws.positions, mean, covariance)
    assert not draws.exact and "4 at each of 8" in draws.target


def test_many_annealed_steps_come_near():
    """Levels forget what was before down to s^2 = d^2 / 50 or so."""
    draws = annealed_langevin(
        jax.random.key(4), PRIOR, step_size=0.4, num_levels=12, num_steps=250, num_samples=4000
    )
    x = np.asarray(draws.positions)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.06)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.08)


def test_refusals():
    key = jax.random.key(0)
    for sampler in (unadjusted_langevin, annealed_langevin):
        with pytest.raises(TypeError, match="`denoiser` must be an instance of `AbstractDenoiser`"):
            sampler(key, lambda x: x)
        with pytest.raises(ValueError, match="`step_size` of .* must be a finite number above 0"):
            sampler(key, PRIOR, step_size=0.0)
        with pytest.raises(ValueError, match=r"`initial` must have shape \(3, 2\)"):
            sampler(key, PRIOR, num_samples=3, initial=jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"`initial` must be finite .* with 1 NaN"):
        initial = jnp.array([[0.0, 0.0], [jnp.nan, 0.0]])
        unadjusted_langevin(key, PRIOR, num_samples=2, num_steps=2, initial=initial)
    energy = lambda x, t: 0.5 * jnp.sum(x**2) * jnp.where(x[0] > 9, jnp.nan, 1.0)
    initial, broken = jnp.array([[0.0, 0.0], [10.0, 0.0]]), nd.EnergyFunction(energy, (2,))
    with pytest.raises(FloatingPointError, match="lost 1 of 2 chains, the first is number 1"):
        unadjusted_langevin(key, broken, num_samples=2, num_steps=2, initial=initial)
