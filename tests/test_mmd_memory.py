"""A population made one by one, with and without conditions: its limit, and its likeness to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from test_population import fixed_point, quantiles

import numpyro_diffusion as nd
from numpyro_diffusion.energies import Noised
from numpyro_diffusion.factors import (
    MMD,
    RBF,
    MMDMemory,
    Polynomial,
    Product,
    mmd_squared,
    with_conditions,
)

REFERENCE = quantiles([0.85, 0.15], [-1.5, 1.5], [0.2, 0.2], 400)
SAME = Product(RBF(0.7), RBF(1e-3), 1)  # conditions count as equal, or not at all


def clean(x):
    return Noised(x, x, jnp.zeros_like(x), jnp.asarray(0.0), jnp.asarray(True))


def value(factor):
    return lambda x: factor.log_value(clean(x))


@pytest.mark.parametrize(("strength", "left"), [(2.0, 0.6847), (8.0, 0.7771), (32.0, 0.8242)])
def test_a_large_population_goes_on_as_it_is(strength, left):
    """The next member of a population in the limit has the distribution of the limit."""
    grid, q = fixed_point(strength)
    finished = np.interp((np.arange(1500) + 0.5) / 1500, np.cumsum(q), grid + 0.01)[:, None]
    factor = MMDMemory(finished, REFERENCE, RBF(0.5), strength)
    log_h = np.asarray(jax.jit(lambda f, x: jax.vmap(value(f))(x))(factor, grid[:, None]))
    prior = norm.pdf(grid, -1.5, 0.2**0.5) + norm.pdf(grid, 1.5, 0.2**0.5)
    new = prior * np.exp(log_h)
    new /= new.sum()
    assert abs(new[grid < 0].sum() + 0.5 * new[grid == 0].sum() - left) < 0.004
    np.testing.assert_allclose(new, q, atol=0.01 * q.max())


def test_slope_of_the_newest_member(rng):
    """In closed form for the cubic kernel, as published; N times that of the discrepancy."""
    x, finished, r = (
        rng.standard_normal(3),
        rng.standard_normal((4, 3)),
        rng.standard_normal((6, 3)),
    )
    slope = lambda b: 3 * ((b @ x) / 3 + 1)[:, None] ** 2 * b / 3
    every = np.concatenate([finished, x[None]])
    expected = 2 / 25 * slope(every).sum(0) - 2 / 30 * slope(r).sum(0)
    factor = MMDMemory(finished, r, Polynomial(), 1.7)
    found = jax.grad(value(factor))(jnp.asarray(x))
    np.testing.assert_allclose(found, -1.7 * 5 * expected, rtol=1e-10)


def test_it_is_the_population_given_the_others(rng):
    """Up to a constant, also at a noisy level where the others are clean."""
    finished, r = jnp.asarray(rng.standard_normal((4, 2))), jnp.asarray(rng.standard_normal((5, 2)))
    joint, one = MMD(r, RBF(0.6), 3.0), MMDMemory(finished, r, RBF(0.6), 3.0)
    variance = jnp.asarray([0.3, 0.1])

    def both(x):
        noised = Noised(x, x, variance, jnp.asarray(0.5), jnp.asarray(False))
        every = jnp.concatenate([finished, x[None]])
        spread = jnp.concatenate([jnp.zeros_like(finished), variance[None]])
        whole = Noised(every, every, spread, jnp.asarray(0.5), jnp.asarray(False))
        return joint.log_value(whole) - one.log_value(noised), one.log_value(noised)

    gaps, values = jax.jit(jax.vmap(both))(jnp.asarray(rng.standard_normal((6, 2))))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-10)
    assert values.std() > 0.1


def test_conditions_are_populations_of_their_own(rng):
    """Two prompts that have nothing in common: the discrepancies of both, weighed by their shares squared."""
    x, r = (jnp.asarray(rng.standard_normal((n, 2))) for n in (6, 10))
    of_x, of_r = jnp.arange(6.0)[:, None] % 2, jnp.arange(10.0)[:, None] % 2
    whole = mmd_squared(with_conditions(x, of_x), with_conditions(r, of_r), SAME)
    parts = [mmd_squared(x[i::2], r[i::2], RBF(0.7)) for i in (0, 1)]
    assert whole == pytest.approx(float(sum(parts)) / 4, rel=1e-10)
    factor = MMD((r, of_r), SAME, 2.0, conditions=of_x)
    assert factor.log_value(clean(x)) == pytest.approx(-2 * 6 * float(whole), rel=1e-10)

    # The next member of prompt 1 sees prompt 1 alone, as three of seven and five of ten.
    new = MMDMemory((x, of_x), (r, of_r), SAME, 2.0, condition=jnp.ones(1))
    k = lambda a, b: np.exp(-0.5 * np.sum((a - b) ** 2, -1) / 0.7**2)
    for at in rng.standard_normal((3, 2)):
        expected = (1 + 2 * k(at, x[1::2]).sum()) / 7 - 2 * k(at, r[1::2]).sum() / 10
        assert new.log_value(clean(jnp.asarray(at))) == pytest.approx(-2 * float(expected))


def test_product_kernel_in_noise_is_the_product():
    """Coordinates have independent noise, so that means of products are products of means."""
    x, y, v, w = np.random.default_rng(0).uniform(0.1, 1.0, (4, 3))
    found = Product(RBF(0.7), Polynomial(2), 1).smoothed(*map(jnp.asarray, (x, y, v, w)))
    first = RBF(0.7).smoothed(*(jnp.asarray(a[:2]) for a in (x, y, v, w)))
    second = Polynomial(2).smoothed(*(jnp.asarray(a[2:]) for a in (x, y, v, w)))
    assert found == pytest.approx(float(first * second))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Draw the first member from the prior"):
        MMDMemory(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="points of one shape"):
        MMDMemory(np.zeros((3, 1)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="one condition a point"):
        with_conditions(jnp.zeros((3, 2)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match="`with_conditions\\(points, conditions\\)` makes them"):
        Product()(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"Joint\(energy, num\)"):
        value(MMDMemory())(jnp.zeros(3))
    assert nd.factors.MMDMemory is MMDMemory
