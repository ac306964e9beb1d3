"""`ParticleMarginal`: noise levels by a walk on unbiased evidences, exact however few the particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy.stats import norm

import numpyro_diffusion as nd


@pytest.fixture(autouse=True)
def hurried():
    """Small programs: compiling them well takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


PRIOR = nd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.3]], [[0.6]]])
Y = np.array([-0.9, 0.2, 1.3])


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(x[0] + shift, sigma), obs=y)


def by_quadrature():
    """Means of x, x^2, sigma, sigma^2, shift, shift^2; sigma through its logarithm."""
    t = jnp.asarray(PRIOR.t_min)
    x = np.linspace(-5, 5, 201)[:, None, None]
    prior = np.exp(np.asarray(jax.vmap(lambda u: PRIOR.log_density(u, t))(jnp.asarray(x[:, 0]))))
    sigma = np.exp(np.linspace(-4, 2, 241))[:, None]
    shift = np.linspace(-2.5, 2.5, 101)
    p = prior[:, None, None] * sigma * norm.pdf(sigma) * norm.pdf(shift, 0, 0.5)
    for y in Y:
        p = p * norm.pdf(y, x + shift, sigma)
    values = [v**power for v in (x, sigma, shift) for power in (1, 2)]
    return np.array([(p * value).sum() for value in values]) / p.sum()


def assert_posterior(kernel, key, method):
    mcmc = MCMC(
        kernel,
        num_warmup=100,
        num_samples=300,
        num_chains=32,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(key, jnp.asarray(Y))
    samples = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    sites = samples["x"][..., 0], samples["sigma"], samples["shift"]
    means = np.stack([v**power for v in sites for power in (1, 2)], -1).mean(1)
    error, exact = means.std(0, ddof=1) / len(means) ** 0.5, by_quadrature()
    assert (error < 0.12).all(), error
    assert (np.abs(means.mean(0) - exact) < 4 * error).all(), (means.mean(0), exact, error)
    return mcmc


SCHEME = nd.ReverseDiffusion(levels=8, moves=0, pilot=64)
OPTIONS = {"num_particles": 6, "twist": nd.Tweedie()}


@pytest.mark.slow
def test_alone(key):
    mcmc = assert_posterior(nd.ParticleMarginal(model, SCHEME, **OPTIONS), key, "vectorized")
    assert 0.1 < np.mean(mcmc.get_extra_fields()["accept_prob"]) < 0.5
    state = mcmc.last_state
    assert np.ptp(np.asarray(state.adapt_state.step_size)) > 0  # each chain has its own


@pytest.mark.slow
def test_beside_nuts(key):
    """Another block moves `shift`: the estimate is made anew along the path of the draw."""
    kernel = Gibbs(
        [
            (nd.ParticleMarginal(model, SCHEME, **OPTIONS), ["x", "sigma"]),
            (NUTS(model, max_tree_depth=3), None),
        ]
    )
    assert_posterior(kernel, key, jax.vmap)


def test_no_other_site(key):
    with pytest.raises(ValueError, match="Use `ParticleGibbs`"):
        nd.ParticleMarginal(
            lambda: numpyro.sample("x", nd.DiffusionPrior(PRIOR)), SCHEME, **OPTIONS
        ).init(key, 1, None, (), {})
