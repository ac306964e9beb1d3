"""Data far sharper than the variable is known, in 32 bits: no likelihood is given up for its rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.bridge.matrix_free import widened_by_rank
from numpyro_diffusion.bridge.observed import Curvature
from numpyro_diffusion.bridge.widening import widened
from numpyro_diffusion.twists.low_rank import LowRank

# More data than coordinates: whatever the variable, something is left over.
H = np.array([[1.0, 2.5], [0.5, -1.0], [1.0, 1.0]])
Y, U = np.array([1.2, 0.3, 0.8]), np.array([-8.4, -147.0])


def exact(variance, sigma):
    covariance = variance * H @ H.T + sigma**2 * np.eye(3)
    gap = Y - H @ U
    values, vectors = np.linalg.eigh(covariance)
    terms = (vectors.T @ gap) ** 2 / values + np.log(2 * np.pi * values)
    return -0.5 * terms.sum()


@pytest.mark.parametrize("by_rank", [True, False])
@pytest.mark.parametrize("variance", [6400.0, 100.0, 1.0])
def test_a_widened_likelihood_keeps_its_digits(by_rank, variance):
    h, y, u = (jnp.asarray(value, jnp.float32) for value in (H, Y, U))
    for sigma in (1.0, 0.1, 0.01, 0.001):
        s = jnp.float32(sigma)
        log_likelihood = lambda x, s=s: jnp.sum(norm.logpdf(y, h @ x["x"], s))
        if by_rank:
            root = LowRank(
                *2 * [jnp.zeros((1, 1, 2), jnp.float32)], jnp.full(1, variance, jnp.float32)
            )
            curvature = Curvature(times=lambda v, s=s: {"x": h.T @ (h @ v["x"]) / s**2})
            found = widened_by_rank(log_likelihood, curvature, {"x": u}, {"x": root}, jnp.nan)
        else:
            root = jnp.full(2, variance**0.5, jnp.float32)
            found = widened(log_likelihood, {"x": u}, {"x": root}, jnp.nan)
        assert found.dtype == jnp.float32
        truth = exact(variance, sigma)
        # A step of Newton's method leaves the rounding of a datum that fits, a Cholesky factor that of a
        # determinant; sharper data cost more.
        allowed = 1e-2 + 2e-5 * abs(truth) if sigma >= 0.01 else 0.02 * abs(truth)
        assert abs(float(found) - truth) < allowed, (sigma, found, truth)
    for sigma in (1e-4, 1e-6, 1e-8):  # never better than it is: a noise level would run away there
        s = jnp.float32(sigma)
        value = widened_by_rank(
            lambda x, s=s: jnp.sum(norm.logpdf(y, h @ x["x"], s)),
            Curvature(times=lambda v, s=s: {"x": h.T @ (h @ v["x"]) / s**2}),
            {"x": u},
            {
                "x": LowRank(
                    *2 * [jnp.zeros((1, 1, 2), jnp.float32)], jnp.full(1, variance, jnp.float32)
                )
            },
            jnp.float32(0.0),
        )
        assert value < 0.5 * exact(variance, max(sigma, 1e-6))


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(nd.GaussianMixture()))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(jnp.asarray(H) @ x, sigma).to_event(1), obs=y)


@pytest.mark.slow
def test_a_noise_level_does_not_run_away(key):
    """In 32 bits it once ran to 2e-11, with a log evidence of 8e20."""
    jax.config.update("jax_enable_x64", False)
    try:
        runs = []
        for scheme, twist in (
            (nd.Twisted(levels=50), nd.twists.NoisedObservation()),
            (nd.LikelihoodTempered(), None),
        ):
            smc = nd.SMC(model, scheme, twist=twist, num_particles=500, progress_bar=False)
            runs.append(smc.run(jax.random.key(1), jnp.asarray(Y, jnp.float32)))
    finally:
        jax.config.update("jax_enable_x64", True)
    guided, tempered = runs
    assert float(guided.get_samples()["sigma"].min()) > 1e-3
    # The reverse sampler of 50 steps has a distribution of its own, some tenths of a nat away.
    assert abs(guided.log_evidence - tempered.log_evidence) < 4 * guided.log_evidence_error + 0.5
