"""Draws against data, and members against others: known answers, and silence where nothing is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, mannwhitneyu, norm

import numpyro_diffusion as nd
from numpyro_diffusion import auditing

MIXTURE = nd.GaussianMixture()

# ---- draws against data


def test_draws_of_one_law_pass_as_often_as_they_say(rng):
    """P-values are uniform, z scores standard normal and sizes near 0 for skewed data."""
    p_values, z_scores, shifts = [], [], []
    for seed in range(60):
        x, y = (rng.gamma(2.0, size=(n, 3)) * [1.0, 2.0, 0.1] for n in (80, 120))
        found = auditing.compare_draws(x, y, jax.random.key(seed), num_permutations=99)
        p_values.append([found.mean_p, found.covariance_p, found.energy_p])
        z_scores.append(found.mean_z)
        shifts.append([found.mean_shift, found.covariance_shift])
    for column in np.transpose(p_values):
        assert kstest(column, "uniform").pvalue > 0.01
    assert kstest(np.ravel(z_scores), norm.cdf).pvalue > 0.01
    assert np.median(shifts) < 0.1


def test_a_shifted_mean_is_found_where_it_is(rng, key):
    x, y = rng.normal(size=(2, 2000, 2, 2))
    x[:, 1, 0] += 0.2
    found = auditing.compare_draws(x, y, key, num_permutations=199)
    assert found.mean_z.shape == (2, 2) and found.num_directions == 4
    assert abs(found.mean_z[1, 0] - 0.2 / (2 / 2000) ** 0.5) < 3
    assert np.abs(np.delete(found.mean_z.ravel(), 2)).max() < 3
    assert abs(found.mean_shift - 0.1) < 0.03  # root mean square over four directions
    assert found.mean_p == 1 / 200 and found.covariance_p > 0.02 and found.energy_p < 0.05
    assert found.mean_chi_square > 5 > 2 > found.covariance_chi_square


def test_a_wrong_scale_is_measured(rng, key):
    x, y = 1.2 * rng.normal(size=(1000, 3)), rng.normal(size=(1000, 3))
    found = auditing.compare_draws(x, y, key, num_permutations=199)
    assert abs(found.scale - 1.2) < 4 * found.scale_error and found.scale_error < 0.03
    assert found.covariance_p == 1 / 200 and found.mean_p > 0.02
    # The relative difference of variances, 1.44 against 1, in units of their mean: 0.36 in 3 entries of 6.
    assert abs(found.covariance_shift - 0.36 * 0.5**0.5) < 0.05


def test_the_energy_distance_sees_what_moments_do_not(rng, key):
    """Two points against a normal law with their mean and variance; exact value by quadrature."""
    x, y = rng.choice([-1.0, 1.0], size=(1500, 1)), rng.normal(size=(1500, 1))
    found = auditing.compare_draws(x, y, key, num_permutations=199, max_points=1000)
    crossed = 2 * norm.pdf(1) + 2 * norm.cdf(1) - 1  # E|1 - Y|
    exact = (2 * crossed - 1 - 2 / np.pi**0.5) / (2 * crossed)
    assert abs(found.energy_distance - exact) < 0.01
    assert found.energy_p == 1 / 200 and found.mean_p > 0.02


def test_a_constant_coordinate_is_no_difference(rng, key):
    x, y = rng.normal(size=(2, 50, 3))
    x[:, 1] = y[:, 1] = -1.0
    found = auditing.compare_draws(x, y, key)
    assert found.mean_z[1] == found.variance_z[1] == 0 and found.num_directions == 2
    assert np.isfinite([found.mean_chi_square, found.covariance_chi_square]).all()


def test_samples_that_cannot_be_compared_are_refused(rng, key):
    with pytest.raises(ValueError, match="two samples of one shape"):
        auditing.compare_draws(rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), key)
    with pytest.raises(ValueError, match="at least 20 examples"):
        auditing.compare_draws(rng.normal(size=(50, 2)), rng.normal(size=(19, 2)), key)


@pytest.mark.long
def test_draws_of_a_closed_form_and_of_the_reverse_process_are_those_of_noised_data(key):
    """The prior keeps noise at t_min; here that is half of one standard deviation."""
    noisy = MIXTURE.with_horizon(t_min=float(MIXTURE.schedule.time(-2 * jnp.log(0.5))))
    keys = jax.random.split(jax.random.key(1), 800)
    data = jax.vmap(lambda key: MIXTURE.draw(key, jnp.asarray(0.0)))(keys)
    score = nd.ScoreFunction(lambda e, x, t: e.score(x, t), (2,), params=noisy, t_min=noisy.t_min)
    noised = auditing.noised_to_prior(noisy, data, key)
    for prior in (noisy, score):
        draws = auditing.many_draws(prior, key, 800, num_steps=60, batch_size=400)
        assert auditing.compare_draws(draws, noised, key).covariance_p > 0.005
    found = auditing.compare_draws(draws, data, key)
    assert found.covariance_p == 1 / 1000 and found.scale > 1.05


# ---- telling two lots of scores apart


def test_auc_is_the_mann_whitney_statistic(rng):
    members, others = rng.integers(0, 9, 60), rng.integers(2, 12, 90)  # with ties
    expected = mannwhitneyu(others, members).statistic / (60 * 90)
    area, _ = auditing.auc_and_error(members, others)
    assert area == pytest.approx(expected)
    false, true = auditing.roc_curve(members, others)
    assert np.trapezoid(true, false) == pytest.approx(expected)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_delong_error_is_the_spread_of_the_area(rng):
    found = np.array(
        [auditing.auc_and_error(rng.normal(size=50), rng.normal(1, 2, 80)) for _ in range(800)]
    )
    truth = norm.cdf(1 / 5**0.5)
    assert abs(found[:, 0].mean() - truth) < 4 * found[:, 0].std() / 800**0.5
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.08)


def test_true_positive_rate_allows_so_many_false_alarms():
    others = np.arange(200.0)
    members = np.array([-1.0, 0.5, 1.5, 2.5, 300.0])
    assert auditing.true_positive_rate(members, others, 0.01) == 3 / 5  # below the third lowest
    assert (
        auditing.true_positive_rate(members, others[:50], 0.01) == 1 / 5
    )  # no false alarm allowed


# ---- memorisation

BAR_ALPHAS = np.array([0.999, 0.9, 0.5, 0.2, 0.05])
SCHEDULE = nd.schedules.VariancePreserving()
TIMES = np.asarray(jax.vmap(SCHEDULE.time)(np.log(BAR_ALPHAS) - np.log1p(-BAR_ALPHAS)))


def empirical_score(points, x, t):
    """Score of the law that puts all its mass on the training examples."""
    alpha_t, sigma_t = SCHEDULE(t)
    log_weights = -jnp.sum((x - alpha_t * points) ** 2, 1) / (2 * sigma_t**2)
    return (alpha_t * jax.nn.softmax(log_weights) @ points - x) / sigma_t**2


def lots(seed, dimension=16, num=400):
    return jax.random.normal(jax.random.key(seed), (2, num, dimension))


def memorised(members):
    return nd.ScoreFunction(empirical_score, members.shape[1], SCHEDULE, params=members)


@pytest.fixture(scope="module")
def fired():
    """Several data sets from N(0, I), 400 members and 400 others in 16 dimensions."""
    audits = []
    for seed in range(4):
        members, others = lots(seed)
        audits.append(
            auditing.membership_audit(
                memorised(members), members, others, jax.random.key(seed), TIMES, num_noises=1
            )
        )
    return audits


def test_sima_fires_at_a_prior_that_memorised(fired):
    """The areas known for the exact empirical score."""
    areas = np.array([found.auc[0] for found in fired])
    np.testing.assert_allclose(areas[:, :2], 1.0, atol=1e-6)
    error = np.hypot([f.auc_error[0][2:] for f in fired], 0).mean(0) / len(fired) ** 0.5
    assert np.all(np.abs(areas[:, 2:].mean(0) - [0.991, 0.824, 0.504]) < 4 * error + 0.004)
    for found in fired:
        assert found.chosen_auc[0] == pytest.approx(1) and found.level[0] <= 1
        assert found.chosen_tpr[0] == 1 and found.tpr[0, 0] == 1
        assert found.auc[2, 1] > 0.99  # so does the loss, at low noise


def test_a_member_has_half_the_noise_of_its_length():
    """|eps| -> sigma |x| / 2 at a member as the noise vanishes."""
    members, others = lots(0)
    found = auditing.membership_audit(
        memorised(members), members, others, jax.random.key(0), TIMES[:2], power=2, num_noises=1
    )
    length = np.linalg.norm(members, axis=1)
    sigma = np.sqrt(1 - BAR_ALPHAS[:2, None])
    ratio = np.sqrt(found.member_scores[0]) / (0.5 * sigma * length)
    np.testing.assert_allclose(ratio.mean(1), [1.0, 1.026], atol=0.002)
    assert np.all(np.abs(ratio[0] - 1) < 0.03)
    assert found.other_scores[0, 0].min() > found.member_scores[0, 0].max()


def test_it_is_silent_at_the_law_itself():
    """The score of the population knows no member: half, at every level, for every statistic."""
    prior = nd.ScoreFunction(lambda x, t: -x, 16, SCHEDULE)
    members, others = lots(5)
    found = auditing.membership_audit(prior, members, others, jax.random.key(5), TIMES)
    assert np.all(np.abs(found.auc - 0.5) < 0.06 + 1e-9)
    assert np.all(np.abs(found.chosen_auc - 0.5) < 3.5 * found.chosen_auc_error)
    assert np.all(found.tpr < 0.05)
    assert found.member_scores.shape == (3, 5, 400)


def test_a_level_chosen_and_judged_on_one_half_is_not_flattered():
    """Over data sets the chosen area averages one half, where the best of all levels is above it."""
    prior = nd.ScoreFunction(lambda x, t: -x * (1 + t), 2, SCHEDULE)
    chosen, best = [], []
    for seed in range(40):
        members, others = lots(seed, 2, 60)
        found = auditing.membership_audit(
            prior, members, others, jax.random.key(seed), TIMES, num_noises=1
        )
        chosen.append(found.chosen_auc[1:].mean())
        best.append(found.auc[1:].max(1).mean())
    assert abs(np.mean(chosen) - 0.5) < 3 * np.std(chosen) / 40**0.5
    assert np.mean(best) > 0.53


def test_too_few_examples_are_refused(key):
    prior = nd.ScoreFunction(lambda x, t: -x, 2, SCHEDULE)
    with pytest.raises(ValueError, match="at least 4 members and 4 held-out"):
        auditing.membership_audit(prior, np.zeros((10, 2)), np.zeros((3, 2)), key)
