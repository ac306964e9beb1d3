"""Hostile cases of their own: half spaces, narrow noise, few particles, units, and names."""

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.2])
PRIOR = nd.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])
EIGHT = nd.Gaussian(np.zeros(8), np.eye(8))
X = np.linspace(-8, 6, 200_001)
UNIT = 1 + 0.004**2  # of the standard normal prior, with the noise of `t_min`


def sampler(model, **options):
    options = {"num_particles": 1000, "num_chains": 4} | options
    return nd.SMC(model, **options, progress_bar=False)


def means(smc, site):
    """Of the first coordinate, by cloud."""
    samples, weights = smc.get_weighted_samples()
    x, weights = np.asarray(samples[site]), np.asarray(weights)
    x = x.reshape(*weights.shape, -1)[..., 0]
    return (x * weights).sum(1) / weights.sum(1), weights.sum(1) / weights.sum()


def assert_right(smc, log_evidence, mean, sd, site="x"):
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error < 0.6
    clouds, shares = means(smc, site)
    spread = clouds.std(ddof=1) / len(clouds) ** 0.5
    assert abs(clouds @ shares - mean) < 5 * spread + 0.05 * sd


def by_quadrature(log_likelihood):
    """Log evidence, posterior mean and standard deviation."""
    sd = np.sqrt(VARIANCES + 0.004**2)
    prior = (WEIGHTS * stats.norm.pdf(X[:, None], MEANS, sd)).sum(1)
    terms = prior * np.exp(log_likelihood)
    total = np.trapezoid(terms, X)
    mean = np.trapezoid(terms * X, X) / total
    return np.log(total), mean, np.sqrt(np.trapezoid(terms * (X - mean) ** 2, X) / total)


def half_space(y, sd):
    x = numpyro.sample("x", nd.DiffusionPrior(EIGHT))
    numpyro.factor("half", jnp.where(x.sum() > 0, 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(x[0], sd), obs=y)


@pytest.mark.parametrize(("y", "sd"), [(0.0, 1e3), (-1.0, 0.5)], ids=["no data", "with a datum"])
def test_half_space_in_eight_dimensions(y, sd, key):
    """The sum is normal, and the first coordinate given it."""
    smc = sampler(half_space).run(key, jnp.asarray(y), jnp.asarray(sd))
    variance = 1 / (1 / UNIT + sd**-2)
    mean, total = variance * y / sd**2, np.sqrt(variance + 7 * UNIT)
    inside = stats.norm.logcdf(mean / total)
    log_evidence = stats.norm.logpdf(y, 0, np.sqrt(UNIT + sd**2)) + inside
    mean = mean + variance / total * np.exp(stats.norm.logpdf(mean / total) - inside)
    assert_right(smc, log_evidence, mean, variance**0.5)


def narrow(y, half_width):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))[0]
    numpyro.sample("y", dist.Uniform(x - half_width, x + half_width), obs=y)


def test_narrow_bounded_noise_is_right_or_says_so(key):
    """A tenth of what a level of noise can follow: never a small error about a wrong number."""
    y, half_width = 0.6, 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an evidence not to be relied on
        smc = sampler(narrow).run(key, jnp.asarray(y), jnp.asarray(half_width))
        log_evidence, error = smc.log_evidence, smc.log_evidence_error
    inside = np.where(np.abs(X - y) <= half_width, -np.log(2 * half_width), -np.inf)
    truth, _, _ = by_quadrature(inside)
    assert abs(log_evidence - truth) < 4 * error
    said = diagnostics.verdict(smc.result)
    assert error < 0.3 or not said.startswith("Nothing to worry about")


def plain(y):
    x = numpyro.sample("a/b c", nd.DiffusionPrior(PRIOR))[0]
    z = numpyro.sample("z 1/2", dist.Normal(0.0, 1.0))
    numpyro.sample("y (m/s)", dist.Normal(x + z, 0.5), obs=y)


def test_names_with_slashes_and_spaces(key):
    smc = sampler(plain).run(key, jnp.asarray(0.7))
    truth = by_quadrature(stats.norm.logpdf(0.7, X, np.sqrt(1.25)))
    assert_right(smc, *truth, site="a/b c")


def test_two_particles_do_not_pass_for_a_posterior(key):
    with pytest.warns(UserWarning, match="`log_evidence` is not to be relied on"):
        smc = sampler(plain, num_particles=2).run(key, jnp.asarray(0.7))
        log_evidence, error = smc.log_evidence, smc.log_evidence_error
    truth, *_ = by_quadrature(stats.norm.logpdf(0.7, X, np.sqrt(1.25)))
    assert abs(log_evidence - truth) < 3 * error and error > 1
    said = diagnostics.verdict(smc.result)
    assert not said.startswith("Nothing to worry about")
    assert "last place" not in said  # one particle has no width; that is not the floats' fault


def test_one_particle_is_refused():
    with pytest.raises(ValueError, match="`num_particles` must be at least 2; got 1"):
        sampler(plain, num_particles=1)


def in_units(y, unit):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))[0]
    shift = numpyro.sample("shift", dist.Normal(0.0, unit))
    numpyro.sample("y", dist.Normal(x * unit + shift, 0.5 * unit), obs=y)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_data_change_the_evidence_by_themselves(unit, key):
    smc = sampler(in_units).run(key, jnp.asarray(0.7 * unit), jnp.asarray(unit))
    log_evidence, *rest = by_quadrature(stats.norm.logpdf(0.7, X, np.sqrt(1.25)))
    assert_right(smc, log_evidence - np.log(unit), *rest)
