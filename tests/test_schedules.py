"""Schedules: inverses, reverse moments against brute-force conditioning, grids, rescaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import Gaussian, GaussianMixture
from numpyro_diffusion.schedules import (
    Cosine,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    log_snr_grid,
    reverse_moments,
)

SCHEDULES = [
    VariancePreserving(),
    VariancePreserving(beta_min=2.0, beta_max=2.0),  # constant rate: the quadratic degenerates
    VarianceExploding(),
    VarianceExploding(0.05, 7.0),
    Cosine(),
    RectifiedFlow(),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


def brute_force_reverse(alpha_s, sigma_s, alpha_t, sigma_t, x_0, x_t):
    """Mean and variance of x_s given x_0 and x_t, by conditioning one joint Gaussian."""
    ratio = alpha_t / alpha_s
    # x_s = alpha_s x_0 + sigma_s e, x_t = ratio x_s + noise; condition the pair on x_t.
    var_s, var_t, cov = sigma_s**2, sigma_t**2, ratio * sigma_s**2
    mean = alpha_s * x_0 + cov / var_t * (x_t - alpha_t * x_0)
    return mean, var_s - cov**2 / var_t


@each_schedule
def test_log_snr_and_time_are_inverse(schedule):
    log_snr = jnp.linspace(-8.0, 8.0, 41)
    t = jax.vmap(schedule.time)(log_snr)
    assert jnp.all(jnp.diff(t) < 0)
    np.testing.assert_allclose(jax.vmap(schedule.log_snr)(t), log_snr, rtol=0, atol=1e-9)
    alpha_t, sigma_t = jax.vmap(schedule)(t)
    np.testing.assert_allclose(alpha_t**2 / sigma_t**2, jnp.exp(log_snr), rtol=1e-9)
    np.testing.assert_allclose(
        jax.vmap(schedule.noise_level)(t), jnp.exp(-0.5 * log_snr), rtol=1e-9
    )


@each_schedule
def test_horizon_stays_inside_its_bounds(schedule):
    t_min, t_max = schedule.horizon(-6.0, 6.0)
    assert 0 <= t_min < t_max <= 1
    ends = np.array([schedule.log_snr(jnp.asarray(t)) for t in (t_max, t_min)])
    assert -6 - 1e-9 <= ends[0] < ends[1] <= 6 + 1e-9


@each_schedule
def test_horizon_is_a_number_inside_jit_too(schedule):
    assert jax.jit(lambda x: x * schedule.horizon()[1])(1.0) == schedule.horizon()[1]


def test_variance_preserving_solves_its_differential_equation():
    schedule, t = VariancePreserving(0.3, 12.0), 0.37
    slope = jax.grad(lambda t: jnp.log(schedule(t)[0]))(t)
    np.testing.assert_allclose(slope, -0.5 * (0.3 + (12.0 - 0.3) * t), rtol=1e-12)
    alpha_t, sigma_t = schedule(t)
    np.testing.assert_allclose(alpha_t**2 + sigma_t**2, 1.0, rtol=1e-14)


@each_schedule
@pytest.mark.parametrize(("log_snr_t", "log_snr_s"), [(-5.0, 4.0), (0.3, 0.9), (1.0, 1.01)])
def test_reverse_moments_are_gaussian_conditioning(schedule, log_snr_t, log_snr_s):
    t, s = schedule.time(jnp.asarray(log_snr_t)), schedule.time(jnp.asarray(log_snr_s))
    x_0, x_t = -0.7, 1.9
    mean, variance = brute_force_reverse(*schedule(s), *schedule(t), x_0, x_t)
    q = reverse_moments(schedule, t, s)
    np.testing.assert_allclose(q.noised * x_t + q.data * x_0, mean, rtol=1e-9)
    np.testing.assert_allclose(q.variance, variance, rtol=1e-8)


@each_schedule
def test_reverse_moments_compose(schedule):
    """Two reverse steps t -> s -> r with x_0 known are the single step t -> r."""
    t, s, r = (schedule.time(jnp.asarray(v)) for v in (-3.0, -1.0, 2.0))
    first, second = reverse_moments(schedule, t, s), reverse_moments(schedule, s, r)
    whole = reverse_moments(schedule, t, r)
    np.testing.assert_allclose(second.noised * first.noised, whole.noised, rtol=1e-10)
    np.testing.assert_allclose(second.noised * first.data + second.data, whole.data, rtol=1e-10)
    variance = second.noised**2 * first.variance + second.variance
    np.testing.assert_allclose(variance, whole.variance, rtol=1e-10)


def test_reverse_moments_keep_their_digits_in_float32():
    """For neighbouring levels the variance is a difference of near-equal numbers."""
    schedule = VariancePreserving()
    times = [float(schedule.time(jnp.asarray(v))) for v in (2.0, 2.001)]
    exact = reverse_moments(schedule, *(jnp.asarray(v, jnp.float64) for v in times))
    single = reverse_moments(schedule, *(jnp.asarray(v, jnp.float32) for v in times))
    assert single.variance.dtype == jnp.float32
    # The times themselves are rounded: 6e-8 of t against a step of 1e-3 in log-SNR.
    np.testing.assert_allclose(single.variance, exact.variance, rtol=2e-3)


@each_schedule
def test_grid_is_even_in_log_snr_and_its_ends_are_exact(schedule):
    t_min, t_max = schedule.horizon()
    times = log_snr_grid(schedule, 17, t_min, t_max)
    assert times.shape == (18,)
    assert times[0] == t_max and times[-1] == t_min
    steps = jnp.diff(jax.vmap(schedule.log_snr)(times))
    assert jnp.all(steps > 0)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 0.9), "at least 1; got 0"),
        ((5, 0.9, 0.1), "data-to-noise order"),
        ((5, 0.1, 1.5), "t_max=1.5"),
        ((5, 0.0, 0.9), "finite at both ends"),
    ],
)
def test_grid_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_snr_grid(RectifiedFlow(), *arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariancePreserving(20.0, 0.1),
        lambda: VariancePreserving(0.0, 1.0),
        lambda: VarianceExploding(80.0, 0.002),
        lambda: VarianceExploding(-1.0, 2.0),
    ],
)
def test_rates_in_the_wrong_order_are_refused(make):
    with pytest.raises(ValueError, match=r"expects 0 < .* got .*Swap or raise them"):
        make()


@each_schedule
@pytest.mark.parametrize("log_snr", [-4.0, 0.5, 5.0])
def test_all_schedules_hold_the_same_information_at_the_same_log_snr(schedule, log_snr):
    """`x_t / alpha_t` has one law at one log-SNR, so one denoiser and one density."""
    reference = VarianceExploding(1e-3, 1e3)
    u = jnp.array([0.4, -1.3])
    for make in (Gaussian, GaussianMixture):
        results = []
        for each in (reference, schedule):
            energy, t = make(schedule=each), each.time(jnp.asarray(log_snr))
            alpha_t, _ = each(t)
            results.append((energy.denoise(alpha_t * u, t), *energy.log_density_and_score(u, t)))
        for expected, got in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-8)
