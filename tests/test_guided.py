"""Steps of the sampler that is the prior: its law, draws given data, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_unbiased
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.schemes import Diagonal, Full, Isotropic
from numpyro_diffusion.schemes.conjugate import Conjugate
from numpyro_diffusion.schemes.guided import Guided, sampler_curvature
from numpyro_diffusion.schemes.kernels import Kernels
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.schemes.proposals import Step

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.7], [0.7, 0.8]])
OPERATOR, DATA, SIGMA = np.array([[1.0, 0.4]]), np.array([1.5]), 0.4
PRIOR = nd.Gaussian(MEAN, COVARIANCE)


def log_likelihood(x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(DATA, jnp.asarray(OPERATOR) @ x, SIGMA))


def bridge_to_data(twist):
    return nd.from_energy(PRIOR, log_likelihood, twist=twist, bridge_type=nd.bridge.PathBridge)


def guided(bridge, covariance, num_steps, inflation=1.0):
    clocks = jnp.linspace(1.0, 0.0, num_steps + 1)
    return Guided(clocks[:-1], sampler_curvature(bridge, clocks, 256, covariance), inflation)


def rows(num_steps):
    clocks = jnp.linspace(1.0, 0.0, num_steps + 1)
    levels = Level.by_hand(clocks, jnp.ones(num_steps + 1), {"x": jnp.ones((num_steps + 1, 2))})
    return [jax.tree.map(lambda leaf, k=k: leaf[k], levels) for k in range(num_steps)]


@pytest.mark.parametrize(
    ("covariance", "least", "most"),
    [(Full(), 0.0, 1e-3), (Diagonal(), 0.1, 3.0), (Isotropic(), 0.1, 3.0)],
    ids=["full", "diagonal", "isotropic"],
)
def test_the_law_of_three_steps(covariance, least, most):
    """Affine steps, so that mean and covariance follow; a full matrix makes them those of the prior."""
    bridge = bridge_to_data(nd.Tweedie())
    sampler = guided(bridge, covariance, 3)
    mean, law = np.zeros(2), float(bridge.noise(jnp.ones(()))["x"]) ** 2 * np.eye(2)
    for level in rows(3):

        def step(u, level=level):
            return sampler.steps(bridge, bridge.see({"x": u}, level.clock), level)["x"]

        root = jax.vmap(step(jnp.zeros(2)).deviation)(jnp.eye(2))
        at = lambda u, step=step: np.asarray(u + step(jnp.asarray(u)).mean)
        slope = np.stack([at(e) - at(np.zeros(2)) for e in np.eye(2)], 1)
        mean, law = at(mean), slope @ law @ slope.T + np.asarray(root.T @ root)
    truth = COVARIANCE + float(bridge.noise(jnp.zeros(()))["x"]) ** 2 * np.eye(2)
    np.testing.assert_allclose(mean, MEAN, atol=1e-2)
    off = np.abs(np.linalg.solve(truth, law) - np.eye(2)).max()
    assert least <= off <= most, off


@pytest.mark.long
@pytest.mark.parametrize(
    ("twist", "options"),
    [
        (nd.Tweedie(), {}),
        (nd.twists.Moments(), {"inflation": 1.2}),
        (nd.twists.NoisedObservation(), {"conjugate": True, "inflation": 1.3}),
    ],
    ids=["tweedie", "moments", "conjugate"],
)
def test_three_steps_have_the_evidence_of_a_gaussian(twist, options):
    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(jnp.asarray(OPERATOR) @ x, SIGMA).to_event(1), obs=y)

    bridge = nd.from_model(model, DATA, twist=twist, bridge_type=nd.bridge.PathBridge)
    scheme = nd.Twisted(levels=3, covariance=Full(), **options)
    result = nd.run_smc(jax.random.key(1), scheme(bridge), 200, num_chains=150)
    floor = float(bridge.noise(jnp.zeros(()))["x"]) ** 2
    total = OPERATOR @ (COVARIANCE + floor * np.eye(2)) @ OPERATOR.T + SIGMA**2 * np.eye(1)
    assert_unbiased(result.log_evidence, multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, total))


def test_steps_that_depend_on_the_particle_are_refused():
    with pytest.raises(ValueError, match=r"same for all particles.*got Local\(\)"):
        nd.Twisted(covariance=nd.schemes.Local())


@pytest.mark.parametrize("covariance", [Diagonal(), Full()], ids=["diagonal", "full"])
def test_the_way_back_weighs_a_step_as_the_way_there(covariance):
    """And the link is the density of the sampler's own step, up to what the particle does not change."""
    bridge = bridge_to_data(nd.Tweedie())
    transport = guided(bridge, covariance, 3, inflation=1.3)
    kernels = Kernels(bridge, nd.schemes.Moves(num=0), transport)
    level, links, gaps = rows(3)[1], transport.retrace(), []
    for k in range(3):
        u = {"x": jnp.asarray(MEAN + k * np.array([1.0, 0.5]))}
        particle = kernels.evaluate(u, level.clock, level.power, {})
        there = transport(jax.random.key(k), bridge, u, particle.gradient, particle.seen, level)
        back = links.log_ratio(bridge, particle, there[0], level)
        np.testing.assert_allclose(back, there[1], rtol=1e-8)
        step = transport.steps(bridge, particle.seen, level)["x"]
        root = np.asarray(jax.vmap(step.deviation)(jnp.eye(2)))
        own = multivariate_normal(u["x"] + step.mean, root.T @ root)
        target = {"x": jnp.zeros(2)}
        gaps.append(
            float(links.log_link(bridge, particle, target, level)) - own.logpdf(np.zeros(2))
        )
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-8)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_conjugate_steps(full):
    """p psi / M is the same number for every draw: the draw is from the product, and it is normalised."""
    numbers = np.random.default_rng(1)
    start, mean, sigma2 = *numbers.normal(size=(2, 3)), np.array([0.3, 0.5, 0.2])
    vectors = np.linalg.qr(numbers.normal(size=(3, 3)))[0] if full else np.eye(3)
    covariance, tau2 = vectors @ np.diag(sigma2) @ vectors.T, 0.4
    operator, residual = numbers.normal(size=(2, 3)), np.array([1.2, -0.4])
    inner = multivariate_normal(np.zeros(2), np.eye(2) + tau2 * operator @ operator.T)
    total = np.eye(2) + operator @ (tau2 * np.eye(3) + covariance) @ operator.T
    evidence = multivariate_normal.logpdf(residual, operator @ (start + mean), total)
    steps = Step(
        jnp.asarray(True),
        jnp.ones(()),
        jnp.asarray(mean),
        jnp.sqrt(jnp.asarray(sigma2)),
        jnp.asarray(vectors) if full else None,
    )

    def draw(eta, key):
        transport = Conjugate(Guided(jnp.zeros(1), {}, eta))
        data = jnp.asarray(operator), jnp.asarray(residual)
        u, later = {"x": jnp.asarray(start)}, {"x": jnp.full(3, tau2)}
        return transport.draw(key, data, u, {"x": steps}, later)

    for seed in range(3):
        u, log_ratio = draw(1.0, jax.random.key(seed))
        psi = inner.logpdf(residual - operator @ np.asarray(u["x"]))
        np.testing.assert_allclose(log_ratio + psi, evidence, rtol=1e-9)
    # With wider draws the ratio varies, and its mean under M stays what it is.
    keys = jax.random.split(jax.random.key(3), 20_000)
    u, log_ratio = jax.vmap(lambda key: draw(1.3, key))(keys)
    ratio = np.exp(np.asarray(log_ratio) + inner.logpdf(residual - np.asarray(u["x"]) @ operator.T))
    assert ratio.std() > 0.1 * ratio.mean()
    error = ratio.std() / len(ratio) ** 0.5
    assert abs(ratio.mean() - np.exp(evidence)) < 4 * error


@pytest.mark.long
@pytest.mark.parametrize("conjugate", [False, True], ids=["guided", "conjugate"])
def test_three_steps_of_two_sites_and_a_plate(conjugate):
    """y_k = z[0] + a_k[1] + noise: each site with a matrix of its own, in any order of names."""
    other, data = nd.Gaussian([0.2, 0.9], [[0.7, 0.4], [0.4, 1.1]]), jnp.array([0.3, 2.4])

    def model(y):
        z = numpyro.sample("z", nd.DiffusionPrior(PRIOR))
        with numpyro.plate("cases", 2):
            a = numpyro.sample("a", nd.DiffusionPrior(other))
        numpyro.sample("y", dist.Normal(z[0] + a[:, 1], SIGMA).to_event(1), obs=y)

    twist = nd.twists.NoisedObservation() if conjugate else nd.Tweedie()
    bridge = nd.from_model(model, data, twist=twist, bridge_type=nd.bridge.PathBridge)
    scheme = nd.Twisted(levels=3, covariance=Full(), conjugate=conjugate)
    result = nd.run_smc(jax.random.key(1), scheme(bridge), 200, num_chains=150)
    floor = {n: float(s) ** 2 for n, s in bridge.noise(jnp.zeros(())).items()}
    total = COVARIANCE[0, 0] + floor["z"] + (1.1 + floor["a"] + SIGMA**2) * np.eye(2)
    assert_unbiased(result.log_evidence, multivariate_normal.logpdf(data, [1.4, 1.4], total))


def test_guidance_that_is_steep_is_shortened(key):
    """At the end of the density of log(x - .2) the gradient is unbounded; without weights it stays so."""
    prior = nd.GaussianMixture([0.6, 0.4], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])

    def likelihood(x):
        return jax.scipy.stats.norm.logpdf(0.6, x[0], 0.4) + jnp.log(jnp.maximum(x[0] - 0.2, 0.0))

    bridge = nd.from_energy(prior, likelihood, bridge_type=nd.bridge.PathBridge)
    result = nd.run_smc(key, nd.Twisted()(bridge), 500, num_chains=8)
    found = np.asarray(result.log_evidence)
    assert found.std(ddof=1) < 0.12
    assert (
        abs(found.mean() + 2.66) < 0.08
    )  # of the sampler's own distribution, `benchmarks/zeros.py`
    transport = nd.Twisted().kernels(bridge).transport
    step = Step(jnp.asarray(True), jnp.ones(()), jnp.zeros(1), 0.5 * jnp.ones(1), None)
    moved = lambda t: float(t.guidance(step, jnp.full(1, -1e3), jnp.asarray(2.0))[0])
    assert moved(transport) == pytest.approx(-0.25 * 3 / 2)
    assert moved(transport.as_published()) == pytest.approx(-0.25 * 1e3)
