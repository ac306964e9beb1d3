"""Parameters of a prior as latent variables: their normalisers, posteriors and evidences, by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from numpyro.infer.util import log_density
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion.energies import Guidance, Joint, Mixture, PowerEnergy, Powers
from numpyro_diffusion.normalizers.chebyshev import Found, fitted
from numpyro_diffusion.ppl import choice_evidences

GAUSSIAN = nd.Gaussian([0.5], [[0.8]])
MIXTURE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
T_MIN = jnp.asarray(MIXTURE.t_min)
NOISE = float(MIXTURE.schedule.noise_level(T_MIN))
LOW, HIGH, SIGMA, Y = np.log(0.4), np.log(3.0), 0.5, 2.4
LINE = np.linspace(-16, 16, 8001)


def on_the_line(energy):
    """Log density of u at t_min on a line, less its normaliser where that is known."""
    return np.asarray(jax.vmap(lambda u: energy.log_density(u[None], T_MIN))(jnp.asarray(LINE)))


def log_integral(values):
    top = values.max()
    return top + np.log(np.trapezoid(np.exp(values - top), LINE))


def by_quadrature(log_prior_density, log_likelihood):
    """Log evidence and distribution function of log beta, over a grid."""
    grid = np.linspace(LOW, HIGH, 301)
    law = stats.truncnorm(LOW / 0.5, HIGH / 0.5, 0, 0.5)
    logs = law.logpdf(grid) + np.array([log_likelihood(np.exp(v)) for v in grid])
    weights = np.exp(logs - logs.max()) * np.gradient(grid)
    return logs.max() + np.log(weights.sum()), grid, np.cumsum(weights) / weights.sum()


def marginal(energy):
    """log p(y | beta) of a power of an energy, by quadrature."""
    logs, seen = on_the_line(energy), stats.norm.logpdf(Y, LINE, SIGMA)
    return lambda beta: log_integral(beta * logs + seen) - log_integral(beta * logs)


def model(y, law):
    log_beta = numpyro.sample("log_beta", dist.TruncatedNormal(0.0, 0.5, low=LOW, high=HIGH))
    x = numpyro.sample("x", nd.DiffusionPrior(law(jnp.exp(log_beta))))
    numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def of_gaussian(y):
    model(y, lambda beta: beta * GAUSSIAN)


@pytest.fixture(scope="module")
def family():
    grid = np.geomspace(0.4, 3.0, 5)
    return nd.normalizers.tabulate(MIXTURE, grid, key=jax.random.key(0), num_particles=400)


def largest_gap(draws, grid, cdf):
    """Between distribution functions, at the draws."""
    draws = np.sort(np.asarray(draws, float).ravel())
    ranks = (np.arange(len(draws)) + 0.5) / len(draws)
    return np.abs(np.interp(draws, grid, cdf) - ranks).max()


def test_powers_of_gaussians_are_normalised_at_every_level():
    plane = nd.Gaussian([0.4, -0.3], [[1.0, 0.6], [0.6, 0.8]])
    other = nd.Gaussian([-0.5, 0.2], [[0.5, -0.1], [-0.1, 0.9]])
    axis = np.linspace(-9, 9, 361)
    points = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    cell = (axis[1] - axis[0]) ** 2

    @jax.jit
    def densities(powers, t):
        law = powers[0] * plane + powers[1] * other
        return jnp.exp(-jax.vmap(lambda x: law.energy(x, t))(points)), law.moments(t)

    for powers, t in (([0.7, 1.5], 0.1), ([1.6, -0.4], 0.3)):
        values, (mean, variance) = densities(jnp.asarray(powers), t)
        weights = np.asarray(values) * cell
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
        expected = weights @ np.asarray(points)
        np.testing.assert_allclose(mean, expected, atol=1e-6)
        np.testing.assert_allclose(variance, weights @ (points - expected) ** 2, rtol=1e-5)
    single = jax.jit(lambda b, t: (GAUSSIAN / (1 / b)).energy(jnp.asarray([1.2]), t))
    alpha, sigma = GAUSSIAN.schedule(jnp.asarray(0.2))
    sd = np.sqrt((0.8 * alpha**2 + sigma**2) / 1.7)
    np.testing.assert_allclose(single(1.7, 0.2), -stats.norm.logpdf(1.2, 0.5 * alpha, sd))
    assert jnp.isnan(single(-0.5, 0.2)) and jnp.isnan(single(0.0, 0.2))  # no law, and no number
    assert jnp.isnan(densities(jnp.asarray([-1.0, 0.5]), 0.1)[0]).all()
    law = PowerEnergy((plane, other), [0.7, 1.5])
    draws = jax.vmap(lambda key: law.draw(key, jnp.asarray(0.1)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    mean, variance = law.moments(jnp.asarray(0.1))
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.1)


def test_a_table_goes_through_what_is_known_of_the_nodes():
    """Exact values and slopes of a Gaussian's normaliser: L = (1 - b) / 2 log 2 pi v - log(b) / 2."""
    grid, log_volume = np.geomspace(0.25, 4, 6), np.log(2 * np.pi * 0.8)
    exact = lambda b: 0.5 * (1 - b) * log_volume - 0.5 * np.log(b)
    slope = lambda b: -0.5 * log_volume - 0.5 / b
    found = [Found(exact(b), 1e-3, np.array([slope(b)]), np.array([1e-3]), None) for b in grid]
    table = fitted([grid], grid[:, None], found, None)
    for b in (0.25, 0.31, 0.9, 2.2, 4.0):
        np.testing.assert_allclose(table(jnp.asarray(b)), exact(b), atol=1e-3)
        np.testing.assert_allclose(jax.grad(table)(b), slope(b), atol=0.02)
        assert 0 < table.standard_error(jnp.asarray(b)) < 2e-3
    assert (
        table.misfit < 1
        and jnp.isnan(table(jnp.asarray(4.1)))
        and jnp.isnan(table(jnp.asarray(0.2)))
    )
    # An offset of all values moves no posterior; the error of a slope does, and more over a wider one.
    draws = np.random.default_rng(0).uniform(0.8, 1.2, 4000)
    moved = np.asarray(table.posterior_error(draws))
    assert 0 < moved < 1e-3 and moved < table.posterior_error(np.linspace(0.3, 3.9, 4000))
    # Two coordinates: the products of what the tables of each have.
    both = [
        Found(
            exact(a) + 2 * exact(b),
            1e-3,
            np.array([slope(a), 2 * slope(b)]),
            np.full(2, 1e-3),
            None,
        )
        for a in grid
        for b in grid
    ]
    nodes = np.array([[a, b] for a in grid for b in grid])
    table = fitted([grid, grid], nodes, both, None)
    np.testing.assert_allclose(
        table(jnp.asarray([0.6, 3.1])), exact(0.6) + 2 * exact(3.1), atol=2e-3
    )


def test_a_tabulated_power_is_normalised(family, tmp_path):
    logs = on_the_line(MIXTURE)
    jacobian = float(jnp.log(MIXTURE.schedule(T_MIN)[0]))
    for beta in (0.4, 0.55, 1.0, 1.9, 3.0):
        # The table is of densities of x = alpha u.
        exact = log_integral(beta * (logs - jacobian)) + jacobian
        error = float(family.table.standard_error(jnp.asarray(beta)))
        assert error < 0.03
        np.testing.assert_allclose(family.table(jnp.asarray(beta)), exact, atol=4 * error)
        law = np.asarray(on_the_line(family.given(beta)))
        np.testing.assert_allclose(log_integral(law), 0.0, atol=4 * error)
    nd.save(tmp_path / "family.safetensors", family)
    again = nd.load(tmp_path / "family.safetensors")
    np.testing.assert_array_equal(on_the_line(again.given(0.7)), on_the_line(family.given(0.7)))
    assert again.log_normalizer_error == family.log_normalizer_error > 0


def test_what_a_family_refuses(family):
    with pytest.raises(ValueError, match="reaches from.*got 3.2.*tabulate a wider grid"):
        family.given(3.2)
    with pytest.raises(ValueError, match=r"shape \(\).*got \(2,\).*Joint"):
        family.given(jnp.ones(2))
    with pytest.raises(ValueError, match="Move the ends of its parts"):
        family.with_horizon(t_min=0.1)
    assert jnp.isnan(jax.jit(lambda b: family.given(b).energy(jnp.ones(1), T_MIN))(3.2))
    key = jax.random.key(0)
    for grid in (
        [1.0, 2.0],
        [1.0, 0.5, 2.0],
        np.ones((3, 3)),
        ([1.0, 2.0, 3.0], [1.0, np.nan, 2.0]),
    ):
        with pytest.raises(ValueError, match="at least 3 finite, increasing nodes"):
            nd.normalizers.tabulate(MIXTURE, grid, key=key)
    with pytest.raises(ValueError, match="normalised as it is"):
        nd.normalizers.tabulate(GAUSSIAN, [0.5, 1.0, 2.0], key=key)
    with pytest.raises(TypeError, match="must give an energy"):
        nd.normalizers.tabulate(lambda theta: theta, [0.5, 1.0, 2.0], key=key)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (lambda b: b * MIXTURE, "no closed form.*tabulate"),
        (lambda b: MIXTURE / b, "no closed form.*tabulate"),
        (lambda b: nd.cfg(MIXTURE, GAUSSIAN, b), "no closed form.*tabulate"),
        (lambda b: b * (lambda t: 1.0) * MIXTURE, "unsupported operand|function of the time"),
        (lambda b: b * ((lambda t: 1.0 + t) * MIXTURE), "function of the time"),
        (lambda b: jnp.full(3, b) * GAUSSIAN, "Joint"),
        (lambda b: b * nd.ScoreFunction(lambda x, t: -x, shape=(1,)), "needs energies"),
        (lambda b: 2.0 * (b * MIXTURE), "no closed form.*tabulate"),
        (lambda b: Joint([b * MIXTURE, GAUSSIAN]), "no closed form.*tabulate"),
    ],
)
def test_a_latent_power_without_a_normaliser_is_refused(law, message):
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda b: nd.DiffusionPrior(law(b)).log_prob(jnp.ones(1)))(0.7)


def test_the_posterior_of_a_power_by_smc():
    """A Gaussian to a power: the marginal of the datum in closed form."""
    v = 0.8 + NOISE**2
    log_likelihood = lambda b: stats.norm.logpdf(Y, 0.5, np.sqrt(v / b + SIGMA**2))
    exact, grid, cdf = by_quadrature(None, log_likelihood)
    smc = nd.SMC(of_gaussian, num_particles=1000, progress_bar=False)
    smc.run(jax.random.key(1), jnp.array([Y]))
    assert smc.bridge.drivers == ("log_beta",) and smc.evidence_is_normalized
    assert abs(smc.log_evidence - exact) < 4 * smc.log_evidence_error < 0.2
    assert largest_gap(smc.get_samples()["log_beta"], grid, cdf) < 0.04
    # What NUTS sees is the same density.
    for b in (0.5, 1.4):
        found, _ = log_density(
            of_gaussian, (jnp.array([Y]),), {}, {"log_beta": jnp.log(b), "x": jnp.ones(1)}
        )
        prior = stats.truncnorm.logpdf(np.log(b), LOW / 0.5, HIGH / 0.5, 0, 0.5)
        seen = stats.norm.logpdf(1.0, 0.5, np.sqrt(v / b)) + stats.norm.logpdf(Y, 1.0, SIGMA)
        np.testing.assert_allclose(found, prior + seen, rtol=1e-6)


def test_the_posterior_of_a_tabulated_power_by_nuts(family):
    _, grid, cdf = by_quadrature(None, marginal(MIXTURE))
    kernel = NUTS(lambda y: model(y, family.given))
    options = {"chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=200, num_samples=500, num_chains=8, **options)
    mcmc.run(jax.random.key(3), jnp.array([Y]))
    assert largest_gap(mcmc.get_samples()["log_beta"], grid, cdf) < 0.06


def test_twists_at_the_clean_end_have_derivatives_in_the_power():
    """Nothing is left open there, whatever the power: no root of 0 is differentiated."""
    for twist in (nd.Widened(), nd.twists.Moments(), nd.twists.MatrixFree()):
        bridge = nd.from_model(of_gaussian, jnp.asarray([Y]), twist=twist)
        z = {"x": jnp.asarray([0.3]), "log_beta": jnp.asarray(0.2)}
        at = lambda z, bridge=bridge: nd.bridge.log_density(bridge, z, 0.0 * T_MIN, 1.0 + 0 * T_MIN)
        slopes = jax.jit(jax.grad(lambda z, at=at: at(z)[0]))(z)
        usual = nd.from_model(of_gaussian, jnp.asarray([Y]))
        expected = jax.grad(
            lambda z, b=usual: nd.bridge.log_density(b, z, 0.0 * T_MIN, 1.0 + 0 * T_MIN)[0]
        )(z)
        np.testing.assert_allclose(slopes["log_beta"], expected["log_beta"], rtol=1e-6)


def test_the_posterior_of_a_power_by_reverse_diffusion():
    smc = nd.SMC(of_gaussian, nd.ReverseDiffusion(), num_particles=400, progress_bar=False)
    smc.run(jax.random.key(5), jnp.asarray([Y]))
    log_evidence, grid, cdf = by_quadrature(None, marginal(GAUSSIAN))
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error < 0.4
    assert largest_gap(smc.get_samples()["log_beta"], grid, cdf) < 0.06


def test_the_posterior_of_a_power_by_replica_exchange_and_the_refusal_of_split_samplers():
    bridge = nd.from_model(of_gaussian, jnp.asarray([Y]))
    found = nd.replica_exchange(jax.random.key(6), bridge)
    log_evidence, grid, cdf = by_quadrature(None, marginal(GAUSSIAN))
    assert abs(found.log_evidence - log_evidence) < 4 * found.log_evidence_error < 0.4
    draws = jax.vmap(jax.vmap(bridge.constrain))(found.positions)["log_beta"]
    assert largest_gap(draws, grid, cdf) < 0.06
    for sampler in (nd.samplers.PnPDM(noise_level=0.3), nd.samplers.DAPS(noise_level=0.3)):
        with pytest.raises(ValueError, match=r"depends on \['log_beta'\].*another distribution"):
            nd.samplers.split_gibbs(jax.random.key(7), bridge, sampler)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:draws of")
def test_the_posterior_of_a_tabulated_power_by_smc_and_particle_gibbs(family):
    exact, grid, cdf = by_quadrature(None, marginal(MIXTURE))
    tabulated = lambda y: model(y, family.given)
    smc = nd.SMC(tabulated, num_particles=1000, progress_bar=False)
    smc.run(jax.random.key(0), jnp.array([Y]))
    assert abs(smc.log_evidence - exact) < 4 * smc.log_evidence_error < 0.3
    assert largest_gap(smc.get_samples()["log_beta"], grid, cdf) < 0.05
    kernel = Gibbs([(nd.ParticleGibbs(tabulated), ["x"]), (NUTS(tabulated), None)])
    options = {"chain_method": jax.vmap, "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=100, num_samples=1000, num_chains=8, **options)
    mcmc.run(jax.random.key(3), jnp.array([Y]))
    assert largest_gap(mcmc.get_samples()["log_beta"], grid, cdf) < 0.05


MEANS, SHARES = np.array([-2.0, 0.0, 3.0]), np.array([0.5, 0.2, 0.3])


def labelled(y):
    c = numpyro.sample("c", dist.Categorical(jnp.asarray(SHARES)))
    x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian(jnp.asarray(MEANS)[c, None], [[0.3]])))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def test_a_latent_label_by_its_share_and_by_its_evidence():
    """The mean of a Gaussian, and with it the prior, depends on a label."""
    y = jnp.array([1.3])
    logs = np.log(SHARES) + stats.norm.logpdf(1.3, MEANS, np.sqrt(1.3 + NOISE**2))
    exact = np.logaddexp.reduce(logs)
    smc = nd.SMC(labelled, num_particles=1000, progress_bar=False).run(jax.random.key(2), y)
    assert abs(smc.log_evidence - exact) < 4 * smc.log_evidence_error < 0.2
    found = np.bincount(smc.get_samples()["c"].ravel(), minlength=3) / smc.get_samples()["c"].size
    np.testing.assert_allclose(found, np.exp(logs - exact), atol=0.04)
    sampler = nd.SMC(labelled, num_particles=200, progress_bar=False)
    sums = choice_evidences(labelled, "c", jax.random.key(3), y, smc=sampler)
    assert abs(sums.log_evidence - exact) < 0.1
    np.testing.assert_array_equal(sums.values, [0, 1, 2])
    gap = np.abs(np.exp(sums.log_probs) - np.exp(logs - exact))
    assert np.all(gap < 4 * sums.standard_errors) and sums.standard_errors.max() < 0.03
    with pytest.raises(ValueError, match="finitely many values.*'z'.*\\['c'\\]"):
        choice_evidences(labelled, "z", jax.random.key(3), y)


def in_a_plate(y):
    with numpyro.plate("many", 2):
        c = numpyro.sample("c", dist.Bernoulli(0.5))
    x = numpyro.sample("x", nd.DiffusionPrior((1.0 + c.sum()) * GAUSSIAN))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def of_powers_in_a_plate(y):
    with numpyro.plate("many", 2):
        beta = numpyro.sample("beta", dist.LogNormal())
        numpyro.sample("x", nd.DiffusionPrior(beta * GAUSSIAN))


def of_any_sign(y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    numpyro.sample("x", nd.DiffusionPrior(beta * GAUSSIAN))


def followed(y):
    x = numpyro.sample("x", nd.DiffusionPrior(GAUSSIAN))
    z = numpyro.sample("z", dist.Normal(x[0], 1.0))
    numpyro.sample("w", nd.DiffusionPrior(nd.Gaussian(z[None], [[1.0]])))


@pytest.mark.parametrize(
    ("refused", "error", "message"),
    [
        (in_a_plate, ValueError, r"depends on the discrete site `c` of shape \(2,\)"),
        (of_powers_in_a_plate, TypeError, "latent power for each example of a plate.*Joint"),
        (of_any_sign, ValueError, "% of the draws of \\['beta'\\].*not positive.*Uniform"),
        (followed, ValueError, "energy of site `w` depends on a diffusion site, through.*'z'"),
    ],
)
def test_models_that_are_refused(refused, error, message):
    with pytest.raises(error, match=message):
        nd.from_model(refused, jnp.array([0.3]))


def test_schemes_in_path_space_refuse_a_latent_power():
    with pytest.raises(
        ValueError, match="`x` depends on other latent sites, which a scheme in path space"
    ):
        nd.from_model(of_gaussian, jnp.array([Y]), bridge_type=nd.bridge.PathBridge)


def test_powers_of_each_example_side_by_side():
    """The remedy for a plate: one site, and a power for each of its rows."""
    law = jax.jit(
        lambda b: Joint([b[0] * GAUSSIAN, b[1] * GAUSSIAN]).log_density(jnp.ones((2, 1)), T_MIN)
    )
    v = 0.8 + NOISE**2
    expected = stats.norm.logpdf(1.0, 0.5, np.sqrt(v / np.array([0.6, 2.0]))).sum()
    np.testing.assert_allclose(law(jnp.array([0.6, 2.0])), expected, rtol=1e-6)


def test_two_powers_and_the_weight_of_a_mixture_have_their_derivatives():
    both = lambda b: (b[0] * GAUSSIAN + b[1] * nd.Gaussian([0.0], [[2.0]])).log_density(
        jnp.ones(1), T_MIN
    )
    shared = lambda w: Mixture([GAUSSIAN, MIXTURE], [w, 1 - w]).log_density(jnp.ones(1), T_MIN)
    for law, at in ((both, jnp.array([0.7, 0.4])), (shared, jnp.asarray(0.3))):
        steps = 1e-5 * jnp.eye(at.size).reshape(-1, *at.shape)
        law = jax.jit(law)
        slopes = np.array([(law(at + step) - law(at - step)) / 2e-5 for step in steps])
        np.testing.assert_allclose(np.ravel(jax.grad(law)(at)), slopes, rtol=1e-4)


def test_the_power_of_the_largest_evidence():
    """y ~ N(m, v / b + s^2): largest where v / b is (y - m)^2 - s^2."""
    v = 0.8 + NOISE**2
    best = v / ((Y - 0.5) ** 2 - SIGMA**2)
    likelihood = lambda x: jax.scipy.stats.norm.logpdf(Y, x[0], SIGMA)
    options = {"num_particles": 400, "max_steps": 12}
    found = nd.normalizers.fit_power(GAUSSIAN, likelihood, jax.random.key(0), **options)
    assert found.converged and abs(found.power - best) < 4 * found.standard_error < 0.1
    evidence = lambda b: stats.norm.logpdf(Y, 0.5, np.sqrt(v / b + SIGMA**2))
    bend = (evidence(best + 0.01) - 2 * evidence(best) + evidence(best - 0.01)) / 1e-4
    np.testing.assert_allclose(found.posterior_sd, 1 / np.sqrt(-bend), rtol=0.3)
    assert abs(found.log_evidence - evidence(best)) < 4 * found.log_evidence_error < 0.2
    with pytest.raises(ValueError, match="inside `bounds`"):
        nd.normalizers.fit_power(GAUSSIAN, likelihood, jax.random.key(0), start=3.0, bounds=(1, 2))


def test_families_of_powers_and_of_guidance():
    x, t = jnp.array([0.4]), jnp.asarray(0.2)
    e, f = (float(law.energy(x, t)) for law in (GAUSSIAN, MIXTURE))
    np.testing.assert_allclose(Powers(GAUSSIAN, MIXTURE)([0.5, 2.0]).energy(x, t), 0.5 * e + 2 * f)
    np.testing.assert_allclose(Guidance(GAUSSIAN, MIXTURE)(3.0).energy(x, t), -2 * e + 3 * f)
