"""Density fields: stationarity, linearity and a fixed point in closed form; the fit and what it draws."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from numpyro_diffusion.density import (
    DensityField,
    bellman_sample,
    fit_density_field,
    project_field,
)

GRID = np.linspace(-5.0, 12.0, 1701)
STEP = GRID[1] - GRID[0]
RNG = np.random.default_rng(0)


def normal(mean, variance):
    return DensityField.of(
        lambda x: jnp.sum(-0.5 * (x - mean) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance))
    )


PAIR = DensityField.mix([normal(-1.0, 0.25), normal(1.0, 0.25)], [0.5, 0.5])
NODES = np.linspace(-4.0, 6.0, 61)
REWARD = NODES[:, None], norm.pdf(NODES, 1)  # R ~ N(1, 1), by the trapezoidal rule


def on(field, grid=GRID):
    """Values and gradients on a grid of one dimension."""
    points = jnp.asarray(grid)[:, None]
    return (
        np.asarray(jax.vmap(field.value)(points)),
        np.asarray(jax.vmap(field.gradient)(points))[:, 0],
    )


# ---- linearity


def test_a_mixture_is_linear_in_the_densities():
    field = DensityField.mix([normal(-1.0, 0.25), normal(2.0, 1.0)], [0.75, 0.25])
    value, gradient = on(field)
    exact = 0.75 * norm.pdf(GRID, -1, 0.5) + 0.25 * norm.pdf(GRID, 2, 1)
    np.testing.assert_allclose(value, exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, np.gradient(exact, GRID), atol=2e-3)


def test_an_affine_push_forward():
    """1 + N(0, 1) + 0.7 N(2, 0.25)."""
    value, gradient = on(normal(2.0, 0.25).push_affine(0.7, *REWARD))
    law = norm(2.4, (1 + 0.49 * 0.25) ** 0.5)
    np.testing.assert_allclose(value, law.pdf(GRID), atol=1e-4)
    np.testing.assert_allclose(gradient, np.gradient(law.pdf(GRID), GRID), atol=1e-3)


def test_powers_of_the_scale_in_two_dimensions():
    shifts = RNG.normal(size=(3, 2))
    pushed, x = normal(0.0, 1.0).push_affine(0.5, shifts), jnp.array([0.3, -0.2])
    exact = lambda x: jnp.mean(jnp.exp(-2 * jnp.sum((x - shifts) ** 2, -1)) * 2 / jnp.pi)
    np.testing.assert_allclose(pushed.value(x), exact(x), rtol=1e-6)
    np.testing.assert_allclose(pushed.gradient(x), jax.grad(exact)(x), rtol=1e-5)


def test_discounted_returns_are_the_fixed_point():
    """Z = R + 0.7 Z with R ~ N(1, 1): N(10/3, 1/0.51)."""
    points, centers = np.linspace(-5, 12, 171)[:, None], np.linspace(-5, 12, 69)[:, None]
    field = normal(0.0, 1.0)
    for _ in range(25):
        field = project_field(field.push_affine(0.7, *REWARD), points, centers, 0.4)
    value, gradient = on(field)
    law = norm(1 / 0.3, 0.51**-0.5)
    assert 0.5 * STEP * np.abs(value - law.pdf(GRID)).sum() < 5e-3
    assert 0.5 * STEP * np.abs(gradient - np.gradient(law.pdf(GRID), GRID)).sum() < 5e-3
    np.testing.assert_allclose(STEP * (GRID * value).sum(), 1 / 0.3, rtol=2e-3)


# ---- the sampler


def drawn(start, time, field=PAIR, num_steps=400):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bellman_sample(jax.random.key(0), field, start, time=time, num_steps=num_steps)


def test_the_density_is_stationary():
    start = RNG.choice([-1.0, 1.0], (20_000, 1)) + 0.5 * RNG.normal(size=(20_000, 1))
    draws = drawn(start, 10.0).draws
    np.testing.assert_allclose(draws.var(), 1.25, atol=0.02)
    share = (np.abs(draws) < 0.5).mean()
    np.testing.assert_allclose(share, norm.cdf(-1) - norm.cdf(-3), atol=0.01)


@pytest.mark.parametrize(("time", "variance"), [(5.0, 1.135), (20.0, 1.256)])
def test_it_gets_there_from_elsewhere(time, variance):
    found = drawn(0.3 * RNG.normal(size=(20_000, 1)), time)
    np.testing.assert_allclose(found.draws.var(), variance, atol=0.02)
    assert (np.median(found.turnover) > 1) and "unweighted" in found.target


def test_in_many_dimensions_it_stalls_and_says_so(key):
    """The clock of a standard normal: at most (2 pi)^(-d/2)."""
    with pytest.warns(UserWarning, match="turnover below 1.*in more than three or four dimensions"):
        found = bellman_sample(key, normal(0.0, 1.0), 0.5 * RNG.normal(size=(200, 8)), num_steps=10)
    assert found.turnover.max() < 20 * (2 * np.pi) ** -4 / 0.2
    assert found.draws.var() < 0.3


def test_a_path_that_leaves_is_named(key):
    field = DensityField(lambda x: 1.0 + 0 * x[0], lambda x: x**3)
    with pytest.raises(FloatingPointError, match="1 of 2 paths.*first: 1, from .9.0."):
        bellman_sample(key, field, [[0.0], [9.0]], time=0.2, num_steps=10)


# ---- the fit

DATA = np.where(RNG.random((3000, 1)) < 0.3, -2.0, 1.0) + 0.5 * RNG.normal(size=(3000, 1))


def truth(noise):
    sigma = (0.25 + noise**2) ** 0.5
    value = 0.3 * norm.pdf(GRID, -2, sigma) + 0.7 * norm.pdf(GRID, 1, sigma)
    return value, np.gradient(value, GRID)


def test_fitted_fields_are_the_noised_density_and_its_gradient(key):
    noise = 0.2
    value, gradient = on(fit_density_field(key, DATA, noise=noise))
    exact, slope = truth(noise)
    assert 0.5 * STEP * np.abs(value - exact).sum() < 0.04
    assert np.sqrt(np.mean((gradient - slope) ** 2) / np.mean(slope**2)) < 0.1
    np.testing.assert_allclose(STEP * value[GRID < -0.5].sum(), 0.3, atol=0.03)
    np.testing.assert_allclose(STEP * value.sum(), 1.0, atol=0.02)


def test_an_example_is_not_its_own_neighbour(key):
    """Examples so far apart that each is alone: the density at them is that of the others, none."""
    apart = np.arange(10.0)[:, None]
    value, gradient = on(fit_density_field(key, apart, noise=0.1))
    assert np.abs(value).max() < 1e-12 and np.abs(gradient).max() < 1e-12


def test_the_default_noise_is_the_bandwidth_of_the_rate(key):
    value, _ = on(fit_density_field(key, DATA))
    noise = DATA.std() * 3000**-0.2
    assert STEP * np.abs(value - truth(noise)[0]).sum() < STEP * np.abs(value - truth(0)[0]).sum()


def test_draws_of_fitted_fields_are_those_of_the_exact_ones(key):
    """On their way from one to one to three to seven, with the same noise."""
    noise, close = 0.2, np.where(RNG.random((2000, 1)) < 0.3, -1.0, 1.0)
    close = close + 0.5 * RNG.normal(size=close.shape)
    field = fit_density_field(key, close, noise=noise, num_centers=40)
    variance = 0.25 + noise**2
    exact = DensityField.mix([normal(-1.0, variance), normal(1.0, variance)], [0.3, 0.7])
    start = RNG.choice([-1.0, 1.0], (3000, 1)) + 0.5 * RNG.normal(size=(3000, 1))
    found, other = (drawn(start, 15.0, f, 200).draws for f in (field, exact))
    shares = [(draws < 0).mean() for draws in (found, other)]
    assert abs(shares[0] - shares[1]) < 0.03 and shares[1] < 0.44
    np.testing.assert_allclose(found.mean(), other.mean(), atol=0.06)
    np.testing.assert_allclose(found.var(), other.var(), rtol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: fit_density_field(k, np.zeros((20, 2))), "`data` must vary.*give `noise`"),
        (lambda k: fit_density_field(k, np.zeros(20)), r"`data` must be finite.*of shape.*\(20,\)"),
        (
            lambda k: fit_density_field(k, DATA, width=-1.0),
            "`width` must be a finite number above 0",
        ),
        (lambda k: fit_density_field(k, DATA, num_centers=0), "`num_centers`.*at least 1"),
        (lambda k: PAIR.mix([PAIR], [1, 1]), "one weight a field; got 1 and 2"),
        (lambda k: PAIR.mix([PAIR], [-1]), "`weights` must be one a part, not negative"),
        (lambda k: PAIR.mix([PAIR, PAIR], [1, 1]), "must sum to 1; got"),
        (lambda k: PAIR.push_affine(0.0, np.ones((2, 1))), "`scale` must be a finite number above"),
        (lambda k: PAIR.push_affine(0.5, np.ones(2)), r"`shifts` must be finite.*shape \(2,\)"),
        (lambda k: PAIR.push_affine(0.5, np.ones((2, 1)), [1.0]), "one weight a shift; got 2 and"),
        (
            lambda k: project_field(PAIR, np.ones((3, 1)), np.ones((2, 2)), 1.0),
            "`points` and `cent",
        ),
        (lambda k: bellman_sample(k, PAIR, np.ones(3)), "`start` must be finite.*of shape"),
        (
            lambda k: bellman_sample(k, PAIR, np.ones((3, 1)), time=-1.0),
            "`time` must be .*number above 0",
        ),
    ],
)
def test_what_is_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
