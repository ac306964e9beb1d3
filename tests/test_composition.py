"""Products, powers and ratios of laws: kernels of the same powers, and the law and constant they reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

GRID = np.linspace(-9, 9, 20_001)
ONE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
OTHER = nd.GaussianMixture([0.6, 0.4], [[-1.0], [2.0]], [[[0.8]], [[0.5]]])
LABELLED = nd.Gaussian([1.0], [[0.6]])  # the second component of the first


def on_grid(energy):
    """Log density at `t_min` in data units, up to the normaliser, as the energy has it."""
    t = jnp.asarray(energy.t_min)
    return np.asarray(jax.vmap(lambda u: energy.log_density(u, t))(jnp.asarray(GRID[:, None])))


CASES = {
    "power 2": (2 * ONE, 0.012),
    "power 4": (4 * ONE, 0.025),
    "product": (ONE + OTHER, 0.02),
    "powers 1.5 and 0.5": (1.5 * ONE + 0.5 * OTHER, 0.02),
    "guidance 2": (2 * LABELLED - ONE, 0.12),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_forty_levels_reach_the_law_and_its_constant(name):
    """No moves: weights alone. A negative power is harder than a positive one."""
    energy, most = CASES[name]
    log_p = on_grid(energy)
    truth = np.log(np.trapezoid(np.exp(log_p), GRID))
    below = np.trapezoid(np.exp(log_p - truth) * (GRID < 0), GRID)
    scheme = nd.ReverseDiffusion(levels=40, moves=0)
    model = scheme(nd.from_energy(energy), jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, num_particles=4000, num_chains=16)
    found = np.asarray(result.log_evidence)
    error = found.std(ddof=1) / 4
    assert found.std(ddof=1) < most
    assert abs(np.log(np.mean(np.exp(found - truth)))) < 3.5 * error + 0.002
    weights = np.exp(np.asarray(result.log_weights))
    weights /= weights.sum(1, keepdims=True)
    shares = np.sum(weights * (np.asarray(result.positions["x"])[..., 0] < 0), 1)
    assert abs(shares.mean() - below) < 4 * shares.std(ddof=1) / 4 + 0.002


def test_concentration_adds_up():
    assert ONE.concentration(0.5) == 1.0
    assert (2 * ONE).concentration(0.5) == 2.0
    assert (ONE + OTHER).concentration(0.5) == 2.0
    assert (2 * (ONE + OTHER) - 0.5 * ONE).concentration(0.5) == 3.5
    assert (ONE / 0.25).concentration(0.5) == 4.0


def test_a_ratio_whose_powers_cancel():
    """N(0, 1/2) over N(0.3, 2) is a Gaussian again; there is no power to raise a kernel to."""
    ratio = nd.Gaussian([0.0], [[0.5]]) - nd.Gaussian([0.3], [[2.0]])
    assert ratio.concentration(0.5) == 0.0
    truth = np.log(np.trapezoid(np.exp(on_grid(ratio)), GRID))
    model = nd.ReverseDiffusion(levels=60)(nd.from_energy(ratio), jax.random.key(0))
    found = nd.run_smc(jax.random.key(1), model, num_particles=2000, num_chains=8)
    error = np.asarray(found.log_evidence) - truth
    assert abs(error.mean()) < 4 * error.std(ddof=1) / 8**0.5 + 0.005 and error.std() < 0.3
