"""Laws to start from, and the horizon that they allow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from assertions import Shifted, assert_unbiased
from closed_form import eight_dimensional, two_dimensional
from programs import draws_at, energy_at, log_densities_at, score_at
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.energies.initial import NoisedLaw

MIXTURE = nd.GaussianMixture(t_max=0.3)


def clean(mixture, num, seed=0):
    return draws_at(mixture, jax.random.split(jax.random.key(seed), num), jnp.asarray(0.0))


LAWS = {
    "standard normal": lambda energy, data: nd.energies.StandardNormal.of(energy),
    "gaussian": nd.energies.fit_gaussian,
    "mixture": lambda energy, data: nd.energies.fit_mixture(energy, data, 2, jax.random.key(1)),
    "diagonal": lambda energy, data: nd.energies.fit_mixture(
        energy, data, 3, jax.random.key(1), diagonal=True
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_density(name):
    """Moments of draws, and their mean log density, agree with an integral of the density."""
    law = LAWS[name](MIXTURE, clean(MIXTURE, 1000))
    draws = np.asarray(jax.jit(jax.vmap(law.sample))(jax.random.split(jax.random.key(2), 20_000)))
    log_prob = jax.jit(jax.vmap(law.log_prob))
    side = np.linspace(-12.0, 12.0, 401)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    log_p = np.asarray(log_prob(grid))
    mass = np.exp(log_p) * float(side[1] - side[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1, atol=1e-4)
    mean, entropy = mass @ np.asarray(grid), -mass @ log_p
    error = draws.std(0) / len(draws) ** 0.5
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * error)
    of_draws = -np.asarray(log_prob(jnp.asarray(draws)))
    assert abs(of_draws.mean() - entropy) < 4 * of_draws.std() / len(draws) ** 0.5


def test_fits_find_the_law():
    data = clean(MIXTURE, 4000)
    law = LAWS["mixture"](MIXTURE, data)
    weights, means = np.asarray(law.energy.weights), np.asarray(law.energy.means)
    order = np.argsort(means[:, 0])
    np.testing.assert_allclose(weights[order], MIXTURE.weights, atol=0.03)
    np.testing.assert_allclose(means[order], MIXTURE.means, atol=0.06)
    u = clean(MIXTURE, 200, seed=5)
    for t in (0.05, 0.3):
        fitted = np.asarray(jax.jit(jax.vmap(law.at(t).log_prob))(u))
        exact = np.asarray(log_densities_at(MIXTURE, u, jnp.asarray(t)))
        assert np.mean(np.abs(fitted - exact)) < 0.05
    gaussian = nd.energies.fit_gaussian(MIXTURE, data)
    variance = float(MIXTURE.schedule.noise_level(jnp.asarray(0.3))) ** 2 * np.eye(2)
    covariance = np.cov(np.asarray(data).T, bias=True) + variance
    exact = multivariate_normal.logpdf(u, np.asarray(data).mean(0), covariance)
    np.testing.assert_allclose(jax.jit(jax.vmap(gaussian.log_prob))(u), exact, atol=1e-3)
    # The likelihood of the data rises with the number of components that it needs.
    likelihood = lambda law: np.mean(jax.jit(jax.vmap(law.at(1e-4).log_prob))(data))
    assert likelihood(law) > likelihood(gaussian) + 0.2


def test_fits_of_images_in_many_dimensions_and_of_few_points(float32):
    energy = nd.ProperEnergy(None, np.zeros((4, 4)), np.ones(16))
    data = np.random.default_rng(0).normal(size=(30, 4, 4))
    for law in (
        nd.energies.fit_gaussian(energy, data),
        nd.energies.fit_mixture(energy, data, 5, jax.random.key(0)),
        nd.energies.fit_mixture(energy, np.repeat(data[:2], 5, 0), 4, jax.random.key(0)),
    ):
        draw = eqx.filter_jit(law.sample)(jax.random.key(1))
        assert draw.shape == (4, 4) and draw.dtype == jnp.float32
        log_prob = eqx.filter_jit(law.log_prob)(draw)
        assert np.isfinite(log_prob) and log_prob.shape == ()


@pytest.mark.long
@pytest.mark.parametrize("name", ["standard normal", "mixture"])
def test_evidence_is_exact_from_any_of_them(name):
    """A short horizon, where the standard normal is far off: the initial weight makes up for it."""
    problem = two_dimensional()
    short = problem.prior.with_horizon(t_max=0.3)
    row, datum = jnp.asarray(problem.operator[0]), problem.data[0]
    log_likelihood = lambda x: jax.scipy.stats.norm.logpdf(datum, row @ x, 0.5)
    problem = problem._replace(sigma=0.5)
    bridge = nd.from_energy(short, log_likelihood, initial=LAWS[name](short, clean(short, 2000)))
    model = nd.Annealed(pilot=nd.schemes.Pilot(conditional_ess=0.9))(bridge, jax.random.key(2))
    result = nd.run_smc(jax.random.key(1), model, 200, num_chains=100)
    assert_unbiased(result.log_evidence, problem.exact().log_evidence)


@pytest.mark.long
def test_a_short_horizon_from_a_fitted_mixture_needs_fewer_levels():
    """Two thirds of the levels of the long way from the standard normal, for the same evidence."""
    mixture = eight_dimensional().prior
    short = mixture.with_horizon(t_max=0.25)
    law = nd.energies.fit_mixture(short, clean(mixture, 4000), 4, jax.random.key(1))
    levels = []
    for energy, initial in ((mixture, nd.energies.StandardNormal.of(mixture)), (short, law)):
        bridge = nd.from_energy(energy, initial=initial)
        model = nd.Annealed(pilot=128)(bridge, jax.random.key(0))
        result = nd.run_smc(jax.random.key(1), model, 400, num_chains=8)
        levels.append(result.num_levels_run)
        z = np.exp(np.asarray(result.log_evidence))
        error = z.std(ddof=1) / 8**0.5
        assert abs(z.mean() - 1) < 3 * error < 0.5
    assert levels[1] < 0.67 * levels[0], levels


def test_laws_go_where_initial_laws_go():
    def model():
        numpyro.sample("x", nd.DiffusionPrior(MIXTURE))

    law = LAWS["mixture"](MIXTURE, clean(MIXTURE, 500))
    bridge = nd.from_model(model, initial={"x": law})
    u = jnp.array([0.3, -0.2])
    np.testing.assert_allclose(
        eqx.filter_jit(bridge.log_base)({"x": u}), eqx.filter_jit(law.log_prob)(u)
    )
    key = jax.random.key(0)
    assert eqx.filter_jit(bridge.sample_base)(key)["x"].shape == (2,)


def test_what_fits_refuse():
    data, key = np.zeros((5, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"examples of shape \(2,\).*got shape \(5, 3\)"):
        nd.energies.fit_gaussian(MIXTURE, np.zeros((5, 3)))
    with pytest.raises(ValueError, match="`num_components` must be at most 5.*got 6"):
        nd.energies.fit_mixture(MIXTURE, data, 6, key)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1; got 0"):
        nd.energies.fit_mixture(MIXTURE, data, 2, key, num_steps=0)
    with pytest.raises(TypeError, match="closed form at every level"):
        NoisedLaw(Shifted(MIXTURE, jnp.ones(())), (2,), 1.0)


def test_another_horizon_of_the_same_law():
    mixture = nd.GaussianMixture()
    short = mixture.with_horizon(t_max=0.3)
    assert (short.t_min, short.t_max) == (mixture.t_min, 0.3) and mixture.t_max != 0.3
    x, t = jnp.array([0.4, -1.0]), jnp.asarray(0.2)
    assert energy_at(short, x, t) == energy_at(mixture, x, t)
    # Normalised at every level, so another t_min is known too.
    assert mixture.with_horizon(t_min=0.1).log_normalizer == 0.0
    # A network is not: its normaliser is kept at the same t_min, and forgotten at another.
    offset = (0.4, -0.3, 0.2)
    energy = nd.ProperEnergy(
        t_min=0.02, offset=offset, log_normalizer=1.5, log_normalizer_error=0.1
    )
    t_min = jnp.asarray(0.02)
    kept = energy.with_horizon(t_max=0.5)
    assert (kept.log_normalizer, kept.log_normalizer_error) == (1.5, 0.1)
    expected = energy_at(energy, x, t_min)
    np.testing.assert_allclose(energy_at(kept, x, t_min), expected, rtol=1e-12)
    np.testing.assert_allclose(score_at(kept, x, t), score_at(energy, x, t), rtol=1e-12)
    other = energy.with_horizon(t_min=0.03)
    assert other.log_normalizer is None and other.log_normalizer_error == 0.0
    composed = (mixture + 0.5 * nd.Gaussian()).with_log_normalizer(0.7)
    cut = composed.with_horizon(t_max=0.4)
    assert cut.t_max == 0.4 and cut.log_normalizer == 0.7 and cut.powers == composed.powers
    assert composed.with_horizon(t_min=0.05).log_normalizer is None
    assert nd.ScoreFunction(lambda x, t: -x, 2).with_horizon(t_max=0.5).t_max == 0.5


def test_horizons_that_are_refused():
    mixture = nd.GaussianMixture()
    with pytest.raises(ValueError, match="0 <= t_min < t_max <= 1.*t_min=0.5, t_max=0.3"):
        mixture.with_horizon(t_min=0.5, t_max=0.3)
    with pytest.raises(ValueError, match="log-SNR must be finite"):
        nd.GaussianMixture(schedule=nd.schedules.RectifiedFlow()).with_horizon(t_max=1.0)
    with pytest.raises(ValueError, match="log-SNR must be finite"):
        mixture.with_horizon(t_min=0.0)
    with pytest.raises(TypeError, match="has no fields.*`with_horizon`"):
        Shifted(mixture, jnp.ones(())).with_horizon(t_max=0.5)
