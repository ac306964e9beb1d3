"""The annealed scheme hits closed-form evidences and posteriors with its default settings."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_form import Problem, ambiguous, eight_dimensional, two_dimensional

import numpyro_diffusion as nd

PROBLEMS = {
    "2-D sigma known": two_dimensional(sigma=0.3),
    "2-D sigma unknown": two_dimensional(),
    "2-D offset unknown": two_dimensional(sigma=0.3, offset_scale=0.7),
    "8-D sigma known": eight_dimensional(sigma=0.2),
    "8-D offset and sigma unknown": eight_dimensional(offset_scale=0.5),
    "8-D ambiguous": ambiguous(),
}


def run(problem: Problem, seed: int, num_particles: int = 1000, num_chains: int = 4) -> nd.SMC:
    smc = nd.SMC(
        problem.model, num_particles=num_particles, num_chains=num_chains, progress_bar=False
    )
    return smc.run(jax.random.key(seed), problem.operator, y=problem.data)


def by_cloud(smc: nd.SMC, function) -> np.ndarray:
    """Weighted mean of a function of the samples in each cloud, shape `(num_chains, ...)`."""
    samples, weights = smc.get_weighted_samples()
    weights = np.asarray(weights / weights.sum(1, keepdims=True))
    values = np.asarray(function({n: np.asarray(v) for n, v in samples.items()}))
    return np.einsum("cn,cn...->c...", weights, values)


def assert_near(clouds: np.ndarray, truth, floor) -> None:
    """The mean over clouds agrees with the truth within its own spread, or a share of the scale."""
    error = np.abs(clouds.mean(0) - truth)
    allowed = 4 * clouds.std(0, ddof=1) / len(clouds) ** 0.5 + floor
    assert (error < allowed).all(), f"errors {error} beyond {allowed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_evidence_and_posterior_by_default(name):
    problem = PROBLEMS[name]
    exact, smc = problem.exact(), run(problem, seed=0)
    error = abs(smc.log_evidence - exact.log_evidence)
    assert error < 3 * smc.log_evidence_error
    assert error < 0.1
    sd = np.sqrt(exact.variance)
    assert_near(by_cloud(smc, lambda s: s["x"]), exact.mean, 0.05 * sd)
    second = by_cloud(smc, lambda s: (s["x"] - exact.mean) ** 2)
    assert_near(second, exact.variance, 0.1 * exact.variance)
    number = len(problem.weights)
    modes = by_cloud(smc, lambda s: np.eye(number)[problem.component(s["x"])])
    assert 0.5 * np.abs(modes.mean(0) - exact.modes).sum() < 0.05
    if problem.sigma is None:
        assert_near(by_cloud(smc, lambda s: s["sigma"]), exact.sigma_mean, 0.05 * exact.sigma_sd)
    if problem.offset_scale:
        offsets = by_cloud(smc, lambda s: s["offset"])
        assert_near(offsets, exact.offset_mean, 0.05 * exact.offset_sd)


@pytest.fixture(scope="module")
def small():
    """The 2-D problem with unknown sigma, its bridge, and a tuned model."""
    problem = two_dimensional()
    bridge = nd.from_model(problem.model, problem.operator, y=problem.data)
    return problem, bridge, nd.Annealed()(bridge, jax.random.key(0))


def test_evidence_is_unbiased_and_its_error_honest(small):
    problem, _, model = small
    result = nd.run_smc(jax.random.key(1), model, 100, num_clouds=200)
    log_truth = problem.exact().log_evidence
    ratio = np.exp(np.asarray(result.log_evidence) - log_truth)
    standard_error = ratio.std(ddof=1) / len(ratio) ** 0.5
    assert abs(ratio.mean() - 1) < 3 * standard_error
    assert standard_error < 0.02
    stated = np.sqrt(np.mean(np.asarray(result.log_evidence_error) ** 2))
    assert 0.75 < stated / np.asarray(result.log_evidence).std(ddof=1) < 1.5


def test_new_data_and_keys_compile_nothing(small):
    problem, bridge, model = small
    nd.run_smc(jax.random.key(0), model, 100, num_clouds=200)
    traces = []

    def counted(operator, y):
        traces.append(1)
        problem.model(operator, y)

    def go(y, key):
        smc = nd.SMC(counted, num_particles=50, num_chains=2, progress_bar=False)
        smc.run(jax.random.key(key), problem.operator, y=jnp.asarray(y))

    go(problem.data, 0)
    first = len(traces)
    go(problem.data + 0.3, 1)
    # `from_model` looks at the sites of each new model once or twice; no sampler is traced again.
    assert len(traces) - first <= 6 < first


def test_grid_of_levels_and_frozen_levels(small):
    problem, bridge, model = small
    truth = problem.exact().log_evidence
    grid = nd.Annealed(levels=30)(bridge, jax.random.key(3))
    assert len(grid.levels.clock) == 31
    for chosen in (grid, nd.Annealed(levels=model.levels)(bridge)):
        result = nd.run_smc(jax.random.key(4), chosen, 500, num_clouds=8)
        clouds = np.asarray(result.log_evidence)
        assert abs(clouds.mean() - truth) < 4 * clouds.std(ddof=1) / 8**0.5 + 0.01


def test_product_of_gaussians_and_a_constant():
    first = nd.Gaussian((0.5, -1.0), ((1.0, 0.6), (0.6, 0.8)))
    second = nd.Gaussian((-0.5, 0.3), ((0.5, -0.2), (-0.2, 1.5)))
    cold = (first + second) / 0.5
    t = jnp.asarray(cold.t_min)
    alpha, sigma = (float(c) for c in cold.schedule(t))
    # log of the integral of N1^2 N2^2 by Gaussian algebra, at the noise of t_min
    covariances = [
        alpha**2 * np.array(c) + sigma**2 * np.eye(2)
        for c in (((1.0, 0.6), (0.6, 0.8)), ((0.5, -0.2), (-0.2, 1.5)))
    ]
    means = [alpha * np.array(m) for m in ((0.5, -1.0), (-0.5, 0.3))]
    precisions = [2 * np.linalg.inv(c) for c in covariances]
    precision = sum(precisions)
    mean = np.linalg.solve(precision, sum(p @ m for p, m in zip(precisions, means, strict=True)))
    log_truth = np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    for p, m, c in zip(precisions, means, covariances, strict=True):
        log_truth += -np.log((2 * np.pi) ** 2) - np.linalg.slogdet(c)[1]
        log_truth += -0.5 * (m - mean) @ p @ (m - mean)

    def solve(energy):
        model = nd.Annealed()(nd.from_energy(energy), jax.random.key(0))
        return nd.run_smc(jax.random.key(1), model, 500, num_clouds=8)

    result = solve(cold)
    clouds = np.asarray(result.log_evidence)
    assert abs(clouds.mean() - log_truth) < 4 * clouds.std(ddof=1) / 8**0.5 + 0.005
    weights = jax.nn.softmax(result.log_weights, -1)
    found = np.einsum("cn,cni->i", weights, result.positions["x"]) / 8
    assert np.allclose(found, mean / alpha, atol=0.05)

    def shifted_energy(x, t):
        return first.energy(x, t) + 3 * jnp.sin(4 * t) + 2 * t - 1

    shifted = nd.EnergyFunction(
        shifted_energy,
        shape=(2,),
        schedule=first.schedule,
        t_min=first.t_min,
        t_max=first.t_max,
        mean=np.zeros(2),
        variance=np.ones(2),
    )
    expected = -float(3 * np.sin(4 * first.t_min) + 2 * first.t_min - 1)
    clouds = np.asarray(solve(shifted).log_evidence)
    assert abs(clouds.mean() - expected) < 4 * clouds.std(ddof=1) / 8**0.5 + 0.005


@pytest.mark.slow
def test_a_model_without_diffusion_agrees_with_blackjax():
    y = jnp.array([0.9, 1.4, -0.3, 2.2])

    def model(y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.StudentT(3.0, mean * jnp.ones(4), sigma).to_event(1), obs=y)

    smc = nd.SMC(model, num_particles=1000, num_chains=4, progress_bar=False)
    smc.run(jax.random.key(0), y=y)

    def log_prior(z):
        normal = jax.scipy.stats.norm.logpdf
        return normal(z["mean"], 0.0, 2.0) + normal(z["sigma"], 0.0, 0.5)

    def log_likelihood(z):
        return jnp.sum(jax.scipy.stats.t.logpdf(y, 3.0, z["mean"], jnp.exp(z["sigma"])))

    algorithm = blackjax.tempered_smc(
        log_prior,
        log_likelihood,
        blackjax.mala.build_kernel(),
        blackjax.mala.init,
        {"step_size": jnp.array([0.1])},
        blackjax.smc.resampling.systematic,
        num_mcmc_steps=10,
    )
    keys = jax.random.split(jax.random.key(1), 2)
    state = algorithm.init(
        {
            "mean": 2 * jax.random.normal(keys[0], (8000,)),
            "sigma": 0.5 * jax.random.normal(keys[1], (8000,)),
        }
    )
    step, log_evidence = jax.jit(algorithm.step), 0.0
    for i, power in enumerate(np.linspace(0.1, 1, 10)):
        state, info = step(jax.random.key(10 + i), state, power)
        log_evidence += float(info.log_likelihood_increment)
    assert abs(smc.log_evidence - log_evidence) < 3 * smc.log_evidence_error + 0.03
    for name, mapped in (("mean", lambda z: z), ("sigma", jnp.exp)):
        peer = float(jnp.sum(state.weights * mapped(state.particles[name])))
        assert_near(by_cloud(smc, lambda s, name=name: s[name]), peer, 0.03)
