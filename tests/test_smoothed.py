"""Diffusion without data: smoothed densities against closed forms, and the laws they lead to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_diffusion as nd

MEAN, SCALE = np.array([0.4, -1.0]), np.array([0.7, 0.5])


def log_normal(x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, MEAN, SCALE))


def levels(energy, num=5):
    return nd.schedules.log_snr_grid(energy.schedule, num, energy.t_min, energy.t_max)[::-1]


@eqx.filter_jit
def everything(energy, u, t):
    """Log density, its slope, the weighted mean and the number of draws that count."""
    return *energy.log_density_and_score(u, t), *energy.weighted_mean(u, t)


def test_a_gaussian_is_smoothed_as_it_should_be():
    """Values, scores and means of N(m, S + tau^2), from a Gaussian that is off by one width or so."""
    energy = nd.energies.SmoothedDensity(
        log_normal, 2, num_draws=2048, mean=0.0, variance=[1.5, 1.0]
    )
    u = np.array([0.9, -0.6])
    for t in levels(energy)[1:]:
        tau = float(nd.energies.added_variance(energy, t))
        total = SCALE**2 + tau
        value, slope, mean, effective = everything(energy, u, t)
        truth = stats.norm.logpdf(u, MEAN, np.sqrt(total)).sum()
        np.testing.assert_allclose(value, truth, atol=0.01)
        np.testing.assert_allclose(slope * np.sqrt(total), (MEAN - u) / np.sqrt(total), atol=0.03)
        np.testing.assert_allclose(mean, (SCALE**2 * u + tau * MEAN) / total, atol=0.01)
        assert 400 < effective <= 2048
    at_last = everything(energy, u, jnp.asarray(energy.t_min))
    np.testing.assert_allclose(at_last[0], log_normal(u), rtol=1e-13)
    np.testing.assert_allclose(at_last[1], (MEAN - u) / SCALE**2, rtol=1e-10)


def test_without_a_gradient_the_value_stays_and_the_weighted_mean_is_the_score():
    smooth = nd.energies.SmoothedDensity(log_normal, 2, num_draws=64)
    step = lambda x: jnp.floor(8 * log_normal(x)) / 8  # a density of plateaus
    plateaus = nd.energies.SmoothedDensity(step, 2, num_draws=64, differentiable=False)
    black_box = nd.energies.SmoothedDensity(log_normal, 2, num_draws=64, differentiable=False)
    u = np.array([0.9, -0.6])
    for t in levels(smooth)[1:4]:
        tau = float(nd.energies.added_variance(smooth, t))
        value, slope, mean, _ = everything(black_box, u, t)
        np.testing.assert_allclose(value, everything(smooth, u, t)[0], rtol=1e-9)
        np.testing.assert_allclose(slope, (mean - u) / tau, rtol=1e-7)
        close = everything(plateaus, u, t)
        assert abs(close[0] - value) < 0.125 and np.all(np.abs(close[1] - slope) < 0.2 / tau**0.5)
    assert np.all(everything(plateaus, u, jnp.asarray(plateaus.t_min))[1] == 0)


@pytest.mark.parametrize(("variance", "spread"), [(0.0025, 0.01), (2.0, 0.07)])
def test_the_optimiser_ends_where_a_gaussian_says(variance, spread):
    """Each step takes the share variance / (variance + sigma^2) of the way to the mean."""
    sigma = nd.energies.optimize._levels()
    end = 0.3 + (1.5 - 0.3) * np.prod(variance / (variance + sigma**2))
    log_density = lambda x: -0.5 * jnp.sum((x - 0.3) ** 2) / variance
    found = nd.energies.mbd_optimize(
        jax.random.key(0), log_density, jnp.array([1.5]), num_draws=2048
    )
    assert abs(float(found.x[0]) - end) < spread
    assert np.all(found.effective_draws > 30)


def demo(x):
    cost = jnp.sum((x**4 - 0.5) ** 2 + 0.04 * jnp.sin(20 * jnp.pi * x))
    return -cost / 0.05


def weighted(found):
    log_weights = np.asarray(found.log_weights) + np.asarray(found.log_evidence)[:, None]
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(found.positions["x"]), weights / weights.sum()


@pytest.mark.long
def test_the_law_of_the_demo():
    """Two wells with ripples: moments, both halves and the normaliser, with few draws inside."""
    grid = np.linspace(-2, 2, 8001)
    p = np.exp(np.asarray(jax.vmap(demo)(grid[:, None])))
    norm = np.trapezoid(p, grid)
    functions = np.abs, np.square, lambda x: x > 0
    truth = [np.trapezoid(p * f(grid), grid) / norm for f in functions]
    np.testing.assert_allclose(truth[:2], [0.7978, 0.6498], atol=1e-4)
    energy = nd.energies.SmoothedDensity(demo, 1, num_draws=256)
    scheme = nd.ReverseDiffusion(levels=30, pilot=64)
    model = scheme(nd.from_energy(energy), jax.random.key(0))
    found = nd.run_smc(jax.random.key(1), model, num_particles=2000, num_chains=2)
    x, weights = weighted(found)
    for f, exact, most in zip(functions, truth, (0.01, 0.01, 0.04), strict=True):
        assert abs(np.sum(weights * f(x[..., 0])) - exact) < most
    log_evidence = np.log(np.mean(np.exp(np.asarray(found.log_evidence))))
    assert abs(log_evidence - np.log(norm)) < 0.15


Y = np.array([0.3, 1.9, 0.8, 1.4])


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mu / sigma)
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_a_model_is_read_as_it_is_and_values_come_back():
    found = nd.model_energy(model, Y)
    u = jnp.array([0.4, -0.3])
    z = found.unravel(u)
    assert set(z) == {"mu", "sigma"}
    truth = -numpyro.infer.util.potential_energy(model, (Y,), {}, z)
    at_last = eqx.filter_jit(lambda energy: energy.log_density(u, energy.t_min))(found.energy)
    np.testing.assert_allclose(at_last, truth, rtol=1e-12)
    values = found.constrain(u)
    np.testing.assert_allclose(values["mu"], z["mu"])
    np.testing.assert_allclose(values["sigma"], np.exp(z["sigma"]))
    np.testing.assert_allclose(values["ratio"], values["mu"] / values["sigma"])
    with pytest.raises(ValueError, match="without diffusion priors"):
        nd.model_energy(lambda: numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian())))
