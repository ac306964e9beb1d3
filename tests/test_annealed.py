"""The annealed scheme hits closed-form evidences and posteriors with its default settings."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import Shifted, assert_near, assert_posterior, assert_unbiased, by_cloud, modes
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


@pytest.mark.long
@pytest.mark.parametrize("name", PROBLEMS)
def test_evidence_and_posterior_by_default(name):
    problem = PROBLEMS[name]
    exact, smc = problem.exact(), run(problem, seed=0)
    error = abs(smc.log_evidence - exact.log_evidence)
    assert error < 3 * smc.log_evidence_error
    assert error < 0.1
    assert_posterior(smc, problem, 0.05)
    shares = by_cloud(smc, lambda s: modes(problem, s["x"])).mean(0)
    assert 0.5 * np.abs(shares - exact.modes).sum() < 0.05


# One small model for many tests: it compiles once, for 200 clouds of 64 particles.
SMALL, SIZE = two_dimensional(), {"num_particles": 64, "num_chains": 200}
TRACES = []


def counted(operator, y):
    TRACES.append(1)
    SMALL.model(operator, y)


def run_small(data, seed: int) -> nd.SMC:
    smc = nd.SMC(counted, num_particles=64, num_chains=200, progress_bar=False)
    return smc.run(jax.random.key(seed), SMALL.operator, y=data)


@pytest.fixture(scope="module")
def small():
    return run_small(SMALL.data, 1)


def test_evidence_of_small_clouds_is_unbiased_and_its_error_honest(small):
    log_evidence = np.asarray(small.result.log_evidence)
    assert_unbiased(log_evidence, SMALL.exact().log_evidence)
    own = np.sqrt(np.mean(np.asarray(small.result.log_evidence_error) ** 2))
    assert 0.7 < own / log_evidence.std(ddof=1) < 1.5


def test_posterior_of_small_clouds(small):
    """A cloud counts by its evidence, which leaves no bias of order one over its size."""
    samples, weights = small.get_weighted_samples()
    exact, w = SMALL.exact(), np.asarray(weights)
    assert abs(w.sum() - 1) < 1e-9

    def assert_mean(values, expected):
        values, total = np.asarray(values), w.sum(1)
        mean = np.einsum("cn,cn...->...", w, values)
        residuals = np.einsum("cn,cn...->c...", w, values - mean)
        error = np.sqrt((residuals**2).sum(0))
        assert total.max() < 0.1
        assert np.all(error < 0.1)
        assert np.all(np.abs(mean - expected) < 4 * error)

    x = np.asarray(samples["x"])
    assert_mean(x, exact.mean)
    assert_mean((x - exact.mean) ** 2, exact.variance)
    assert_mean(modes(SMALL, x), exact.modes)
    assert_mean(samples["sigma"], exact.sigma_mean)
    assert_mean((samples["sigma"] - exact.sigma_mean) ** 2, exact.sigma_sd**2)


def test_new_data_and_keys_compile_nothing(small):
    data = SMALL.data + 0.7
    TRACES.clear()
    nd.from_model(counted, SMALL.operator, y=data)
    looks = len(TRACES)  # `from_model` looks at the sites of each new data set
    again = run_small(data, 2)
    assert len(TRACES) == 2 * looks
    assert_unbiased(again.result.log_evidence, SMALL._replace(data=data).exact().log_evidence)


@pytest.mark.parametrize("choice", ["grid", "reused", "other steps"])
def test_any_levels_are_unbiased(small, choice):
    """A grid, the levels of another run, and steps that nobody tuned."""
    if choice == "grid":
        scheme = nd.Annealed(levels=40, pilot=nd.schemes.Pilot(max_levels=10))
    else:
        levels = small.result.levels
        factor = {"reused": 1.0, "other steps": 0.3}[choice]
        levels = levels._replace(
            step_size=factor * levels.step_size, other_step_size=2 * factor * levels.other_step_size
        )
        scheme = nd.Annealed(levels=levels)
    TRACES.clear()
    model = scheme(small.bridge, jax.random.key(3))
    result = nd.run_smc(jax.random.key(4), model, **SIZE)
    assert len(TRACES) <= 1  # reused levels are held against the shapes of the sites
    if choice == "grid":
        np.testing.assert_allclose(
            model.levels.next_clock[:40], np.linspace(1, 0, 41)[1:], atol=1e-12
        )
        assert model.levels.clock.shape == (41,) and np.all(model.levels.power[1:] == 1)
    assert_unbiased(result.log_evidence, SMALL.exact().log_evidence)


def test_product_at_low_temperature_and_an_arbitrary_constant():
    """(e1 + e2) / 0.5 has its closed form; a constant moves the evidence by itself, all else not."""
    parts = [
        ((0.5, -1.0), ((1.0, 0.6), (0.6, 0.8))),
        ((-0.5, 0.3), ((0.5, -0.2), (-0.2, 1.5))),
    ]
    cold = (nd.Gaussian(*parts[0]) + nd.Gaussian(*parts[1])) / 0.5
    t = jnp.asarray(cold.t_min)
    alpha, sigma = (float(c) for c in cold.schedule(t))
    covariances = [alpha**2 * np.array(c) + sigma**2 * np.eye(2) for _, c in parts]
    means = [alpha * np.array(m) for m, _ in parts]
    precisions = [2 * np.linalg.inv(c) for c in covariances]
    precision = sum(precisions)
    mean = np.linalg.solve(precision, sum(p @ m for p, m in zip(precisions, means, strict=True)))
    log_truth = np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    for p, m, c in zip(precisions, means, covariances, strict=True):
        log_truth += -np.log((2 * np.pi) ** 2) - np.linalg.slogdet(c)[1]
        log_truth += -0.5 * (m - mean) @ p @ (m - mean)

    def solve(size):
        bridge = nd.from_energy(Shifted(cold, jnp.asarray(size)))
        return nd.run_smc(jax.random.key(1), nd.Annealed()(bridge), 250, num_chains=32)

    bare, shifted = solve(0.0), solve(1.0)
    assert_unbiased(bare.log_evidence, log_truth)
    x = np.einsum("cn,cni->ci", jax.nn.softmax(bare.log_weights, -1), bare.positions["x"])
    assert_near(x, mean / alpha, 0.0)
    assert np.all(x.std(0) < 0.1)

    # Trap: only the constant at t_min counts. To rounding, since not one decision changes.
    constant = 3 * np.sin(4 * cold.t_min) + 2 * cold.t_min - 1
    gap = np.asarray(shifted.log_evidence - bare.log_evidence)
    np.testing.assert_allclose(gap, -constant, atol=1e-6)
    np.testing.assert_allclose(shifted.positions["x"], bare.positions["x"], atol=1e-6)
    np.testing.assert_allclose(
        jax.nn.softmax(shifted.log_weights), jax.nn.softmax(bare.log_weights), atol=1e-6
    )


@pytest.mark.long
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
