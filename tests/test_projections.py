"""Projections are nearest points; projecting after every step is biased, restricting is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import numpyro_diffusion as nd
from numpyro_diffusion.factors import Coupling, Restrict, hinge, log_repulsion
from numpyro_diffusion.samplers.projections import (
    Ball,
    Box,
    Simplex,
    VelocityBall,
    projected_langevin,
)

SETS = [Box([0.0, -1.0, 0.2], 0.5), Ball(1.2, [0.5, 0.0, 1.0]), Simplex(), VelocityBall(0.3)]
OFFSET, STRENGTH, LOW, HIGH = 1.5, 32.0, [[3.0], [1.0]], [[6.0], [8.0]]


def coupled():
    """Two Gaussian priors that repel each other, and the box that they are to stay in."""
    parts = [nd.Gaussian([4.5], [[0.6]]), nd.Gaussian([4.5], [[1.0]])]
    return nd.energies.Joint(parts) + Coupling(log_repulsion(OFFSET), STRENGTH), Box(LOW, HIGH)


def by_quadrature(low, high, num=2000):
    """P(|x - y| >= 4), its mean and spread, and the log evidence, by the midpoint rule."""
    ends = zip(np.ravel(low), np.ravel(high), strict=True)
    x, y = (a + (b - a) * (np.arange(num) + 0.5) / num for a, b in ends)
    apart = np.abs(x[:, None] - y)
    h = (apart + OFFSET) ** STRENGTH
    p = np.exp(-((x[:, None] - 4.5) ** 2) / 1.2 - (y - 4.5) ** 2 / 2) / (2 * np.pi * 0.6**0.5)
    mass = p * h * (x[1] - x[0]) * (y[1] - y[0])
    total = mass.sum()
    mean = (mass * apart).sum() / total
    spread = ((mass * (apart - mean) ** 2).sum() / total) ** 0.5
    return (mass * (apart >= 4)).sum() / total, mean, spread, np.log(total)


@pytest.mark.parametrize("projection", SETS, ids=lambda p: type(p).__name__)
def test_projection_is_the_nearest_point(projection, key):
    """No feasible point lies at less than a right angle behind the projection."""
    x, other = 1.5 * jax.random.normal(key, (2, 40, 3))
    both = jax.jit(jax.vmap(lambda x: (projection(x), projection.contains(projection(x)))))
    (nearest, inside), (feasible, _) = both(x), both(other)
    assert bool(inside.all())
    moved = jnp.abs(x - nearest).max(1) > 1e-9
    assert bool((jax.vmap(projection.contains)(x) != moved).all())
    np.testing.assert_allclose(both(nearest)[0], nearest, atol=1e-12)
    angles = jnp.einsum("ij,kij->ki", x - nearest, feasible[:, None] - nearest)
    assert float(angles.max()) < 1e-6
    assert moved.mean() > 0.5


def test_velocity_ball_against_a_generic_solver(key, float32):
    """In 32 bits: within 1e-4 of SciPy's nearest trajectory, and never faster than allowed."""
    d, shape = 0.3, (12, 2)
    y = jnp.cumsum(jax.random.normal(key, (200, *shape)), 1)
    projection = VelocityBall(d)
    x, inside = jax.jit(jax.vmap(lambda y: (projection(y), projection.contains(projection(y)))))(y)
    assert bool(inside.all())
    target = np.asarray(y[0], float).ravel()
    steps = lambda v: d**2 - (np.diff(v.reshape(shape), axis=0) ** 2).sum(1)
    found = minimize(
        lambda v: (0.5 * ((v - target) ** 2).sum(), v - target),
        np.zeros(target.size) + target.mean(),
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": steps},
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert found.success, found.message
    np.testing.assert_allclose(np.ravel(x[0]), found.x, atol=1e-4)


def test_costs():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0], [0.0, 0.5]])
    distances = np.array([5.0, 0.5, np.hypot(3, 3.5)])
    np.testing.assert_allclose(log_repulsion(1.5)(*x), -np.log(distances + 1.5).sum())
    np.testing.assert_allclose(hinge(4.8, 3)(*x), (np.maximum(4.8 - distances, 0) ** 3).sum())
    # The default: squared distance of neighbours, as a factor with its strength.
    law, base = (
        nd.energies.Joint(nd.Gaussian(), 3) + Coupling(strength=0.7),
        nd.energies.Joint(nd.Gaussian(), 3),
    )
    t = jnp.asarray(law.t_min)
    gap = jax.jit(lambda x: law.log_density(x, t) - base.log_density(x, t))(x)
    np.testing.assert_allclose(gap, -0.7 * (25 + distances[2] ** 2), rtol=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        jax.eval_shape((nd.energies.Joint(nd.Gaussian(), 1) + Coupling()).energy, x[:1], t)
    with pytest.raises(ValueError, match="low <= high"):
        Box(1.0, 0.0)


def test_projected_coupled_diffusion_is_feasible_and_biased(key):
    """The published settings: 0.916 of the draws are far apart, where the truncated law has 0.852."""
    law, box = coupled()
    draws = projected_langevin(key, law, box, step_size=0.05, num_steps=200, num_samples=16_000)
    x = np.asarray(draws.positions)[..., 0]
    truth, *_ = by_quadrature(LOW, HIGH)
    np.testing.assert_allclose(truth, 0.8523, atol=5e-4)
    share = np.mean(np.abs(x[:, 0] - x[:, 1]) >= 4)
    assert abs(share - 0.916) < 0.005 + 3 * (0.916 * 0.084 / len(x)) ** 0.5
    assert share - truth > 0.05
    assert bool(jax.vmap(box.contains)(draws.positions).all())
    assert abs(np.mean((x[:, 0] == 3) | (x[:, 0] == 6)) - 0.52) < 0.02  # atoms on the wall
    assert not draws.exact and "boundary" in draws.target


@pytest.mark.slow
def test_coupled_and_restricted_law_is_exact(key):
    law, box = coupled()
    far, mean, spread, log_evidence = by_quadrature(LOW, HIGH)
    *_, free = by_quadrature([-2.0, -6.0], [11.0, 16.0])
    known = [4.3892, 0.3679, 0.00912]  # the last: probability of the box under the coupled law
    np.testing.assert_allclose([mean, spread, np.exp(log_evidence - free)], known, rtol=1e-3)
    model = nd.Annealed()(nd.from_energy(law + Restrict(box.slack)), key)
    result = nd.run_smc(key, model, 1000, num_chains=12)
    weights = np.exp(result.log_weights - np.max(result.log_weights, -1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    inside = np.asarray(jax.vmap(jax.vmap(box.contains))(result.positions["x"]))
    assert weights[~inside].sum() == 0
    x = np.asarray(result.positions["x"])[..., 0]
    apart = np.abs(x[..., 0] - x[..., 1])
    mean_of = lambda value: (weights * value).sum(-1)
    assert abs(mean_of(apart >= 4).mean() - far) < 0.01
    assert abs(mean_of(apart).mean() - mean) < 0.01
    assert abs(mean_of((apart - mean) ** 2).mean() ** 0.5 - spread) < 0.01
    ratio = np.exp(np.asarray(result.log_evidence) - log_evidence)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / len(ratio) ** 0.5
