"""What every schedule promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd


def test_log_snr_falls_and_time_is_its_inverse(schedule):
    t_min, t_max = schedule.horizon()
    assert 0 <= t_min < t_max <= 1
    times = np.linspace(t_min, t_max, 101)
    log_snr = jax.jit(jax.vmap(schedule.log_snr))(times)
    assert np.all(np.isfinite(log_snr)) and np.all(np.diff(log_snr) < 0)
    again = jax.jit(jax.vmap(schedule.time))(log_snr)
    np.testing.assert_allclose(again, times, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_signal_and_noise_are_positive_numbers_of_the_type_of_time(schedule, dtype):
    t_min, t_max = schedule.horizon()

    @jax.jit
    def at(t):
        log_snr = schedule.log_snr(t)
        return [*schedule(t), log_snr, schedule.noise_level(t), schedule.time(log_snr)]

    for t in np.linspace(t_min, t_max, 5, dtype=dtype):
        values = at(t)
        alpha_t, sigma_t, *_ = values
        assert [v.dtype for v in values] == [dtype] * 5 and all(v.shape == () for v in values)
        assert alpha_t > 0 and sigma_t > 0
        assert values[-1] == pytest.approx(
            float(t), rel=0, abs=3e-6 if dtype == jnp.float32 else 1e-9
        )


def test_jit_vmap_and_grad(schedule):
    t_min, t_max = schedule.horizon()
    times = np.linspace(t_min, t_max, 7)[1:-1]
    alpha, sigma = jax.jit(jax.vmap(schedule.__call__))(times)
    for t, a, s in zip(times, alpha, sigma, strict=True):
        np.testing.assert_allclose(schedule(jnp.asarray(t)), (a, s), rtol=1e-12)
    slope = jax.jit(jax.vmap(jax.grad(schedule.log_snr)))(times)
    log_snr = jax.jit(jax.vmap(schedule.log_snr))
    rise = np.asarray(log_snr(times + 1e-6)) - np.asarray(log_snr(times - 1e-6))
    np.testing.assert_allclose(rise / 2e-6, slope, rtol=1e-6)


def test_flatten_unflatten_and_repr(schedule):
    leaves, structure = jax.tree.flatten(schedule)
    again = jax.tree.unflatten(structure, leaves)
    assert eqx.tree_equal(again, schedule) and type(schedule).__name__ in repr(schedule)
    assert hash(structure) == hash(jax.tree.structure(again))


def test_energies_accept_it(schedule):
    for make in (nd.Gaussian, nd.GaussianMixture):
        energy = make(schedule=schedule)
        for t in (energy.t_min, 0.5 * (energy.t_min + energy.t_max), energy.t_max):
            nd.check_energy(energy, jnp.array([0.3, -0.8]), t, jax.random.key(0))
