"""The noised uniform law against scipy in many digits, in both precisions, near walls and far beyond them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import numpyro_diffusion as nd
from numpyro_diffusion.energies import log_normal_interval


def reference(m, h):
    """The same by panels shorter than the law's length there, relative to its density at the near end."""
    near = max(abs(m) - h, 0.0)
    low, high = max(abs(m) - h, -12.0), min(abs(m) + h, near + 40 / (1 + near))
    edges = np.linspace(low, high, 2 + int(2 * (high - low) * (1 + near)))
    half, nodes_weights = 0.5 * np.diff(edges), np.polynomial.legendre.leggauss(20)
    z = edges[:-1, None] + half[:, None] * (1 + nodes_weights[0])
    value = np.sum(half * (np.exp(-0.5 * (z - near) * (z + near)) @ nodes_weights[1]))
    return np.log(value) - 0.5 * near**2 - 0.5 * np.log(2 * np.pi)


M = [0.0, 0.3, -0.3, 2.0, 11.0, 12.5, -40.0, 300.0, 2000.0]
H = [1e-4, 1e-3, 0.02, 0.2, 0.6, 3.0, 12.0, 30.0, 310.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-11), (jnp.float32, 4e-6)])
def test_interval_of_a_normal(dtype, tolerance):
    m, h = (np.asarray(a.ravel(), dtype) for a in np.meshgrid(M, H))
    both = jax.jit(
        jax.vmap(jax.value_and_grad(lambda m, h: log_normal_interval(m, h), argnums=(0, 1)))
    )
    value, slopes = both(jnp.asarray(m), jnp.asarray(h))
    assert value.dtype == dtype
    wide_m, wide_h = m.astype(float), h.astype(float)
    exact = np.array([reference(*pair) for pair in zip(wide_m, wide_h, strict=True)])
    np.testing.assert_allclose(value, exact, rtol=tolerance, atol=tolerance)
    # d/dm and d/dh of the integral are the densities at its ends.
    ends = [stats.norm.logpdf(wide_m + side * wide_h) - exact for side in (1, -1)]
    upper, lower = np.exp(ends[0]), np.exp(ends[1])
    # Their ratio to the integral loses digits of its own, as the squares and the difference of the ends.
    lost = 3e-16 * (wide_m**2 + wide_h**2 + np.abs(wide_m) / wide_h)
    for slope, truth in zip(slopes, (upper - lower, upper + lower), strict=True):
        slack = 8 * tolerance * (1 + upper + lower) + lost * (upper + lower)
        assert (np.abs(slope - truth) < slack).all(), np.c_[wide_m, wide_h, slope, truth]


def test_noised_density_integrates_to_one_and_has_its_moments():
    box = nd.energies.Box([-1.0], [2.5])
    for log_snr in (10.0, 2.0, -6.0):
        t = box.schedule.time(jnp.asarray(log_snr))
        alpha, sigma = map(float, box.schedule(t))
        x = np.linspace(-alpha - 10 * sigma, 2.5 * alpha + 10 * sigma, 200_001)[:, None]
        p = np.exp(-np.asarray(jax.jit(jax.vmap(box.energy, (0, None)))(jnp.asarray(x), t)))
        mass = integrate.trapezoid(p, x[:, 0])
        mean = integrate.trapezoid(p * x[:, 0], x[:, 0])
        variance = integrate.trapezoid(p * (x[:, 0] - mean) ** 2, x[:, 0])
        np.testing.assert_allclose(mass, 1, rtol=1e-9)
        np.testing.assert_allclose([mean, variance], np.ravel(box.moments(t)), rtol=1e-8)


def test_corners_are_checked():
    with pytest.raises(ValueError, match="low < high"):
        nd.energies.Box([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="shape of one example"):
        nd.energies.Box([0.0], [1.0, 1.0])
