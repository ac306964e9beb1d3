"""What every covariance of a reverse-diffusion draw promises: any is valid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_unbiased
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
OPERATOR, DATA, SIGMA = np.array([[1.0, 0.4], [0.2, -1.0]]), np.array([1.5, 0.7]), 0.4


def test_flatten_unflatten_and_repr(covariance):
    leaves, structure = jax.tree.flatten(covariance)
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), covariance)
    assert repr(covariance).startswith(type(covariance).__name__ + "(")


def test_evidence_without_moves_at_a_few_coarse_levels(covariance):
    """No moves to mend anything: the weights alone make up for the draws."""
    prior = nd.Gaussian(MEAN, COVARIANCE)
    log_likelihood = lambda x: jnp.sum(
        jax.scipy.stats.norm.logpdf(jnp.asarray(DATA), jnp.asarray(OPERATOR) @ x, SIGMA)
    )
    bridge = nd.from_energy(prior, log_likelihood, twist=nd.twists.Moments())
    floor = float(bridge.noise(jnp.zeros(()))["x"]) ** 2
    total = OPERATOR @ (COVARIANCE + floor * np.eye(2)) @ OPERATOR.T + SIGMA**2 * np.eye(2)
    scheme = nd.ReverseDiffusion(levels=24, covariance=covariance, moves=0)
    model = scheme(bridge, jax.random.key(0))
    assert scheme.evaluations_per_level(bridge) == bridge.evaluations + covariance.evaluations(
        bridge
    )
    result = nd.run_smc(jax.random.key(1), model, 200, num_chains=150)
    assert_unbiased(result.log_evidence, multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, total))
