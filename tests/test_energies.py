"""Closed-form energies against direct formulas, and the algebra of energies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import (
    denoised_at,
    draws_at,
    energy_at,
    kernel_of,
    log_densities_at,
    log_density_at,
    moments_at,
    score_at,
    time_of,
)
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from numpyro_diffusion import EnergyFunction, Gaussian, GaussianMixture
from numpyro_diffusion.energies import Box, Composed, InnerProductEnergy, Mixture
from numpyro_diffusion.schedules import Cosine, VarianceExploding, VariancePreserving

# Asymmetric, anisotropic and correlated, in three dimensions: no symmetry hides a transposition.
WEIGHTS = np.array([0.15, 0.55, 0.3])
MEANS = np.array([[-2.0, 0.5, 1.0], [1.0, -0.5, 0.3], [3.0, 2.0, -2.0]])
FACTORS = np.array(
    [
        [[0.7, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.1, 0.9]],
        [[0.4, 0.0, 0.0], [-0.3, 1.1, 0.0], [0.5, 0.2, 0.3]],
        [[1.2, 0.0, 0.0], [0.6, 0.2, 0.0], [0.1, -0.4, 0.6]],
    ]
)
COVARIANCES = FACTORS @ FACTORS.transpose(0, 2, 1)
SCHEDULES = [VariancePreserving(), VarianceExploding(), Cosine()]
X = np.array([0.8, -1.7, 0.4])


def mixture(schedule=None, **options):
    return GaussianMixture(WEIGHTS, MEANS, COVARIANCES, schedule, **options)


def gaussian(schedule=None, **options):
    return Gaussian(MEANS[0], COVARIANCES[0], schedule, **options)


def noised_components(schedule, t):
    """Weights, means and covariances of the noised mixture, written down directly."""
    alpha_t, sigma_t = (float(v) for v in kernel_of(schedule, t))
    return WEIGHTS, alpha_t * MEANS, alpha_t**2 * COVARIANCES + sigma_t**2 * np.eye(3)


def direct_log_density(weights, means, covariances, x):
    log_p = [
        np.log(w) + multivariate_normal.logpdf(x, m, S)
        for w, m, S in zip(weights, means, covariances, strict=True)
    ]
    return logsumexp(log_p)


each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
each_level = pytest.mark.parametrize("log_snr", [9.0, 1.0, -4.0])


@each_schedule
@each_level
def test_mixture_is_its_noised_density(schedule, log_snr):
    t = time_of(schedule, jnp.asarray(log_snr))
    expected = direct_log_density(*noised_components(schedule, t), X)
    np.testing.assert_allclose(-energy_at(mixture(schedule), X, t), expected, rtol=1e-10)


@each_schedule
@each_level
def test_gaussian_is_its_noised_density(schedule, log_snr):
    t = time_of(schedule, jnp.asarray(log_snr))
    _, means, covariances = noised_components(schedule, t)
    expected = multivariate_normal.logpdf(X, means[0], covariances[0])
    np.testing.assert_allclose(-energy_at(gaussian(schedule), X, t), expected, rtol=1e-10)


@each_schedule
@each_level
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_score_is_the_slope_of_the_density(schedule, log_snr, make):
    energy, t, h = make(schedule), time_of(schedule, jnp.asarray(log_snr)), 1e-5
    below, above = ([energy_at(energy, X + s * e, t) for e in np.eye(3)] for s in (-h, h))
    slope = (np.array(below) - np.array(above)) / (2 * h)
    np.testing.assert_allclose(score_at(energy, X, t), slope, rtol=1e-6, atol=1e-8)


@each_schedule
@each_level
def test_denoiser_is_the_posterior_mean_of_the_mixture(schedule, log_snr):
    """E[x_0 | x_t] component by component: Bayes' rule, no score and no Tweedie."""
    t = time_of(schedule, jnp.asarray(log_snr))
    alpha_t, _ = (float(v) for v in kernel_of(schedule, t))
    weights, means, covariances = noised_components(schedule, t)
    log_p = [
        np.log(w) + float(multivariate_normal.logpdf(X, m, S))
        for w, m, S in zip(weights, means, covariances, strict=True)
    ]
    responsibilities = np.exp(log_p - np.logaddexp.reduce(log_p))
    conditional = [
        MEANS[k] + alpha_t * COVARIANCES[k] @ np.linalg.solve(covariances[k], X - means[k])
        for k in range(3)
    ]
    expected = responsibilities @ np.array(conditional)
    np.testing.assert_allclose(denoised_at(mixture(schedule), X, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("energy", [Gaussian(), GaussianMixture()], ids=["one", "mixture"])
def test_log_density_is_normalised_in_the_units_of_the_data(energy):
    t = jnp.asarray(0.4)
    axis = np.linspace(-25, 25, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.sum(np.exp(log_densities_at(energy, grid, t)))
    np.testing.assert_allclose(total * (axis[1] - axis[0]) ** 2, 1.0, rtol=1e-9)


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_log_density_is_the_energy_with_its_jacobian(make):
    energy, t = make(), jnp.asarray(0.3)
    alpha_t = float(kernel_of(energy.schedule, t)[0])
    both = eqx.filter_jit(
        lambda e, u, t: (e.log_density_and_score(u, t), jax.grad(e.log_density)(u, t))
    )
    (log_density, score), gradient = both(energy, X, t)
    expected = -energy_at(energy, alpha_t * X, t) + 3 * np.log(alpha_t)
    np.testing.assert_allclose(log_density, expected, rtol=1e-12)
    np.testing.assert_allclose(score, gradient, rtol=1e-12)
    assert jax.jit(energy.potential_fn(0.3))(X) == jax.jit(lambda x: energy.energy(x, t))(X)


def test_known_log_normalizer_makes_a_density_of_an_energy():
    t, exact = jnp.asarray(0.3), gaussian()
    raw = lambda x, t: exact.energy(x, t) + 2.5  # the integral of exp(-E) is exp(-2.5)
    unknown = EnergyFunction(raw, 3)
    known = EnergyFunction(raw, 3, log_normalizer=-2.5)
    expected = log_density_at(exact, X, t)
    np.testing.assert_allclose(log_density_at(unknown, X, t), expected - 2.5, rtol=1e-12)
    np.testing.assert_allclose(log_density_at(known, X, t), expected, rtol=1e-12)


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_draws_have_the_moments_of_the_noised_law(make, t, key):
    energy, num, t = make(), 40_000, jnp.asarray(t)
    draws = np.asarray(draws_at(energy, jax.random.split(key, num), t))
    weights, means, covariances = noised_components(energy.schedule, t)
    if make is gaussian:
        weights, means, covariances = np.ones(1), means[:1], covariances[:1]
    mean = weights @ means
    spread = means - mean
    covariance = np.einsum(
        "k,kij->ij", weights, covariances + spread[:, :, None] * spread[:, None, :]
    )
    error = np.std(draws, 0) / np.sqrt(num)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * error)
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    error = np.std(products, 0) / np.sqrt(num)
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * error)
    # `moments` of a closed form are those of the law.
    for got, expected in zip(moments_at(energy, t), (mean, np.diag(covariance)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_mixture_draws_choose_components_by_weight(key):
    energy = GaussianMixture([0.75, 0.25], [[-40.0], [40.0]], [[[1.0]], [[4.0]]])
    draws = draws_at(energy, jax.random.split(key, 20_000), jnp.asarray(0.0))
    share = np.mean(np.asarray(draws) < 0)
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 20_000)


def test_operators_are_sums_of_energies():
    e1, e2, t = gaussian(), mixture(), jnp.asarray(0.2)
    E1, E2 = energy_at(e1, X, t), energy_at(e2, X, t)
    cases = {
        "sum": (e1 + e2, E1 + E2),
        "tempered": (e1 / 0.5, 2 * E1),
        "power": (0.3 * e2, 0.3 * E2),
        "right power": (e2 * 0.3, 0.3 * E2),
        "ratio": (e1 - 0.3 * e2, E1 - 0.3 * E2),
        "nested": ((e1 + 0.5 * e2) / 2 + e2, 0.5 * E1 + 1.25 * E2),
    }
    energies = eqx.filter_jit(lambda energies: [e.energy(jnp.asarray(X), t) for e in energies])
    values = energies([composed for composed, _ in cases.values()])
    for value, (name, (composed, expected)) in zip(values, cases.items(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
        assert all(not isinstance(part, Composed) for part in composed.energies), name
    both = score_at(e1, X, t) + score_at(e2, X, t)
    np.testing.assert_allclose(score_at(e1 + e2, X, t), both, rtol=1e-12)
    assert (e1 + e2).log_normalizer is None
    assert (e1 + e2).draw(jax.random.key(0), t) is None


def test_moments_of_a_product_of_gaussians_are_its_moments():
    """Diagonal Gaussians: the product is a Gaussian whose precisions add."""
    e1 = Gaussian([1.0, -2.0], np.diag([0.5, 3.0]))
    e2 = Gaussian([0.0, 4.0], np.diag([2.0, 0.2]))
    t = jnp.asarray(0.25)
    (m1, v1), (m2, v2) = (map(np.asarray, moments_at(e, t)) for e in (e1, e2))
    precision = 1 / v1 + 0.4 / v2
    mean, variance = moments_at(e1 + 0.4 * e2, t)
    np.testing.assert_allclose(variance, 1 / precision, rtol=1e-12)
    np.testing.assert_allclose(mean, (m1 / v1 + 0.4 * m2 / v2) / precision, rtol=1e-12)


def test_composed_horizon_is_where_all_parts_are_trusted():
    composed = gaussian(t_min=0.01, t_max=0.9) + mixture(t_min=0.002, t_max=0.8)
    assert (composed.t_min, composed.t_max) == (0.01, 0.8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian() + Gaussian(), r"share one shape; got \(3,\) and \(2,\)"),
        (lambda: gaussian() + mixture(Cosine()), "share one schedule"),
        (lambda: -gaussian(), "cannot be normalised"),
        (lambda: gaussian() - 2.0 * mixture(), "no positive precision at t_max"),
        (lambda: Composed((), ()), "at least one energy"),
        (lambda: Composed((gaussian(),), (1.0, 2.0)), "1 energies and 2 powers"),
    ],
)
def test_impossible_compositions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(np.zeros((2, 2))), "must be a vector"),
        (lambda: Gaussian([0.0, 0.0], np.eye(3)), r"got\s+\(3, 3\)"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.2, 1.0]]), "must be symmetric"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: GaussianMixture([0.5, 0.5], np.zeros((3, 2))), r"got \(2,\) and \(3, 2\)"),
        (lambda: GaussianMixture([1.0, -1.0]), "non-negative"),
        (lambda: GaussianMixture([0.4, 0.4]), r"must sum to 1; got \[0.4, 0.4\], of sum 0.8\. If"),
        (lambda: GaussianMixture([1e308, 1.5e308]), "of sum inf. .* divide them by their sum"),
        (lambda: Mixture([gaussian(), mixture()], [3, 1]), r"must sum to 1; got \[3.0, 1.0\]"),
        (lambda: GaussianMixture([1.0], [[0.0, 0.0]]), "must hold 1 matrices"),
        (lambda: Gaussian([np.nan, 0.0]), "`mean` must be finite; 1 of its 2 numbers"),
        (lambda: Gaussian(covariance=np.diag([1.0, np.inf])), "`covariance` must be finite"),
        (lambda: Gaussian([]), "must be a vector"),
        (lambda: Gaussian(covariance=np.eye(2)[None]), "must be one matrix"),
        (lambda: GaussianMixture([np.nan, 0.5]), "`weights` must be finite"),
        (lambda: GaussianMixture(means=[[0.0, np.inf], [0.0, 0.0]]), "`means` must be finite"),
        (lambda: GaussianMixture(covariances=np.eye(2)), "must hold 2 matrices"),
        (
            lambda: Gaussian(t_min=np.nan),
            "`Gaussian` expects plain numbers 0 <= t_min < t_max <= 1",
        ),
        (lambda: Gaussian(t_max=2.0), "got .* and 2.0"),
        (lambda: Gaussian(t_min="0"), "got '0'"),
        (lambda: InnerProductEnergy(None, [np.nan, 0.0]), "`mean` must be finite"),
        (lambda: InnerProductEnergy(log_normalizer=np.nan), "`log_normalizer` .* got nan"),
        (lambda: InnerProductEnergy(log_normalizer="0"), "`log_normalizer` .* got '0'"),
        (
            lambda: InnerProductEnergy(log_normalizer=0.0, log_normalizer_error=-1.0),
            "`log_normalizer_error` .* not negative",
        ),
    ],
)
def test_impossible_gaussians_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weights", [[0.333, 0.667], [0.334, 0.667], np.float32([0.3, 0.7])])
def test_weights_are_probabilities_to_rounding(weights):
    exact = np.asarray(weights, float) / np.sum(np.asarray(weights, float))
    np.testing.assert_allclose(GaussianMixture(weights).weights, exact, rtol=1e-12)
    parts = Mixture([gaussian(), mixture()], weights)
    np.testing.assert_allclose(parts.weights, exact, rtol=1e-12)


def test_traced_weights_are_normalised():
    large = jax.jit(lambda w: GaussianMixture(w).weights)(jnp.asarray([2.0, 3.0]))
    np.testing.assert_allclose(large, [0.4, 0.6], rtol=1e-12)


def test_numbers_beyond_the_precision_are_refused(float32):
    with pytest.raises(ValueError, match="`mean` must be finite"):
        Gaussian([1e300, 0.0])
    with pytest.raises(ValueError, match="positive definite"):
        Gaussian([0.0, 0.0], 1e-60 * np.eye(2))


def test_traced_means_and_weights_are_parameters_like_any_others():
    t = 0.2
    single = lambda mean: Gaussian(mean, COVARIANCES[0]).energy(X, t)
    several = lambda weights, means: GaussianMixture(weights, means, COVARIANCES).energy(X, t)
    np.testing.assert_allclose(jax.jit(single)(MEANS[0]), single(MEANS[0]))
    np.testing.assert_allclose(jax.jit(several)(WEIGHTS, MEANS), several(WEIGHTS, MEANS))
    alpha_t, _ = VariancePreserving()(jnp.asarray(t))
    # The energy falls as the mean comes nearer, by the score.
    expected = alpha_t * Gaussian(MEANS[0], COVARIANCES[0]).score(X, jnp.asarray(t))
    np.testing.assert_allclose(jax.grad(single)(jnp.asarray(MEANS[0])), expected)
    assert jnp.isnan(jax.jit(several)(-WEIGHTS, MEANS))  # not a plausible number


def test_traced_covariances_and_shares_are_parameters_too():
    t = jnp.asarray(0.2)
    # Equal eigenvalues, at which eigenvectors have no derivative.
    single = lambda v: Gaussian(MEANS[0], v * np.eye(3)).log_density(X, t)
    several = lambda v: GaussianMixture(WEIGHTS, MEANS, v * COVARIANCES).log_density(X, t)
    shared = lambda w: Mixture([gaussian(), mixture()], jnp.stack([w, 1 - w])).log_density(X, t)
    for law, value in ((single, 1.3), (several, 1.3), (shared, 0.2)):
        np.testing.assert_allclose(jax.jit(law)(value), law(np.asarray(value)), rtol=1e-10)
        step = 1e-5
        slope = (law(np.asarray(value + step)) - law(np.asarray(value - step))) / (2 * step)
        np.testing.assert_allclose(jax.grad(law)(value), slope, rtol=1e-5)
        assert jnp.isnan(jax.jit(law)(-value))
    alpha_t, sigma_t = VariancePreserving()(t)
    key = jax.random.key(0)
    drawn = jax.jit(lambda v: Gaussian(MEANS[0], v * COVARIANCES[0]).draw(key, t))(1.3)
    white = jax.random.normal(key, (3,))
    root = np.linalg.cholesky(1.3 * alpha_t**2 * COVARIANCES[0] + sigma_t**2 * np.eye(3))
    np.testing.assert_allclose(drawn, alpha_t * MEANS[0] + root @ white)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: Box([0.0], v[None]), "high"),
        (lambda v: EnergyFunction(lambda x, t: x @ x, shape=(2,), mean=v), "mean"),
        (lambda v: InnerProductEnergy(covariance=v * np.eye(2)), "covariance"),
    ],
)
def test_traced_values_that_must_be_known_are_refused_by_name(make, name):
    with pytest.raises(TypeError, match=f"`{name}` of an energy must be known.*mu \\+ scale"):
        jax.jit(lambda v: make(v).energy(jnp.zeros(2), 0.2))(1.0)
