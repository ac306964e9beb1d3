"""Rates: times from the theorem, and the empirical score as a kernel density estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.density import rate_optimal_times

SCHEDULES = [nd.schedules.VariancePreserving(), nd.schedules.Cosine(), nd.schedules.RectifiedFlow()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("num", "dimension", "smoothness"), [(1000, 1, 2.0), (10**6, 3, 1.0)])
def test_levels_are_those_of_the_rate(schedule, num, dimension, smoothness):
    times = rate_optimal_times(num, dimension, smoothness, schedule=schedule, scale=2.0)
    stop = num ** (-1 / (2 * smoothness + dimension))
    np.testing.assert_allclose(times.noise_min, 2 * stop, rtol=1e-5)
    np.testing.assert_allclose(times.rate, stop**smoothness, rtol=1e-12)
    np.testing.assert_allclose(times.noise_max, 2 * (times.rate**-2 - 1) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(schedule.noise_level(times.t_max), times.noise_max, rtol=1e-6)


def test_the_horizon_of_the_theorem():
    """On the clock where alpha = exp(-t) it is s log n / (2 s + d)."""
    times = rate_optimal_times(5000, 2, 1.5)
    alpha, _ = SCHEDULES[0](times.t_max)
    np.testing.assert_allclose(-np.log(alpha), 1.5 * np.log(5000) / 5, rtol=1e-5)


def test_a_kernel_gains_nothing_from_smoothness_above_two():
    rough, smooth = rate_optimal_times(10**4, 1, 2.0), rate_optimal_times(10**4, 1, 4.0)
    assert rough.noise_min == smooth.noise_min and rough.rate > smooth.rate


def test_times_are_those_of_an_energy():
    energy = nd.GaussianMixture()
    times = rate_optimal_times(1000, 2, schedule=energy.schedule)
    short = energy.with_horizon(t_min=times.t_min, t_max=times.t_max)
    assert (short.t_min, short.t_max) == (times.t_min, times.t_max)


def test_the_empirical_score_stopped_early_is_a_kernel_density_estimate():
    """The flow of eight data points, against the distribution function of a kernel density estimate."""
    data = np.random.default_rng(0).normal(size=(8, 1)) * [1.5]
    times = rate_optimal_times(8, 1, scale=1.0)
    empirical = nd.GaussianMixture(np.ones(8) / 8, data, np.full((8, 1, 1), 1e-10))
    early = empirical.with_horizon(t_min=times.t_min)
    shares = np.array([0.05, 0.3, 0.5, 0.8, 0.95])
    noise = jnp.asarray(norm.ppf(shares))[:, None]
    found = jax.vmap(lambda z: nd.density.from_noise(early, z, num_steps=128))(noise)
    reached = norm.cdf((np.asarray(found) - data[:, 0]) / times.noise_min).mean(1)
    np.testing.assert_allclose(reached, shares, atol=5e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1, 1), "`num`.*at least 2"),
        ((100, 0), "`dimension`.*at least 1"),
        ((100, 1, 0.0), "`smoothness` must be a finite number above 0"),
        ((100, 1, np.inf), "`smoothness` must be a finite number above 0; got inf"),
        ((1000, 64), "stop at less noise than to start from.*so few examples for the dimension"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rate_optimal_times(*given)
    with pytest.raises(ValueError, match="`scale` must be a finite number above 0"):
        rate_optimal_times(100, 1, scale=-1.0)
