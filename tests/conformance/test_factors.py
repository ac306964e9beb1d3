"""What every factor and every correction promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

BASE = nd.GaussianMixture(
    [0.4, 0.6], [[-0.6, 0.4], [0.8, -0.3]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]]
)
SEVERAL = nd.factors.Coupling, nd.factors.MMD  # over the variables of a `Joint`


def law(factor):
    base = nd.energies.Joint(BASE, 3) if isinstance(factor, SEVERAL) else BASE
    return base + factor


def test_gradients_are_those_of_values(factor):
    """The drift that leads particles is the derivative of what weighs them, at every noisy level."""
    energy = law(factor)
    check = eqx.filter_jit(lambda x, t: (energy.energy_and_score(x, t)[1], x))
    for share in (0.02, 0.3, 0.8):
        t = jnp.asarray(energy.t_min + share * (energy.t_max - energy.t_min))
        x = 0.3 * jax.random.normal(jax.random.key(3), energy.shape)
        nd.check_energy(energy, x, t, jax.random.key(4))
        assert jnp.all(jnp.isfinite(check(x, t)[0]))


@pytest.mark.long
def test_the_evidence_is_the_mean_of_the_factor(factor):
    """Against exact draws of the base: at `t_min` a factor is itself, whatever stood in for it before."""
    energy = law(factor)
    t = jnp.asarray(energy.t_min)
    alpha_t, _ = energy.schedule(t)

    def log_h(key):
        x = energy.base.draw(key, t)
        return energy.base.energy(x, t) - energy.energy(x, t)

    log_values = eqx.filter_jit(jax.vmap(log_h))(jax.random.split(jax.random.key(5), 40_000))
    values = np.exp(np.asarray(log_values))
    error = values.std() / values.mean() / len(values) ** 0.5
    scheme = nd.Annealed(moves=1, pilot=nd.schemes.Pilot(conditional_ess=0.9))
    model = scheme(nd.from_energy(energy), jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, 500, num_chains=6)
    found = np.asarray(result.log_evidence)
    allowed = 3.5 * np.hypot(error, found.std(ddof=1) / 6**0.5) + 0.005
    assert error < 0.05 and found.std(ddof=1) < 0.25
    assert abs(found.mean() - np.log(values.mean())) < allowed


@pytest.mark.slow
def test_corrections_weigh_a_product_of_gaussians(correction):
    """Scores alone, asymmetric parts in two dimensions, the integral in closed form."""
    first = nd.Gaussian([0.5, -0.4], [[1.0, 0.5], [0.5, 0.7]])
    second = nd.Gaussian([-0.2, 0.3], [[0.6, -0.2], [-0.2, 0.9]])
    noise = float(first.schedule.noise_level(jnp.asarray(first.t_min))) ** 2
    total = np.array([[1.6, 0.3], [0.3, 1.6]]) + 2 * noise * np.eye(2)
    gap = np.array([0.7, -0.7])
    truth = -0.5 * (gap @ np.linalg.solve(total, gap) + np.log(np.linalg.det(2 * np.pi * total)))
    scheme = nd.ScoreComposition(levels=400, correction=correction)
    # From noise of ten units: continuous-time weights gather variance for as long as there is but noise.
    t_max = float(first.schedule.time(jnp.asarray(-4.6)))
    composition = (first + second).with_horizon(t_max=t_max)
    bridge = nd.from_energy(composition, bridge_type=nd.bridge.PathBridge)
    model = scheme(bridge, jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, 500, num_chains=8)
    found = np.asarray(result.log_evidence)
    assert abs(found.mean() - truth) < 3.5 * found.std(ddof=1) / 8**0.5 + 0.12
    assert result.exact and type(correction).__name__ in result.target
