"""Measurements of a prior, one by one, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import Shifted

import numpyro_diffusion as nd
from numpyro_diffusion import auditing

MIXTURE = nd.GaussianMixture()
GAUSSIAN = nd.Gaussian()  # covariance ((1.0, 0.6), (0.6, 0.8))
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])


def exact_data(energy, num, seed=0):
    draw = lambda key: energy.draw(key, jnp.asarray(0.0))
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


def rotated(energy, angle):
    """A score turned by an angle in its plane: no density has it."""
    c, s = np.cos(angle), np.sin(angle)
    return nd.ScoreFunction(_turned, (2,), params=(energy, jnp.asarray([[c, -s], [s, c]])))


def _turned(params, x, t):
    energy, turn = params
    return turn @ energy.score(x, t)


# ---- levels


def test_level_times_are_equal_steps_of_log_noise_between_the_ends():
    times = auditing.level_times(MIXTURE, 6)
    assert times[0] == MIXTURE.t_min and times[-1] == MIXTURE.t_max
    levels = jax.vmap(MIXTURE.schedule.noise_level)(jnp.asarray(times))
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[-1] / levels[0]) / 5)
    assert auditing.level_times(MIXTURE, 1) == [MIXTURE.t_min]


@pytest.mark.parametrize("times", [0.5, [], [0.5, 1.1], [0.0]])
def test_times_outside_are_refused(times, key):
    with pytest.raises(ValueError, match=r"`times` must be a vector of times in \["):
        auditing.curl_ratio(MIXTURE, exact_data(MIXTURE, 4), key, times)


# ---- residual of the denoiser


def test_residual_of_a_gaussian_is_its_posterior_variance(key):
    """For a Gaussian residual, linear floor and prediction are one number, known in closed form."""
    data = exact_data(GAUSSIAN, 2000)
    found = auditing.denoising_residual(GAUSSIAN, data, key)
    variances = np.linalg.eigvalsh(COVARIANCE)
    s2 = found.noise_levels[:, None] ** 2
    truth = (variances * s2 / (variances + s2)).mean(1)
    assert np.all(np.abs(found.residual - truth) < 4 * found.residual_error)
    assert np.all(found.residual_error < 0.04 * truth)
    # The linear floor is that of the sample's moments; its distance is paired, hence tiny.
    assert np.all(np.abs(found.linear - found.residual) < 1e-3 * truth + 4 * found.saving_error)
    assert np.all(found.saving_error < 0.2 * found.residual_error)
    # Random signs leave nothing to chance but the off-diagonal entries.
    assert np.all(np.abs(found.predicted - truth) < 4 * found.predicted_error + 1e-12)


@pytest.mark.long
def test_residual_of_a_mixture_beats_the_line_and_is_what_it_expects(key):
    found = auditing.denoising_residual(MIXTURE, exact_data(MIXTURE, 1000), key)
    gap = found.residual - found.predicted
    assert np.all(np.abs(gap) < 4 * found.excess_error)
    middle = np.argmin(np.abs(np.log(found.noise_levels)))
    saving = found.linear - found.residual
    assert saving[middle] > 10 * found.saving_error[middle]
    assert saving[middle] > 0.05 * found.linear[middle]


def test_residual_of_a_denoiser_that_is_too_sure(key):
    """Data twice as wide as the prior believes: it expects d^2 s^2 / (d^2 + s^2) and errs by more."""
    narrow = nd.Gaussian(np.zeros(2), np.eye(2))
    data = 2 * jax.random.normal(jax.random.key(1), (2000, 2))
    t = float(narrow.schedule.time(jnp.asarray(0.0)))  # noise of one unit
    found = auditing.denoising_residual(narrow, data, key, [t] * 8)
    assert np.all(np.abs(found.residual - (4 + 1) / 4) < 4 * found.residual_error)
    np.testing.assert_allclose(found.predicted, 0.5, rtol=1e-6)
    assert np.all(np.abs(found.linear - 0.8) < 4 * found.linear_error)


def test_reference_moments_come_from_other_examples(key):
    data = exact_data(GAUSSIAN, 2000)
    found = auditing.denoising_residual(GAUSSIAN, data, key, reference=3 * data)
    middle = np.argmin(np.abs(np.log(found.noise_levels)))
    assert found.linear[middle] > 1.2 * found.residual[middle]


# ---- curl


@pytest.mark.parametrize("angle", [0.05, 0.7])
def test_curl_of_a_rotated_score_is_the_tangent_of_the_angle(angle, key):
    """J = -R(angle) / v for an isotropic Gaussian: the ratio is exact, probe by probe."""
    isotropic = nd.Gaussian(np.zeros(2), 0.7 * np.eye(2))
    found = auditing.curl_ratio(rotated(isotropic, angle), exact_data(isotropic, 20), key)
    np.testing.assert_allclose(found.ratio, np.tan(angle), rtol=1e-4)
    assert np.all(found.ratio > 100 * found.rounding)


def test_curl_of_a_linear_score_is_that_of_its_matrix(key):
    """Random signs are right on average; the error says how far off they are."""
    matrix = jnp.asarray([[-2.0, 0.7, 0.1], [-0.4, -1.0, 0.9], [0.5, -0.2, -3.0]])
    prior = nd.ScoreFunction(lambda m, x, t: m @ x, (3,), params=matrix)
    data = jax.random.normal(jax.random.key(1), (2000, 3))
    found = auditing.curl_ratio(prior, data, key, [0.1, 0.3])
    truth = np.linalg.norm(matrix - matrix.T) / np.linalg.norm(matrix + matrix.T)
    assert np.all(np.abs(found.ratio - truth) < 4 * found.ratio_error)
    assert np.all((0 < found.ratio_error) & (found.ratio_error < 0.02 * truth))


def test_curl_of_an_energy_is_rounding(key):
    found = auditing.curl_ratio(MIXTURE, exact_data(MIXTURE, 20), key)
    assert np.all(found.ratio <= found.rounding) and np.all(found.rounding < 1e-14)


@pytest.mark.long
def test_curl_of_an_exact_score_in_float32_is_rounding(key, float32):
    """A denoiser's score is a difference: at low noise its own digits set the limit."""
    mixture = nd.GaussianMixture()
    data = exact_data(mixture, 20)
    for prior in (mixture, rotated(mixture, 0.0)):
        found = auditing.curl_ratio(prior, data, key)
        assert np.all(found.ratio <= found.rounding)
    assert found.rounding[0] > 1e-3 > 1e-5 > found.rounding[-1]


# ---- positivity


def test_spectrum_of_a_gaussian_in_closed_form(key):
    """Cov / s^2 has the eigenvalues d^2 / (d^2 + s^2), at every point."""
    found = auditing.posterior_spectrum(GAUSSIAN, exact_data(GAUSSIAN, 5), key)
    variances = np.linalg.eigvalsh(COVARIANCE)
    truth = variances.min() / (variances.min() + found.noise_levels**2)
    np.testing.assert_allclose(found.smallest, truth, rtol=1e-9)
    np.testing.assert_allclose(found.lowest, truth, rtol=1e-9)
    assert (
        found.exact and np.all(found.negative_share == 0) and np.all(found.negative_examples == 0)
    )


def indefinite(size):
    """A score whose covariance has known eigenvalues: 2, 1, ..., and one of -0.5."""
    wanted = jnp.linspace(0.1, 2.0, size).at[0].set(-0.5)
    vectors = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (size, size)))[0]
    matrix = vectors @ jnp.diag(wanted - 1) @ vectors.T
    schedule = nd.schedules.VarianceExploding(0.01, 10.0)
    score = lambda m, x, t: m @ x / schedule(t)[1] ** 2
    share = 0.5 / float(jnp.sum(jnp.abs(wanted)))
    return nd.ScoreFunction(score, (size,), schedule, params=matrix), share


@pytest.mark.parametrize("max_exact", [64, 4])
def test_negative_eigenvalues_are_found_with_their_weight(max_exact, key):
    """All eigenvalues, or as many steps of Lanczos's method as there are coordinates."""
    prior, share = indefinite(8)
    data = jax.random.normal(jax.random.key(1), (400, 8))
    found = auditing.posterior_spectrum(prior, data, key, [0.2, 0.5], max_exact=max_exact)
    assert found.exact == (max_exact == 64)
    np.testing.assert_allclose(found.smallest, -0.5, rtol=1e-6)
    assert np.all(found.negative_examples == 1)
    errors = np.abs(found.negative_share - share)
    assert np.all(errors < (1e-9 if found.exact else 4 * found.negative_share_error))
    assert np.all(found.negative_share_error < 0.1 * share)


def test_lanczos_in_many_dimensions(key):
    """Few steps find an outlying eigenvalue, and the weight of the negative ones within its error."""
    prior, share = indefinite(300)
    data = jax.random.normal(jax.random.key(1), (20, 300))
    found = auditing.posterior_spectrum(prior, data, key, [0.3], num_steps=24)
    assert not found.exact
    np.testing.assert_allclose(found.smallest, -0.5, rtol=1e-3)
    assert abs(found.negative_share[0] - share) < 4 * found.negative_share_error[0]


def test_lanczos_stops_where_there_is_nothing_left(key):
    """An isotropic covariance is found in one step; the others add no eigenvalue of their own."""
    isotropic = nd.Gaussian(np.zeros(6), 0.7 * np.eye(6))
    found = auditing.posterior_spectrum(isotropic, exact_data(isotropic, 4), key, max_exact=2)
    np.testing.assert_allclose(found.smallest, 0.7 / (0.7 + found.noise_levels**2), rtol=1e-8)


# ---- density against score


@pytest.mark.long
def test_density_and_score_of_an_exact_energy_agree(key):
    found = auditing.gradient_agreement(MIXTURE, exact_data(MIXTURE, 50), key)
    assert np.all(found.violations == 0) and np.all(found.discrepancy < 1e-6 * found.rise)


class Inconsistent(Shifted):
    """Values of one law and gradients of another: scores are 10 % too long."""

    def energy_and_score(self, x, t):
        value, score = self.inner.energy_and_score(x, t)
        return value, 1.1 * score


INCONSISTENT = Inconsistent(MIXTURE, jnp.asarray(0.0))


@pytest.mark.long
def test_a_wrong_gradient_is_measured(key):
    """Scores too long by a tenth: so is their integral, on every segment."""
    found = auditing.gradient_agreement(INCONSISTENT, exact_data(MIXTURE, 100), key, [0.1, 0.4])
    assert np.all(found.violations > 0.99)
    ratio = found.discrepancy / found.rise  # mean against root mean square: sqrt(2 / pi) or less
    assert np.all((0.04 < ratio) & (ratio < 0.1))


@pytest.mark.parametrize(
    "function", [auditing.gradient_agreement, auditing.normalizer_spread, auditing.rest_of_data]
)
def test_a_denoiser_alone_has_no_density(function, key):
    with pytest.raises(TypeError, match="A score alone has no density"):
        function(rotated(MIXTURE, 0.0), exact_data(MIXTURE, 10), key)


# ---- chains from the data


def with_a_well(depth):
    """An exact energy, and a well three standard deviations from the data, out of sight of training."""

    def energy(mixture, x, t):
        alpha_t, _ = mixture.schedule(t)
        away = x / alpha_t - jnp.array([1.5, 3.0])
        return mixture.energy(x, t) - depth * jnp.exp(-0.5 * jnp.sum(away**2) / 0.8**2)

    variance = np.var(exact_data(MIXTURE, 2000), 0)
    return nd.EnergyFunction(energy, (2,), params=MIXTURE, variance=variance)


def test_data_rest_under_their_own_law_and_leave_for_a_well(key):
    sizes = {"num_moves": 60, "num_steps": 4}
    found = auditing.rest_of_data(MIXTURE, exact_data(MIXTURE, 300), key, **sizes)
    assert abs(found.fall) < 4 * found.fall_error and found.fall_error < 0.15
    np.testing.assert_allclose(found.fall, found.before - found.after, atol=1e-9)
    # They went far: two independent draws are sqrt(2) standard deviations apart.
    level = float(MIXTURE.schedule.noise_level(jnp.asarray(MIXTURE.t_min)))
    spread = np.sqrt(2 * np.var(exact_data(MIXTURE, 2000), 0).mean()) / level
    assert 0.5 * spread < found.distance < 1.2 * spread
    assert 0.5 < found.acceptance <= 1 and found.num_chains == 300
    found = auditing.rest_of_data(with_a_well(25.0), exact_data(MIXTURE, 100), key, **sizes)
    assert found.fall > 2 and found.fall > 5 * found.fall_error
    few = auditing.rest_of_data(MIXTURE, exact_data(MIXTURE, 9), key, batch_size=4, **sizes)
    assert few.num_chains == 9 and np.isfinite(few.fall)


# ---- the normaliser, point by point


@pytest.mark.long
def test_normalizer_of_an_exact_energy_is_the_same_everywhere(key):
    energy = Shifted(MIXTURE, jnp.asarray(1.3))
    times = auditing.level_times(energy, 5)
    found = auditing.normalizer_spread(
        energy, exact_data(MIXTURE, 60), key, times, num_draws=8, num_repeats=3
    )
    known = 8 * found.noise_levels <= found.noise_levels[-1]
    truth = -np.array([float(energy.constant(jnp.asarray(t))) for t in times])
    assert np.array_equal(np.isnan(found.value), ~known) and known.sum() == 4
    assert np.all(np.abs(found.value - truth)[known] < 4 * found.value_error[known] + 0.01)
    assert np.all(found.spread[known] < 3 * found.spread_error[known] + 0.03)


def scattered(size):
    """An exact energy plus a ripple that scores see at low noise only: energies scatter by `size`."""

    def energy(mixture, x, t):
        _, s = mixture.schedule(t)
        ripple = jnp.sqrt(2.0) * jnp.sin(7 * x[0] + 5 * x[1])
        return mixture.energy(x, t) + size * jnp.exp(-((s / 0.02) ** 2)) * ripple

    variance = np.var(exact_data(MIXTURE, 2000), 0)
    return nd.EnergyFunction(energy, (2,), params=MIXTURE, variance=variance, log_normalizer=0.0)


@pytest.mark.long
def test_spread_is_that_of_the_energy_beyond_monte_carlo(key):
    """At t_min the ripple is in the energy; the integral of scores from there on hardly holds it."""
    found = auditing.normalizer_spread(scattered(1.0), exact_data(MIXTURE, 150), key, num_draws=8)
    assert abs(found.spread[0] - 1.0) < 4 * found.spread_error[0] + 0.1
    assert found.spread_error[0] < 0.15


@pytest.mark.long
def test_monte_carlo_variance_is_taken_off(key):
    """Two noises a node leave much chance in each value, and none in the spread."""
    data = exact_data(MIXTURE, 150)
    found = auditing.normalizer_spread(MIXTURE, data, key, num_draws=2)
    assert found.noise[0] > 0.2
    assert found.spread[0] < 4 * found.spread_error[0] + 0.03
