"""Priors compared on held-out data, bits a dimension, and how untypical points are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    DensityEstimate,
    GaussHermite,
    GaussLegendre,
    Mirrored,
    NormalizedEnergy,
    ScoreFormula,
    anomaly_score,
    bits_per_dim,
    compare_priors,
)

COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])


def gaussians():
    """The law of the data, one with another mean, one that is too wide."""
    return {
        "wide": nd.Gaussian(np.zeros(2), 4 * COVARIANCE),
        "right": nd.Gaussian(np.zeros(2), COVARIANCE),
        "shifted": nd.Gaussian([0.4, 0.0], COVARIANCE),
    }


def draws(num, dimension=2, seed=0):
    white = np.random.default_rng(seed).normal(size=(num, dimension))
    return white if dimension != 2 else white @ np.linalg.cholesky(COVARIANCE).T


def test_a_comparison_knows_differences_better_than_densities():
    priors, data = gaussians(), draws(400)
    found = compare_priors(priors, data)
    precision = np.linalg.inv(COVARIANCE)
    shift = np.array([0.4, 0.0])
    # Divergences of Gaussians in closed form: what each is short of the right one.
    short = {"wide": np.log(4) + 0.25 - 1, "right": 0.0, "shifted": 0.5 * shift @ precision @ shift}
    right, logs = found.names.index("right"), []
    for i, name in enumerate(found.names):
        gap, error = found.difference[right, i], found.difference_error[right, i]
        assert abs(gap - short[name]) < 3.5 * error + 1e-12, name
        t = jnp.asarray(priors[name].t_min)
        exact = np.asarray(jax.vmap(lambda x, p=priors[name], t=t: p.log_density(x, t))(data))
        # A Gaussian is its own reference, so nothing is left to chance but the data.
        np.testing.assert_allclose(found.log_density[i], exact.mean(), atol=1e-5)
        np.testing.assert_allclose(found.standard_error[i], exact.std(ddof=1) / 20, rtol=1e-4)
        logs.append(exact)
    by_pairs = (logs[right] - np.stack(logs)).std(1, ddof=1) / 20
    np.testing.assert_allclose(found.difference_error[right], by_pairs, rtol=1e-4, atol=1e-9)
    # A ratio to the shifted one is linear in the data.
    deviation = short["shifted"] ** 0.5 * 2**0.5
    assert abs(found.difference_error[right, 2] / (deviation / 20) - 1) < 4 / 800**0.5
    assert found.difference_error[right, 2] < 0.7 * found.standard_error[right]
    assert str(found).splitlines()[1].split()[:2] == ["right", "0"]
    np.testing.assert_allclose(found.difference, -found.difference.T, atol=1e-12)
    assert (np.diag(found.difference_error) == 0).all() and found.noise_error.max() < 1e-6


@pytest.mark.long
def test_the_noise_is_shared_and_its_part_of_the_error_is_told():
    """The same mixture twice: no difference and no error. Another: less error than without pairing."""
    mixture, near = nd.GaussianMixture(), nd.GaussianMixture([0.4, 0.6])
    keys = jax.random.split(jax.random.key(0), 64)
    data = jax.vmap(lambda key: mixture.draw(key, jnp.asarray(0.0)))(keys)
    priors = {"mixture": mixture, "twin": nd.GaussianMixture(), "near": near}
    found = compare_priors(priors, data, jax.random.key(1), estimator=ScoreFormula())
    assert found.difference[0, 1] == found.difference_error[0, 1] == 0.0
    rule = ScoreFormula(GaussLegendre(24), GaussHermite(16))
    exact = compare_priors(priors, data, estimator=rule)
    assert exact.noise_error.max() == 0.0
    by_noise = found.log_density - exact.log_density
    assert np.all(np.abs(by_noise) < 3.5 * found.noise_error)
    assert 0 < found.noise_error[0] < found.standard_error[0]
    gap = found.difference[0, 2] - exact.difference[0, 2]
    assert abs(gap) < 0.5 * np.hypot(found.noise_error[0], found.noise_error[2])
    assert abs(found.spread[0, 2] - exact.spread[0, 2]) < 0.25 * exact.spread[0, 2]
    t = jnp.asarray(mixture.t_min)
    log_p = [
        np.asarray(jax.vmap(lambda x, p=p: p.log_density(x, t))(data)) for p in (mixture, near)
    ]
    assert abs(exact.difference[0, 2] - np.mean(log_p[0] - log_p[1])) < 1e-3


def test_a_normaliser_brings_its_error_along():
    energy = nd.EnergyFunction(lambda x, t: 0.5 * jnp.sum(x**2), 2)
    priors = {
        "known": energy.with_log_normalizer(1.8),
        "unsure": energy.with_log_normalizer(1.9, 0.3),
    }
    found = compare_priors(priors, draws(50), estimator=NormalizedEnergy())
    np.testing.assert_allclose(found.difference[0, 1], 0.1)
    np.testing.assert_allclose(found.difference_error[0, 1], 0.3)
    assert found.spread[0, 1] < 1e-10


def test_bits_of_data_on_a_grid():
    """The exact cost of the bins, its bound by noise in the bin, and the midpoint rule."""
    width, sd = 0.5, 0.8
    prior = nd.Gaussian([0.0], [[sd**2]])
    edges = np.arange(-12, 13) * width - width / 2
    mass = np.diff(norm.cdf(edges, scale=sd))
    centres = 0.5 * (edges[1:] + edges[:-1])
    exact = -(mass * np.log2(mass)).sum()
    log_p = lambda x: NormalizedEnergy()(prior, x[:, None])
    middle = bits_per_dim(log_p(centres), 1, width)
    assert abs((mass * middle.value).sum() - exact) < 0.02
    assert middle.value[12] < -np.log2(mass[12]) - 0.01  # of the middle bin: the rule is no bound
    places = (np.arange(64) + 0.5) / 64 * width - width / 2
    spread = (centres[:, None] + places).ravel()
    bound = bits_per_dim(log_p(spread), 1, width).value.reshape(-1, 64).mean(1)
    assert exact < (mass * bound).sum() < exact + 0.05
    assert np.all(bound > -np.log2(mass))
    # A flat density over k bins costs log2 k, in any dimension, and errors scale alike.
    flat = DensityEstimate(np.array([-3 * np.log(8 * width)]), np.array([0.3]), np.array([1]), "")
    value, error = bits_per_dim(flat, 3, width)
    np.testing.assert_allclose([value[0], error[0]], [3.0, 0.1 / np.log(2)])
    for wrong in ((0, 1.0), (1, 0.0), (1, -1.0)):
        with pytest.raises(ValueError, match="expects positive"):
            bits_per_dim(flat, *wrong)


def test_too_low_and_too_high_are_untypical():
    dimension = 50
    prior = nd.Gaussian(np.zeros(dimension), np.eye(dimension))
    reference = draws(300, dimension)
    x = np.stack([np.zeros(dimension), reference[0], np.full(dimension, 2.0)])
    estimator = NormalizedEnergy()
    found = anomaly_score(prior, x, reference, estimator=estimator)
    least = float(prior.schedule.noise_level(jnp.asarray(prior.t_min)))
    exact = 0.5 * (x**2).sum(1) / (1 + least**2) + 25 * np.log(2 * np.pi * (1 + least**2))
    np.testing.assert_allclose(found.score, exact, rtol=1e-9)
    # The mode is the most probable point, and no draw is like it.
    assert found.low_density[0] == 1.0 and found.typicality[0] == pytest.approx(2 / 301)
    assert found.low_density[2] == pytest.approx(1 / 301) == found.typicality[2] / 2
    assert found.typicality[1] > 0.02
    # The same reference, made once; a grid of points.
    known = estimator(prior, reference)
    again = anomaly_score(prior, x.reshape(3, 1, dimension), known, estimator=estimator)
    assert again.score.shape == (3, 1)
    np.testing.assert_array_equal(again.low_density[:, 0], found.low_density)
    assert abs(found.typical_score - 25 * np.log(2 * np.pi * np.e)) < 1.0


@pytest.mark.long
def test_ranks_are_p_values_for_a_wrong_prior_and_noisy_estimates_too():
    """By exchangeability: whatever the score says of a point, its rank among its like is uniform."""
    wrong = nd.GaussianMixture()
    reference, x = draws(400, seed=1), draws(400, seed=2)
    rough = ScoreFormula(noises=Mirrored(2))
    found = anomaly_score(wrong, x, reference, jax.random.key(3), estimator=rough)
    assert found.standard_error.mean() > 0.1
    for level in (0.1, 0.3, 0.5):
        # The reference is shared, so both samples count.
        error = np.sqrt(level * (1 - level) * 2 / 400)
        for p in (found.low_density, found.typicality):
            assert abs(np.mean(p <= level) - level) < 3.5 * error
    outside = anomaly_score(wrong, x + 3.0, reference, jax.random.key(3), estimator=rough)
    assert np.median(outside.typicality) < 0.02


def test_what_they_refuse():
    data = draws(10)
    with pytest.raises(ValueError, match="at least one"):
        compare_priors({}, data)
    with pytest.raises(TypeError, match="`compare_priors` expects a denoiser"):
        compare_priors({"no": lambda x: x}, data)
    with pytest.raises(ValueError, match="at least 2 finite examples of shape"):
        compare_priors({"b": nd.Gaussian(np.zeros(3), np.eye(3)), "a": nd.Gaussian()}, data)
    with pytest.raises(ValueError, match="expected at least one point"):
        anomaly_score(nd.Gaussian(), data, np.zeros((0, 2)))
    with pytest.raises(FloatingPointError, match="NaN"):
        bad = np.full((3, 2), np.nan)
        anomaly_score(nd.Gaussian(), data, bad, estimator=NormalizedEnergy())
