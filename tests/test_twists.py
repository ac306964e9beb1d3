"""Twists that know how far the denoised mean may be off: their likelihoods against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_unbiased
from closed_form import two_dimensional
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import combine
from numpyro_diffusion.bridge.widening import widened

MEAN, COVARIANCE = np.array([0.5, -1.0, 0.3]), np.diag([1.0, 0.4, 2.0]) + 0.3
OPERATOR = np.array([[1.0, 0.4, -0.3], [0.2, -1.1, 0.6]])
DATA, SIGMA = np.array([1.5, 0.7]), 0.2
PRIOR = nd.Gaussian(MEAN, COVARIANCE)
U = np.array([0.9, -0.4, 1.3])


def softened(bridge, z, clock) -> float:
    """What the likelihood has become at a clock."""
    clock = jnp.asarray(clock)
    seen = bridge.see(z, clock)
    rest = bridge.rest(z, seen.x_hat)
    both, _ = combine(bridge, z, clock, jnp.ones(()), seen, rest)
    return float(both - seen.log_density - rest.log_prior)


def linear(twist):
    log_likelihood = lambda x: jnp.sum(
        jax.scipy.stats.norm.logpdf(jnp.asarray(DATA), jnp.asarray(OPERATOR) @ x, SIGMA)
    )
    return nd.from_energy(PRIOR, log_likelihood, twist=twist)


def noise(clock, prior=PRIOR) -> float:
    bridge = nd.from_energy(prior)
    return float(bridge.noise(jnp.asarray(clock))["x"] ** 2 - bridge.noise(jnp.zeros(()))["x"] ** 2)


@pytest.mark.parametrize("clock", [0.2, 0.5, 0.8])
def test_moments_are_exact_for_gaussian_priors(clock):
    """The path is then the noised posterior itself: p(y | u_t) in closed form."""
    floor = float(nd.from_energy(PRIOR).noise(jnp.zeros(()))["x"]) ** 2
    prior = COVARIANCE + floor * np.eye(3)
    gain = prior @ np.linalg.inv(prior + noise(clock) * np.eye(3))
    mean, open_ = MEAN + gain @ (U - MEAN), prior - gain @ prior
    total = OPERATOR @ open_ @ OPERATOR.T + SIGMA**2 * np.eye(2)
    expected = multivariate_normal.logpdf(DATA, OPERATOR @ mean, total)
    value = softened(linear(nd.twists.Moments()), {"x": jnp.asarray(U)}, clock)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_widened_likelihood_of_linear_data(scale):
    clock = 0.4
    bridge = linear(nd.Widened(scale))
    x_hat = np.asarray(bridge.see({"x": jnp.asarray(U)}, jnp.asarray(clock)).x_hat["x"])
    tau = noise(clock)
    alpha, _ = PRIOR.schedule(jnp.asarray(PRIOR.t_min))
    d = np.asarray(PRIOR.moments(jnp.asarray(PRIOR.t_min))[1] / alpha**2)
    r = scale**2 * tau * d / (tau + d)
    total = (OPERATOR * r) @ OPERATOR.T + SIGMA**2 * np.eye(2)
    expected = multivariate_normal.logpdf(DATA, OPERATOR @ x_hat, total)
    np.testing.assert_allclose(softened(bridge, {"x": jnp.asarray(U)}, clock), expected, rtol=1e-8)


@pytest.mark.parametrize("clock", [0.3, 0.6, 0.9])
def test_sharp_data_that_do_not_fit_lose_no_digits(float32, optimized, clock):
    """A thousandfold of 32-bit rounding once: two terms of a million, whose difference is the value."""
    sigma, far = 1e-3, DATA + np.array([30.0, -20.0])
    operator = jnp.asarray(OPERATOR, jnp.float32)
    log_likelihood = lambda x: jnp.sum(
        jax.scipy.stats.norm.logpdf(jnp.asarray(far, jnp.float32), operator @ x, sigma)
    )
    prior = nd.Gaussian(MEAN.astype(np.float32), COVARIANCE.astype(np.float32))
    bridge = nd.from_energy(prior, log_likelihood, twist=nd.Widened())
    z = {"x": jnp.asarray(U, jnp.float32)}
    seen = bridge.see(z, jnp.asarray(clock))
    x_hat, root = (np.asarray(part["x"], float) for part in (seen.x_hat, seen.roots))
    total = (OPERATOR * root**2) @ OPERATOR.T + sigma**2 * np.eye(2)
    expected = multivariate_normal.logpdf(far, OPERATOR @ x_hat, total)
    np.testing.assert_allclose(softened(bridge, z, clock), expected, rtol=2e-3)


def test_a_step_that_overshoots_is_not_taken():
    """Counts with a log link: from far below, Newton's method jumps to a rate beyond all bounds."""
    log_likelihood = lambda x: jnp.sum(8.0 * x - jnp.exp(x))
    bridge = nd.from_energy(PRIOR, log_likelihood, twist=nd.Widened())
    z, clock = {"x": jnp.asarray([-9.0, -9.0, -9.0])}, jnp.asarray(0.5)
    seen = bridge.see(z, clock)
    x_hat, root = seen.x_hat["x"], seen.roots["x"]
    value = softened(bridge, z, clock)
    assert log_likelihood(x_hat) - 0.5 * jnp.sum(jnp.log1p(root**2 * jnp.exp(x_hat))) <= value
    assert value < 3 * (8 * np.log(8) - 8)  # an average is no larger than the largest
    gradient = jax.grad(lambda z: nd.bridge.log_density(bridge, z, clock, 1.0)[0])(z)
    assert np.all(np.isfinite(gradient["x"]))


def test_a_step_out_of_the_support_leaves_a_gradient():
    """A likelihood without a value where Newton's method leads: that of the start counts, with its slope."""
    log_likelihood = lambda x: jnp.sum(jnp.log(1.0 - x) + 30.0 * x)
    bridge = nd.from_energy(PRIOR, twist=nd.Widened())
    z, clock = {"x": jnp.asarray([-0.5, -2.0, -0.4])}, jnp.asarray(0.5)
    seen = bridge.see(z, clock)
    value = lambda x_hat: widened(
        lambda x: log_likelihood(x["x"]), x_hat, seen.roots, jnp.asarray(-jnp.inf)
    )
    x_hat, root = seen.x_hat["x"], seen.roots["x"]
    bend = root**2 / (1 - x_hat) ** 2
    far = x_hat + root**2 * (30.0 - 1 / (1 - x_hat)) / (1 + bend)
    assert np.any(far > 1) and np.isnan(log_likelihood(far))
    expected = log_likelihood(x_hat) - 0.5 * jnp.sum(jnp.log1p(bend))
    np.testing.assert_allclose(value(seen.x_hat), expected, rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(value)(seen.x_hat)["x"]))


@pytest.mark.parametrize("twist", [nd.Widened(), nd.twists.Moments()], ids=["widened", "moments"])
def test_several_sites_and_a_plate(twist):
    """Blocks of the covariance meet the right coordinates: the joint is a Gaussian in closed form."""
    first, second = PRIOR, nd.Gaussian([0.2, 0.9], [[0.7, 0.3], [0.3, 1.1]])
    weights = np.array([[0.5, -1.0], [1.2, 0.3]])

    def model(y):
        b = numpyro.sample("b", nd.DiffusionPrior(first))
        with numpyro.plate("cases", 2):
            a = numpyro.sample("a", nd.DiffusionPrior(second))
        mean = jnp.asarray(OPERATOR) @ b + jnp.sum(jnp.asarray(weights) * a, -1)
        numpyro.sample("y", dist.Normal(mean, SIGMA).to_event(1), obs=y)

    bridge, clock = nd.from_model(model, jnp.asarray(DATA), twist=twist), 0.45
    z = {"b": jnp.asarray(U), "a": jnp.array([[0.1, 1.4], [-0.6, 0.2]])}
    seen = bridge.see(z, jnp.asarray(clock))
    mean = OPERATOR @ np.asarray(seen.x_hat["b"]) + (weights * np.asarray(seen.x_hat["a"])).sum(-1)
    matrix = lambda root: np.diag(root) if np.ndim(root) == 1 else np.asarray(root)
    open_b = matrix(seen.roots["b"]) @ matrix(seen.roots["b"])
    total = OPERATOR @ open_b @ OPERATOR.T + SIGMA**2 * np.eye(2)
    for i in range(2):
        root = matrix(seen.roots["a"][i])
        total[i, i] += weights[i] @ root @ root @ weights[i]
    expected = multivariate_normal.logpdf(DATA, mean, total)
    np.testing.assert_allclose(softened(bridge, z, clock), expected, rtol=1e-8)


@pytest.mark.parametrize("twist", [nd.Widened(), nd.twists.Moments()], ids=["widened", "moments"])
def test_nothing_is_widened_at_the_clean_end(twist):
    value = softened(linear(twist), {"x": jnp.asarray(U)}, 0.0)
    expected = multivariate_normal.logpdf(DATA, OPERATOR @ U, SIGMA**2 * np.eye(2))
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_a_likelihood_that_bends_upwards_is_tempered_instead():
    """Between two far explanations the second derivative is positive: no average exists there."""
    log_likelihood = lambda x: jnp.logaddexp(-8 * (x[0] - 2) ** 2, -8 * (x[0] + 2) ** 2)
    widened = nd.from_energy(PRIOR, log_likelihood, twist=nd.Widened())
    tempered = nd.from_energy(PRIOR, log_likelihood)
    z = {"x": jnp.array([0.0, -1.0, 0.3])}
    clock = next(c for c in np.linspace(0.3, 0.9, 61) if abs(seen_x(tempered, z, c)) < 0.05)
    assert softened(widened, z, clock) == softened(tempered, z, clock)
    gradient = jax.grad(lambda z: nd.bridge.log_density(widened, z, clock, 1.0)[0])(z)
    assert np.all(np.isfinite(gradient["x"]))


def seen_x(bridge, z, clock) -> float:
    return float(bridge.see(z, jnp.asarray(clock)).x_hat["x"][0])


def test_moments_and_full_covariances_leave_no_variance_for_gaussian_priors():
    """Path and draws are then exact: a dozen levels without moves give the evidence itself."""
    scheme = nd.ReverseDiffusion(levels=12, covariance=nd.schemes.Full(), moves=0)
    model = scheme(linear(nd.twists.Moments()), jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, 100, num_chains=4)
    floor = float(nd.from_energy(PRIOR).noise(jnp.zeros(()))["x"]) ** 2
    total = OPERATOR @ (COVARIANCE + floor * np.eye(3)) @ OPERATOR.T + SIGMA**2 * np.eye(2)
    truth = multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, total)
    np.testing.assert_allclose(result.log_evidence, truth, atol=0.01)
    assert np.all(result.trace.conditional_ess > 0.99)


@pytest.mark.long
@pytest.mark.parametrize("twist", [nd.Widened(), nd.twists.Moments()], ids=["widened", "moments"])
def test_evidence_with_an_unknown_noise_level(twist):
    problem = two_dimensional()
    smc = nd.SMC(
        problem.model,
        nd.ReverseDiffusion(),
        twist=twist,
        num_particles=64,
        num_chains=150,
        progress_bar=False,
    )
    smc.run(jax.random.key(0), problem.operator, y=problem.data)
    assert_unbiased(smc.result.log_evidence, problem.exact().log_evidence)


def test_what_is_refused():
    with pytest.raises(ValueError, match="must be positive; got 0"):
        nd.Widened(0.0)
