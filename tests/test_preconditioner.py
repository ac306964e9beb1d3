"""Round coordinates: a linear map and its inverse, found from a cloud, that make moves longer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.smc.preconditioner import Preconditioner, principal_directions

SCALE = {"a": jnp.array(0.7), "b": jnp.array([[2.0, 0.1]])}
ROWS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))[0].T
ROUND = Preconditioner(SCALE, jnp.asarray(ROWS), jnp.array([3.0, 0.2]))


def flat(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def test_it_is_a_linear_map_with_an_inverse():
    basis = np.eye(3)
    tree = lambda v: {"a": jnp.asarray(v[0]), "b": jnp.asarray(v[1:][None])}
    matrix = np.stack([flat(ROUND.to_model(jnp.asarray(v))) for v in basis], 1)
    stretch = np.eye(3) + ROWS.T @ np.diag([2.0, -0.8]) @ ROWS
    np.testing.assert_allclose(matrix, np.diag([0.7, 2.0, 0.1]) @ stretch, atol=1e-12)
    z = tree(np.array([0.3, -1.2, 0.8]))
    np.testing.assert_allclose(flat(ROUND.to_model(ROUND.to_round(z))), flat(z), rtol=1e-12)
    g = np.asarray(ROUND.gradient_to_round(z))
    np.testing.assert_allclose(g, matrix.T @ flat(z), rtol=1e-12)
    np.testing.assert_allclose(
        flat(ROUND.gradient_to_model(ROUND.gradient_to_round(z))), flat(z), rtol=1e-12
    )


def test_directions_of_a_cloud_and_no_others():
    rng = np.random.default_rng(1)
    d, n = 12, 400
    long = rng.normal(size=d)
    long /= np.linalg.norm(long)
    x = rng.normal(size=(n, d)) + 4.0 * rng.normal(size=(n, 1)) * long
    scale = {"x": jnp.asarray(x.std(0))}
    found = principal_directions({"x": jnp.asarray(x)}, scale, 3)
    assert found.directions is not None and found.stretch is not None
    covariance = np.eye(d) + 16 * np.outer(long, long)
    sd = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
    top = int(np.argmax(np.asarray(found.stretch)))
    assert abs(np.asarray(found.directions)[top] @ vectors[:, -1]) > 0.98
    np.testing.assert_allclose(found.stretch[top] ** 2, values[-1], rtol=0.2)
    # Independent coordinates have no directions.
    x = rng.normal(size=(n, d))
    noise = principal_directions({"x": jnp.asarray(x)}, {"x": jnp.asarray(x.std(0))}, 3)
    assert np.sum(np.abs(np.log(np.asarray(noise.stretch))) > 0.2) == 0


def test_moves_of_correlated_coordinates_go_farther():
    """Twelve coordinates that nearly agree: step sizes grow, and the evidence stays that of the law."""
    d = 12
    covariance = 0.02 * np.eye(d) + 0.98
    prior = nd.Gaussian(np.zeros(d), covariance)
    y, sigma = 0.8, 0.3
    bridge = nd.from_energy(prior, lambda x: jax.scipy.stats.norm.logpdf(y, x[0], sigma))
    floor = float(bridge.noise(jnp.zeros(()))["x"]) ** 2
    truth = float(jax.scipy.stats.norm.logpdf(y, 0.0, (1.0 + floor + sigma**2) ** 0.5))
    steps, spread = [], []
    for rank in (0, 2):
        scheme = nd.Annealed(levels=40, moves=nd.schemes.Moves(num=1, rank=rank))
        model = scheme(bridge, jax.random.key(0))
        result = nd.run_smc(jax.random.key(1), model, 200, num_chains=60)
        ratio = np.exp(np.asarray(result.log_evidence) - truth)
        assert abs(ratio.mean() - 1) < 3 * ratio.std(ddof=1) / 60**0.5
        stretch = model.levels.preconditioner.stretch
        longest = 1.0 if stretch is None else float(stretch[-1].max())
        steps.append(longest * float(model.levels.step_size[-1]))
        spread.append(ratio.std())
    assert steps[1] > 2 * steps[0]


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 0; got -1"):
        nd.Annealed(moves=nd.schemes.Moves(rank=-1))
