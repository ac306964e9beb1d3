"""Multi-granularity targets against the linear optimum; ranked probability scores against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.diagnostics import crps, crps_sum
from numpyro_diffusion.train import MultiGranularity, block_means, denoising_loss, likelihood_weight

# The published setting: 100 steps with rates from 1e-4 to 0.1, coarse series from step 40 on.
SHARES = np.cumprod(1 - np.linspace(1e-4, 0.1, 100))
START = float(1 / SHARES[39] - 1) ** 0.5
SCHEDULE = nd.schedules.VariancePreserving()


def series(key, num, length=4):
    """A stationary autoregression of variance 1 and correlation 0.9."""
    lag = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length))
    return jax.random.normal(key, (num, length)) @ jnp.linalg.cholesky(0.9**lag).T


def at(share):
    """All times where the signal has one share of the variance."""
    log_snr = float(np.log(share / (1 - share)))
    return lambda key, denoiser, num: jnp.full(num, SCHEDULE.time(jnp.asarray(log_snr)))


@eqx.filter_jit
def optimum(key, loss, share):
    """The factor c for which c times the noised series tells the noise best: the loss is a parabola."""
    _, sigma = SCHEDULE(SCHEDULE.time(jnp.log(share / (1 - share))))
    key, key_data = jax.random.split(key)
    data = series(key_data, 40_000)

    def value(c):
        said = nd.ScoreFunction(lambda c, x, t: -c * x / SCHEDULE(t)[1], (4,), SCHEDULE, params=c)
        return loss(said, key, data)

    low, mid, high = (value(jnp.asarray(c)) for c in (0.0, 0.5, 1.0))
    return 0.5 - 0.25 * (high - low) / (high - 2 * mid + low), sigma


def granular(step, starts, masked=True):
    return MultiGranularity(
        (1, 4)[: len(starts)],
        starts,
        (0.8, 0.2)[: len(starts)],
        levels=at(SHARES[step]),
        weight=likelihood_weight,
        masked=masked,
    )


@pytest.mark.parametrize(
    ("step", "start", "masked", "expected"),
    [(70, START, True, 0.9551), (70, 0.0, True, 0.9630), (20, START, False, 0.3608)],
)
def test_the_linear_optimum_of_coarse_and_fine(key, step, start, masked, expected):
    """In closed form: sum of w sigma over sum of w (share * variance + sigma^2)."""
    found, _ = optimum(key, granular(step, (0.0, start), masked), SHARES[step])
    assert abs(found - expected) < 0.002, found


def test_below_its_start_a_coarse_series_has_no_part(key):
    """The optimum is then that of the series alone, 0.4403, where published code has 0.3608."""
    found, sigma = optimum(key, granular(20, (0.0, START)), SHARES[20])
    alone, _ = optimum(key, granular(20, (0.0,)), SHARES[20])
    assert found == pytest.approx(float(alone), abs=1e-9)
    assert abs(found - 0.4403) < 0.002 and abs(sigma - 0.4403) < 1e-4


def test_one_granularity_is_denoising(key):
    energy = nd.Gaussian(np.zeros(4), np.eye(4))
    key, key_data = jax.random.split(key)
    data = series(key_data, 50)
    found = MultiGranularity((1,), (0.0,), (1.0,), data_scale=2.0)(energy, key, data)
    assert found == pytest.approx(float(denoising_loss(energy, key, data, data_scale=2.0)))


def test_block_means(key):
    """Variance of a mean of four, and a last block that is short."""
    x = series(key, 100_000)
    assert abs(jnp.var(jax.vmap(lambda x: block_means(x, 4))(x)[:, 2]) - 0.8811) < 0.012
    short = block_means(jnp.asarray([[1.0], [3.0], [8.0]]), 2)
    np.testing.assert_allclose(short[:, 0], [2.0, 2.0, 8.0])


@pytest.mark.parametrize(
    "change", [{"blocks": (2, 4)}, {"starts": (0.0,)}, {"starts": (0.0, -1.0)}, {"weights": (1, 0)}]
)
def test_what_is_no_granularity_is_refused(change):
    with pytest.raises(ValueError, match=r"got .*\. (Try|Leave)"):
        MultiGranularity(**change)


# ---- ranked probability scores


def gaussian_score(z):
    return z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5


def test_score_of_a_gaussian_forecast(rng):
    """In closed form, for several things at once; weighted draws of a wider distribution say the same."""
    y, mean, sd = np.array([0.3, -2.0]), np.array([0.0, 1.0]), np.array([1.0, 2.5])
    exact = sd * gaussian_score((y - mean) / sd)
    draws = mean + sd * rng.standard_normal((100_000, 2))
    np.testing.assert_allclose(crps(draws, y), exact, atol=0.012)
    # Quantiles instead of draws: no Monte Carlo error.
    levels = (np.arange(20_000) + 0.5) / 20_000
    np.testing.assert_allclose(
        crps(mean + sd * norm.ppf(levels)[:, None], y, fair=False), exact, atol=1e-3
    )
    wide = 2 * norm.ppf(levels)
    weights = norm.pdf(wide) / norm.pdf(wide / 2)
    found = crps(wide, 0.3, weights, fair=False)
    assert found == pytest.approx(gaussian_score(0.3), abs=1e-3)


def test_a_fair_score_does_not_depend_on_the_number_of_draws(rng):
    """On average over forecasts of three draws; unfair, it has a third of the mean distance too much."""
    few, y = 2 + rng.standard_normal((3, 40_000)), 2.5 * np.ones(40_000)
    for fair, more in ((True, 0.0), (False, np.pi**-0.5 / 3)):
        scores = crps(few, y, fair=fair)
        error = scores.std() / len(y) ** 0.5
        assert abs(scores.mean() - gaussian_score(0.5) - more) < 4 * error


def test_score_of_sums_sees_dependence():
    """Two series with correlation -0.6: their sum has variance 0.8, not 2."""
    grid = norm.ppf((np.arange(300) + 0.5) / 300)
    first, second = (part.ravel() for part in np.meshgrid(grid, grid))
    draws = np.stack([first, -0.6 * first + 0.8 * second], -1)[:, None]
    y = np.array([[1.0, 0.5]])
    sd = 0.8**0.5
    exact = sd * gaussian_score(1.5 / sd) / 1.5
    assert crps_sum(draws, y, fair=False) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize(
    ("draws", "y", "weights", "told"),
    [
        (np.zeros((3, 2)), np.zeros(3), None, "first axis"),
        (np.zeros((1, 2)), np.zeros(2), None, "at least 2 draws"),
        (np.zeros((3, 2)), np.array([0.0, np.nan]), None, "Leave out what is missing"),
        (np.zeros((3, 2)), np.zeros(2), [1.0, -1.0, 1.0], "not negative"),
    ],
)
def test_bad_forecasts_are_refused(draws, y, weights, told):
    with pytest.raises(ValueError, match=told):
        crps(draws, y, weights)
    with pytest.raises(ValueError, match="One series"):
        crps_sum(draws, y)
