"""Nested sampling against closed forms and against the particle samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from closed_form import eight_dimensional, two_dimensional
from jax.scipy.stats import norm

import numpyro_diffusion as nd


def in_noise(problem, **options):
    reparametrised = numpyro.handlers.reparam(
        problem.model, config={"x": nd.NoiseReparam(**options)}
    )
    return nd.from_model(reparametrised, problem.operator, y=problem.data)


def test_evidence_and_posterior_of_a_gaussian(key):
    """A datum 1.5 in the first coordinate, noise 0.5; all in closed form."""
    prior = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
    bridge = nd.from_energy(prior, lambda x: norm.logpdf(1.5, x[0], 0.5))
    found = nd.nested_sampling(key, bridge, num_live=300)
    assert 0.02 < found.log_evidence_error < 0.1
    exact = norm.logpdf(1.5, 0.5, np.sqrt(1.25))
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error
    np.testing.assert_allclose(jnp.exp(found.log_weights).sum(), 1.0, rtol=1e-6)
    mean = jnp.exp(found.log_weights) @ found.positions["x"]
    np.testing.assert_allclose(mean, [0.5 + 1 / 1.25, -1.0 + 0.6 / 1.25], atol=0.15)
    assert 10_000 < found.num_evaluations < 500_000


@pytest.mark.long
def test_evidence_and_posterior_in_noise(key):
    problem = two_dimensional(sigma=0.5)
    bridge = in_noise(problem, num_steps=8)
    found, exact = nd.nested_sampling(key, bridge, num_live=150), problem.exact()
    assert 0.03 < found.log_evidence_error < 0.2
    assert abs(found.log_evidence - exact.log_evidence) < 4 * found.log_evidence_error
    x = jax.vmap(bridge.constrain)(found.positions)["x"]
    mean = jnp.exp(found.log_weights) @ x
    assert (np.abs(mean - exact.mean) < 0.3 * np.sqrt(exact.variance)).all()


def gaussian_prior():
    """Eight dimensions, one component, unknown noise level: the map is exact with any number of steps."""
    problem = eight_dimensional(6)
    first = slice(0, 1)
    data = problem.operator @ (problem.means[0] + 0.5) + 0.2 * np.array([1, -1, 0.5, 0, -0.5, 1])
    return problem._replace(
        weights=np.ones(1),
        means=problem.means[first],
        covariances=problem.covariances[first],
        data=data,
    )


@pytest.mark.long
@pytest.mark.parametrize("where", ["x", "noise"])
def test_agrees_with_the_particle_sampler_in_eight_dimensions(where, key):
    """A mixture in `x`, whose prior is in closed form, and a Gaussian in noise."""
    key_nested, key_smc = jax.random.split(key)
    problem = eight_dimensional(3, sigma=0.3) if where == "x" else gaussian_prior()
    bridge = nd.from_model(problem.model, problem.operator, y=problem.data)
    bridge = bridge if where == "x" else in_noise(problem, num_steps=2)
    found = nd.nested_sampling(key_nested, bridge, num_live=250)
    smc = nd.SMC(problem.model, num_particles=500, progress_bar=False)
    smc.run(key_smc, problem.operator, y=problem.data)
    exact = problem.exact().log_evidence
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error
    gap = abs(found.log_evidence - smc.log_evidence)
    assert gap < 4 * np.hypot(found.log_evidence_error, smc.log_evidence_error)


def test_refusals(key):
    learned = nd.InnerProductEnergy()
    with pytest.raises(ValueError, match="NoiseReparam"):
        nd.nested_sampling(key, nd.from_energy(learned, lambda x: -jnp.sum(x**2)))
    bridge = nd.from_energy(nd.Gaussian(), lambda x: -jnp.sum(x**2))
    with pytest.raises(ValueError, match="num_delete"):
        nd.nested_sampling(key, bridge, num_live=10, num_delete=10)
    nowhere = nd.from_energy(nd.Gaussian(), lambda x: jnp.sum(x) * jnp.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        nd.nested_sampling(key, nowhere, num_live=10)
