"""Priors from imperfect data: against the maximum of the exact observed-data likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.train import UnknownNoise, fit_imperfect

RNG = np.random.default_rng(3)
SIZE, COUNT = 4, 400
ROOT = 0.6 * RNG.standard_normal((SIZE, SIZE))
MEAN, COVARIANCE = np.array([1.5, -2.0, 0.7, 3.0]), ROOT @ ROOT.T + 0.2 * np.eye(SIZE)
CLEAN = RNG.multivariate_normal(MEAN, COVARIANCE, COUNT)
QUIET = {"progress_bar": False}


def masked(values, share=0.25):
    """A quarter of the entries missing, but never all of an example."""
    hidden = RNG.random(values.shape) < share
    hidden.reshape(len(values), -1)[:, 0] &= ~hidden.reshape(len(values), -1).all(1)
    return np.where(hidden, np.nan, values)


def twice(x):
    """Two readings of every entry."""
    return jnp.stack([x, x])


ONCE = masked(CLEAN + 0.5 * RNG.standard_normal(CLEAN.shape))
TWICE = masked(CLEAN[:, None] + 0.5 * RNG.standard_normal((COUNT, 2, SIZE)))
START = nd.Gaussian(np.nanmean(ONCE, 0), np.diag(np.nanvar(ONCE, 0)))
FLOOR = float(START.schedule.noise_level(jnp.asarray(START.t_min))) ** 2


def covariance_of(energy):
    vectors = np.asarray(energy.eigenvectors)
    return vectors * np.asarray(energy.eigenvalues) @ vectors.T


def largest_likelihood(examples, operator, sigma=None):
    """Mean, covariance and noise that maximise the exact likelihood of what is seen, by L-BFGS."""
    flat = examples.reshape(len(examples), -1)
    seen = ~np.isnan(flat)
    y, both = jnp.where(seen, flat, 0.0), seen[:, :, None] & seen[:, None]
    lower = np.tril_indices(SIZE)

    def parts(theta):
        root = jnp.zeros((SIZE, SIZE)).at[lower].set(theta[SIZE:-1])
        return theta[:SIZE], root @ root.T, jnp.exp(theta[-1]) if sigma is None else sigma

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        mean, covariance, noise = parts(theta)
        whole = operator @ (covariance + FLOOR * jnp.eye(SIZE)) @ operator.T
        whole = jnp.where(both, whole, 0.0) + jnp.eye(seen.shape[1]) * jnp.where(
            seen[:, None], noise**2, 1.0
        )
        gap = jnp.where(seen, y - operator @ mean, 0.0)
        quadratic = jnp.einsum("ni,ni->n", gap, jnp.linalg.solve(whole, gap[..., None])[..., 0])
        return 0.5 * jnp.mean(quadratic + jnp.linalg.slogdet(whole)[1])

    start = np.concatenate([MEAN, np.eye(SIZE)[lower], [-1.0]])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7})
    return tuple(np.asarray(part) for part in parts(found.x))


def assert_within_two_per_cent(result, exact):
    """Means in standard deviations, covariances in products of them."""
    mean, covariance, sigma = exact
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((np.asarray(result.energy.mean) - mean) / scale).max() < 0.02
    gap = (covariance_of(result.energy) - covariance) / np.outer(scale, scale)
    assert np.abs(gap).max() < 0.02
    assert abs(result.noise / sigma - 1) < 0.02


# ---- closed forms


def test_a_gaussian_population_is_found_with_known_noise(key):
    result = fit_imperfect(key, START, ONCE, noise=0.5, rounds=40, num_particles=32, **QUIET)
    assert_within_two_per_cent(result, largest_likelihood(ONCE, np.eye(SIZE), 0.5))
    assert result.learned and "rose by" in result.verdict and not len(result.held_out)


def test_a_gaussian_population_is_found_with_unknown_noise(key):
    result = fit_imperfect(
        key, START, TWICE, noise=UnknownNoise(1.0), observe=twice, rounds=40, num_particles=32, **QUIET
    )
    assert_within_two_per_cent(result, largest_likelihood(TWICE, np.tile(np.eye(SIZE), (2, 1))))
