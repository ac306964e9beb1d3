"""Four densities of one model, each by a method of its own, and what the estimators make of them.

A mixture on the line with the score $\\nabla(\\log p_t - 0.4 \\alpha_t^2 \\sin 1.5 x)$. Time here is $B$,
with $\\alpha = e^{-B/2}$; densities are those of $x_B$ at `t_min`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import solve_banded

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    FlowDensity,
    GaussHermite,
    GaussLegendre,
    NormalizedEnergy,
    ScoreFormula,
    density_certificate,
)
from numpyro_diffusion.density.certificate import default_estimators

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.5]), np.array([0.5, 0.8])
SIZE, WAVE = 0.4, 1.5
B_MIN, B_MAX = np.log1p(np.exp(-11.0)), np.log1p(np.exp(9.2))  # the default ends of a schedule
GRID = np.linspace(-8.0, 8.0, 1601)
STEP = GRID[1] - GRID[0]
PLACES = np.array([-3.0, -2.0, -1.0, -0.4, 0.0, 0.5, 1.5, 3.0])


def truth(x, b):
    """$\\log p$, the score and its derivative, of the mixture at B."""
    a = np.exp(-b / 2)
    v = a**2 * DEVIATIONS**2 + 1 - a**2
    gap = x[..., None] - a * MEANS
    terms = np.log(WEIGHTS) - 0.5 * np.log(2 * np.pi * v) - 0.5 * gap**2 / v
    log_p = np.logaddexp.reduce(terms, -1)
    share = np.exp(terms - log_p[..., None])
    score = (share * -gap / v).sum(-1)
    return log_p, score, (share * (gap**2 / v**2 - 1 / v)).sum(-1) - score**2


def model(x, b):
    """The model's score and its derivative."""
    size = SIZE * np.exp(-b)
    _, score, slope = truth(x, b)
    score = score - size * WAVE * np.cos(WAVE * x)
    return score, slope + size * WAVE**2 * np.sin(WAVE * x)


def formula(x):
    """The score formula with the divergence of the score, by quadrature in both."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(48)
    shares = shares / shares.sum()
    log_b, weights = np.polynomial.legendre.leggauss(96)
    middle, half = 0.5 * np.log(B_MAX * B_MIN), 0.5 * np.log(B_MAX / B_MIN)
    times = np.exp(middle + half * log_b)
    noised = lambda b: np.exp(-(b - B_MIN) / 2) * x[:, None] + np.sqrt(-np.expm1(B_MIN - b)) * nodes
    value = truth(noised(B_MAX), B_MAX)[0] @ shares
    for b, weight in zip(times, half * times * weights, strict=True):
        score, slope = model(noised(b), b)
        value -= weight * ((0.5 + slope + 0.5 * score**2) @ shares)
    return value


def score_gap():
    """$\\tfrac12 \\int \\mathbb{E} |\\Delta \\nabla \\log p|^2 dB$."""
    places, weights = np.polynomial.legendre.leggauss(60)
    times = 0.5 * (B_MAX - B_MIN) * (places + 1) + B_MIN
    error = lambda b: (SIZE * WAVE * np.exp(-b) * np.cos(WAVE * GRID)) ** 2
    means = [STEP * (np.exp(truth(GRID, b)[0]) @ error(b)) for b in times]
    return 0.5 * 0.5 * (B_MAX - B_MIN) * (weights @ means)


def diffusion():
    """Log density of the reverse diffusion on the grid: its Fokker-Planck equation, Crank-Nicolson."""
    times = np.linspace(B_MAX, B_MIN, 1501)
    p, edges = np.exp(truth(GRID, B_MAX)[0]), 0.5 * (GRID[1:] + GRID[:-1])
    for b, after in zip(times[:-1], times[1:], strict=True):
        drift = 0.5 * edges + model(edges, 0.5 * (b + after))[0]
        ahead, back = 0.5 * drift + 0.5 / STEP, 0.5 * drift - 0.5 / STEP  # flux of each neighbour
        lower, upper = ahead, -back
        diagonal = np.append(-ahead, 0.0) + np.append(0.0, back)
        step = 0.5 * (b - after) / STEP
        right = p + step * (diagonal * p)
        right[1:] += step * lower * p[:-1]
        right[:-1] += step * upper * p[1:]
        bands = np.zeros((3, len(p)))
        bands[0, 1:], bands[1], bands[2, :-1] = -step * upper, 1 - step * diagonal, -step * lower
        p = solve_banded((1, 1), bands, right)
    return np.log(np.maximum(p, 1e-300))


def flow(x):
    """Log density of the probability flow, by SciPy."""

    def slope(b, state):
        z = state[: len(x)]
        score, change = model(z, b)
        return np.concatenate([-0.5 * (z + score), -0.5 * (1 + change)])

    start = np.concatenate([x, np.zeros(len(x))])
    end = solve_ivp(slope, (B_MIN, B_MAX), start, rtol=1e-9, atol=1e-9, method="DOP853").y[:, -1]
    return truth(end[: len(x)], B_MAX)[0] + end[len(x) :]


def energy_on_grid():
    log_p = truth(GRID, B_MIN)[0] - SIZE * np.exp(-B_MIN) * np.sin(WAVE * GRID)
    return log_p - np.log(STEP * np.exp(log_p).sum())


class Densities(NamedTuple):
    """Log densities on the grid."""

    truth: np.ndarray
    formula: np.ndarray
    diffusion: np.ndarray
    flow: np.ndarray
    energy: np.ndarray

    def mean(self, name):
        """Over the law of the data."""
        return STEP * (np.exp(self.truth) @ getattr(self, name))


@pytest.fixture(scope="module")
def exact():
    return Densities(
        truth(GRID, B_MIN)[0], formula(GRID), diffusion(), flow(GRID), energy_on_grid()
    )


@pytest.fixture(scope="module")
def prior():
    mixture = nd.GaussianMixture(WEIGHTS, MEANS[:, None], DEVIATIONS[:, None, None] ** 2)

    def energy(mixture, x, t):
        alpha_t, _ = mixture.schedule(t)
        return mixture.energy(x, t) + SIZE * alpha_t**2 * jnp.sin(WAVE * x[0])

    log_p = truth(GRID, B_MIN)[0] - SIZE * np.exp(-B_MIN) * np.sin(WAVE * GRID)
    mean, variance = (np.asarray(m) for m in mixture.moments(jnp.asarray(mixture.t_min)))
    return nd.EnergyFunction(
        energy,
        1,
        params=mixture,
        mean=mean,
        variance=variance,
        log_normalizer=float(np.log(STEP * np.exp(log_p).sum())),
    )


def at(values, x):
    """Values of a grid at points in the units of the data, with the Jacobian of the scaling."""
    a = np.exp(-B_MIN / 2)
    return np.interp(a * x, GRID, values) + np.log(a)


def test_the_four_densities_of_one_model(exact):
    """Numbers found once, and what theory says of their order."""
    at_zero = {name: float(np.interp(0.0, GRID, getattr(exact, name))) for name in exact._fields}
    expected = {"truth": -2.809, "formula": -2.533, "diffusion": -2.528, "flow": -2.429}
    expected |= {"energy": -2.749}
    for name, value in expected.items():
        assert abs(at_zero[name] - value) < 6e-4, (name, at_zero[name])
    divergence = {n: exact.mean("truth") - exact.mean(n) for n in exact._fields[1:]}
    known = {"formula": 0.0453, "diffusion": 0.0408, "flow": 0.0643, "energy": 0.0333}
    for name, value in known.items():
        assert abs(divergence[name] - value) < 6e-5, (name, divergence[name])
    # A lower bound of the diffusion's density at every point, and not of the others.
    seen = np.exp(exact.truth) > 1e-6
    assert np.all(exact.formula[seen] < exact.diffusion[seen] + 1e-4)
    assert np.any(exact.formula[seen] > exact.energy[seen] + 0.05)
    assert np.any(exact.formula[seen] > exact.flow[seen] + 0.05)
    masses = {n: STEP * np.exp(getattr(exact, n)).sum() for n in exact._fields}
    assert abs(masses["formula"] - 0.9957) < 1e-4
    for name in ("truth", "diffusion", "flow", "energy"):
        assert abs(masses[name] - 1) < 1e-4, name
    # What the bound is short of the truth is the error of the score.
    np.testing.assert_allclose(divergence["formula"], score_gap(), rtol=1e-4)


def test_the_estimators_find_these_numbers(exact, prior):
    sharp = ScoreFormula(GaussLegendre(32), GaussHermite(32))
    for estimator, name, allowed in (
        (sharp, "formula", 2e-4),
        (FlowDensity(rtol=1e-7, atol=1e-7), "flow", 2e-4),
        (NormalizedEnergy(), "energy", 1e-5),
    ):
        found = estimator(prior, PLACES[:, None])
        expected = at(getattr(exact, name), PLACES)
        np.testing.assert_allclose(found.value, expected, atol=allowed, err_msg=name)
        assert (found.standard_error == 0).all()


def test_the_certificate_averages_them_over_data(exact, prior):
    rng = np.random.default_rng(0)
    part = rng.choice(2, 400, p=WEIGHTS)
    data = (MEANS[part] + DEVIATIONS[part] * rng.normal(size=400))[:, None]
    found = density_certificate(prior, data, jax.random.key(1))
    assert found.names == ("score formula", "flow", "energy") and found.num_examples == 400
    assert "lower bound" in found.laws[0] and "flow" in found.laws[1] and "energy" in found.laws[2]
    columns = ("formula", "flow", "energy")
    for i, first in enumerate(columns):
        error = found.log_density[i] - exact.mean(first)
        assert abs(error) < 3.5 * found.standard_error[i]
        for j, second in enumerate(columns[:i]):
            gap = getattr(exact, first) - getattr(exact, second)
            p = STEP * np.exp(exact.truth)
            mean = p @ gap
            assert abs(found.difference[i, j] - mean) < 3.5 * found.difference_error[i, j]
            spread = np.sqrt(p @ gap**2 - mean**2)
            assert abs(found.spread[i, j] - spread) < 0.2 * spread
            # Paired by data: far sharper than the means themselves.
            assert found.difference_error[i, j] < 0.5 * found.standard_error[i]
    np.testing.assert_allclose(found.difference, -found.difference.T)
    assert "energy" in str(found) and "spread" in str(found)


def test_data_are_noised_to_where_the_law_is():
    """With as much noise at `t_min` as there is in the data: the mean is minus the entropy of their sum."""
    gaussian, data = nd.Gaussian([0.0], [[0.25]]), 0.5 * np.random.default_rng(0).normal(size=2000)
    prior = gaussian.with_horizon(t_min=float(gaussian.schedule.time(-2 * jnp.log(0.5))))
    found = density_certificate(prior, data[:, None], estimators={"energy": NormalizedEnergy()})
    gap = found.log_density[0] + 0.5 * np.log(2 * np.pi * np.e * 0.5)
    assert abs(gap) < 4 * found.standard_error[0] < 0.1


def test_the_error_of_a_normaliser_and_what_a_denoiser_has():
    sure = nd.EnergyFunction(lambda x, t: 0.5 * jnp.sum(x**2), 2, log_normalizer=1.8)
    unsure = sure.with_log_normalizer(1.8, 0.5)
    data = np.random.default_rng(0).normal(size=(16, 2))
    estimators = {"formula": ScoreFormula(GaussLegendre(4), GaussHermite(4))}
    estimators["energy"] = NormalizedEnergy()
    known, guessed = (density_certificate(p, data, estimators=estimators) for p in (sure, unsure))
    expected = np.hypot(known.difference_error[0, 1], 0.5)
    np.testing.assert_allclose(guessed.difference_error[0, 1], expected)
    np.testing.assert_allclose(guessed.standard_error[0], known.standard_error[0])
    score = nd.ScoreFunction(lambda x, t: -x, 2)
    assert tuple(default_estimators(score)) == ("score formula", "flow")
    assert default_estimators(sure)["energy"] == NormalizedEnergy()
    with pytest.raises(TypeError, match="expects a denoiser"):
        density_certificate(lambda x: x, data)
