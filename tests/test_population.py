"""Kernels, discrepancies and witnesses against closed forms; a population with a joint law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import energy_distance, kstest, norm

import numpyro_diffusion as nd
from numpyro_diffusion.factors import (
    MMD,
    RBF,
    InverseMultiquadric,
    Polyharmonic,
    Polynomial,
    mmd_squared,
    witness,
    witness_flow,
)

KERNELS = [RBF(0.7), InverseMultiquadric(0.7), Polynomial(), Polyharmonic(), Polyharmonic(2.0)]
MODES = [0.5, 0.5], [[-1.5], [1.5]], [[[0.2]], [[0.2]]]


def quantiles(weights, means, variances, num: int) -> np.ndarray:
    """Points of shape `(num, 1)` that stand for a mixture on the line."""
    grid = np.linspace(-8, 8, 100_001)
    law = zip(weights, means, variances, strict=True)
    cdf = sum(w * norm.cdf(grid, m, v**0.5) for w, m, v in law)
    return np.interp((np.arange(num) + 0.5) / num, cdf, grid)[:, None]


@pytest.fixture
def clouds(rng):
    """Two clouds in the plane with one mean, as a kernel of order 2 asks for."""
    x, y = rng.standard_normal((7, 2)), 1.5 * rng.standard_normal((9, 2))
    return jnp.asarray(x - x.mean(0)), jnp.asarray(y - y.mean(0))


def test_witness_is_the_first_variation(clouds):
    x, reference = clouds
    at = jnp.asarray([0.3, -0.8])
    every = jnp.concatenate([x, at[None]])

    @eqx.filter_jit
    def both(kernel):
        gram = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(every))(every)
        cross = jax.vmap(lambda a: jnp.mean(jax.vmap(lambda b: kernel(a, b))(reference)))(every)
        # Mass e is taken from the cloud and put on the point: a quadratic in e.
        share = lambda e: jnp.append(jnp.full(len(x), (1 - e) / len(x)), e)
        squared = lambda e: share(e) @ gram @ share(e) - 2 * share(e) @ cross
        w = witness(kernel, reference, x)
        value = mmd_squared(x, reference, kernel)
        slopes = jax.vmap(jax.grad(w))(x), len(x) * jax.grad(mmd_squared)(x, reference, kernel)
        return jax.grad(squared)(0.0), w(at) - jnp.mean(jax.vmap(w)(x)), value, slopes

    for kernel in KERNELS:
        variation, expected, value, slopes = both(kernel)
        np.testing.assert_allclose(variation, expected, rtol=1e-9)
        np.testing.assert_allclose(*slopes, rtol=1e-9, atol=1e-12)
        assert value > 1e-3, kernel


def test_smoothed_kernels_are_means_over_noise(key):
    """A lead for samplers: exact for the Gaussian kernel, near for the others, none without noise."""
    x, y, v, w = jnp.asarray([[0.4, -0.3], [1.0, 0.6], [0.3, 0.1], [0.2, 0.05]])
    noise = jax.random.normal(key, (2, 40_000, 2))

    @eqx.filter_jit
    def both(kernel):
        noisy = jax.vmap(lambda a, b: kernel(x + jnp.sqrt(v) * a, y + jnp.sqrt(w) * b))(*noise)
        return kernel.smoothed(x, y, v, w), jnp.mean(noisy), kernel(x, y)

    for kernel, share in zip(KERNELS, (0.01, 0.25, 0.1, 0.5, 0.4), strict=True):
        smoothed, mean, sharp = both(kernel)
        assert abs(smoothed - mean) < share * abs(sharp - mean) + 0.002, kernel


def test_discrepancy_is_the_closed_form(clouds):
    """Gradient of the cubic kernel, as published; the energy distance, as SciPy has it."""
    x, r = map(np.asarray, clouds)
    slope = lambda a, b: 3 * (a @ b.T / 2 + 1)[..., None] ** 2 * b / 2
    n, m = len(x), len(r)
    expected = 2 / n**2 * slope(x, x).sum(1) - 2 / (n * m) * slope(x, r).sum(1)
    found = jax.jit(jax.grad(lambda x: mmd_squared(x, jnp.asarray(r), Polynomial())))(
        jnp.asarray(x)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    one, other = jnp.asarray(x[:, :1]), jnp.asarray(r[:, :1] + 0.4)
    found = jax.jit(mmd_squared, static_argnums=2)(one, other, Polyharmonic())
    np.testing.assert_allclose(found, energy_distance(one[:, 0], other[:, 0]) ** 2, rtol=1e-10)


def test_witness_slopes_are_the_closed_form():
    """Of Gaussian laws under a Gaussian kernel, and 4 (F_d - F_g) under the absolute value."""
    data, generated = quantiles([1], [1], [1], 4000), quantiles([1], [-1], [0.49], 4000)
    at = jnp.linspace(-4, 4, 33)[:, None]
    slopes = jax.jit(
        lambda w, k: jax.vmap(jax.grad(witness(k, data, generated)))(w), static_argnums=1
    )
    h2 = 0.5**2
    smooth = lambda x, m, v: (
        (h2 / (h2 + v)) ** 0.5 * np.exp(-0.5 * (x - m) ** 2 / (h2 + v)) * (m - x) / (h2 + v)
    )
    x = np.asarray(at)
    expected = 2 * (smooth(x, -1, 0.49) - smooth(x, 1, 1))
    np.testing.assert_allclose(slopes(at, RBF(0.5)), expected, atol=1e-3 * np.abs(expected).max())
    below = lambda points: np.mean(points[:, 0] < x, -1, keepdims=True)
    found = slopes(at, Polyharmonic())
    np.testing.assert_allclose(found, 4 * (below(data) - below(generated)), atol=1e-9)


def test_energy_distance_flow_copies_the_data(rng, key, optimized):
    data = 1 + rng.standard_normal((400, 1))
    start = -1 + 0.7 * rng.standard_normal((400, 1))
    x = jnp.asarray(start)
    distances = []
    for num_steps in (100, 300):
        x = witness_flow(key, x, jnp.asarray(data), num_steps=num_steps)
        distances.append(kstest(np.asarray(x)[:, 0], data[:, 0]).statistic)
    assert kstest(start[:, 0], data[:, 0]).statistic > 0.7
    assert distances[0] < 0.03 and distances[1] < 0.008, distances
    assert abs(float(x.mean()) - data.mean()) < 0.02
    assert abs(float(x.std()) - data.std()) < 0.03  # tails come last


@pytest.mark.long
def test_mean_of_a_gaussian_population(key):
    """A linear kernel compares means: mean, spread and evidence of the population's own mean."""
    num, strength, of_reference = 8, 1.5, 0.8
    prior = nd.energies.Joint(nd.Gaussian([0.0], [[1.0]]), num)
    factor = MMD([[0.5], [1.1]], Polynomial(1, 0.0), strength)
    model = nd.Annealed(levels=24)(nd.from_energy(prior + factor), key)
    result = nd.run_smc(key, model, 300, num_chains=16)
    weights = np.exp(result.log_weights - np.max(result.log_weights, -1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mean = np.asarray(result.positions["x"])[..., 0].mean(-1)
    stiff = 1 + 2 * strength
    truth = 2 * strength * of_reference / stiff
    log_evidence = -0.5 * np.log(stiff) - strength * num * of_reference**2 / stiff
    checks = {
        "mean": ((weights * mean).sum(-1), truth),
        "variance": ((weights * (mean - truth) ** 2).sum(-1), 1 / (num * stiff)),
        "evidence": (np.exp(np.asarray(result.log_evidence) - log_evidence), 1.0),
    }
    for name, (found, expected) in checks.items():
        error = found.std(ddof=1) / len(found) ** 0.5
        assert abs(found.mean() - expected) < 4 * error, (name, found.mean(), expected, error)
        assert error < 0.05 * max(expected, 0.1), (name, error)


def fixed_point(strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Law on a grid of one member of an infinite population, pulled to 85 % on the left."""
    grid = np.linspace(-4, 4, 401)
    kernel = RBF(0.5)
    gram = jax.jit(jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(grid)))(grid)
    gram = np.asarray(gram) * (grid[1] - grid[0])
    mix = lambda left: (
        left * norm.pdf(grid, -1.5, 0.2**0.5) + (1 - left) * norm.pdf(grid, 1.5, 0.2**0.5)
    )
    p, r = mix(0.5), mix(0.85)
    q, pace = p, 0.5 / (1 + strength)
    for _ in range(3000):
        new = p * np.exp(-2 * strength * gram @ (q - r))
        q = (1 - pace) * q + pace * new / (new.sum() * (grid[1] - grid[0]))
    return grid, q * (grid[1] - grid[0])


@pytest.mark.long
def test_population_is_poststratified_to_a_reference(key):
    """Half of the prior's mass is on the left, 85 % of the reference: what a large population does."""
    left = {}
    for strength in (2, 8, 32):
        grid, q = fixed_point(strength)
        left[strength] = q[grid < 0].sum() + 0.5 * q[grid == 0].sum()
    np.testing.assert_allclose(list(left.values()), [0.6847, 0.7771, 0.8242], atol=5e-4)
    reference = quantiles([0.85, 0.15], [-1.5, 1.5], [0.2, 0.2], 40)
    law = nd.energies.Joint(nd.GaussianMixture(*MODES), 64) + MMD(reference, RBF(0.5), 8.0)
    model = nd.Annealed(
        moves=nd.schemes.Moves(nd.moves.hmc(4), 4), pilot=nd.schemes.Pilot(64, conditional_ess=0.8)
    )(nd.from_energy(law), key)
    result = nd.run_smc(key, model, 64, num_chains=4)
    weights = np.exp(result.log_weights - np.max(result.log_weights, -1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    share = (np.asarray(result.positions["x"])[..., 0] < 0).mean(-1)
    found = (weights * share).sum(-1)
    assert found.std(ddof=1) / 2 < 0.006
    assert abs(found.mean() - left[8]) < 0.01, found


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="a finite number above 0"):
        Polyharmonic(-1.0)
    with pytest.raises(ValueError, match=r"Joint\(energy, num\)"):
        jax.eval_shape((nd.Gaussian() + MMD()).energy, jnp.zeros(2), jnp.asarray(0.5))
    with pytest.raises(ValueError, match="points of one shape"):
        witness_flow(jax.random.key(0), jnp.zeros((3, 2)), jnp.zeros((3, 1)))
