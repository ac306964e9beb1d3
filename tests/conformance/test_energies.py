"""What every energy and denoiser promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd


def example(model, dtype=jnp.float64, *batch):
    """Points where data are, in data units, of any precision."""
    mean, variance = model.moments(jnp.asarray(model.t_min))
    alpha, _ = model.schedule(jnp.asarray(model.t_min))
    white = jax.random.normal(jax.random.key(11), (*batch, *model.shape))
    return ((mean + 1.3 * jnp.sqrt(variance) * white) / alpha).astype(dtype)


def times(model):
    """From data to noise, equally spaced in log-SNR."""
    return nd.schedules.log_snr_grid(model.schedule, 4, model.t_min, model.t_max)[::-1]


# Compiled once a class; the energy travels as an argument.
value_at = eqx.filter_jit(lambda energy, x, t: energy.energy(x, t))


def cast(model, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)


def test_classes_are_found():
    from numpyro_diffusion.energies import AbstractEnergy

    assert len(AbstractEnergy.__subclasses__()) >= 4


def test_horizon_and_shape_make_sense(denoiser):
    assert 0 <= denoiser.t_min < denoiser.t_max <= 1
    assert isinstance(denoiser.shape, tuple) and all(isinstance(n, int) for n in denoiser.shape)
    log_snr = [float(denoiser.schedule.log_snr(jnp.asarray(t))) for t in times(denoiser)]
    assert np.all(np.isfinite(log_snr)) and np.all(np.diff(log_snr) < 0)
    for t in times(denoiser):
        mean, variance = denoiser.moments(t)
        assert mean.shape == variance.shape == denoiser.shape
        assert jnp.all(jnp.isfinite(mean)) and jnp.all(variance > 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_density_and_gradient_agree(energy, dtype):
    """The whole point: values and gradients of one law, at every level and in both precisions."""
    energy = cast(energy, dtype)
    for i, t in enumerate(times(energy)):
        for j, x in enumerate(example(energy, dtype, 3)):
            alpha_t, _ = energy.schedule(t)
            key = jax.random.key(10 * i + j)
            nd.check_energy(energy, (alpha_t * x).astype(dtype), t, key)


def test_methods_agree_with_each_other(energy):
    u = example(energy)
    for t in times(energy):
        alpha_t, sigma_t = energy.schedule(t)
        x = alpha_t * u
        value, score = eqx.filter_jit(energy.energy_and_score)(x, t)
        np.testing.assert_allclose(value, eqx.filter_jit(energy.energy)(x, t), rtol=1e-10)
        np.testing.assert_allclose(score, eqx.filter_jit(energy.score)(x, t), rtol=1e-10)
        np.testing.assert_allclose(
            eqx.filter_jit(energy.denoise)(x, t), (x + sigma_t**2 * score) / alpha_t, rtol=1e-8
        )
        log_density, slope = eqx.filter_jit(energy.log_density_and_score)(u, t)
        constant = energy.log_normalizer or 0.0
        expected = u.size * jnp.log(alpha_t) - value - constant
        np.testing.assert_allclose(log_density, expected, rtol=1e-10)
        np.testing.assert_allclose(slope, alpha_t * score, rtol=1e-10)


def test_jit_vmap_and_grad(energy):
    u, t = example(energy, jnp.float64, 3), times(energy)[2]
    batch = eqx.filter_jit(eqx.filter_vmap(energy.energy, in_axes=(0, None)))(u, t)
    each = jnp.stack([eqx.filter_jit(energy.energy)(x, t) for x in u])
    np.testing.assert_allclose(batch, each, rtol=1e-10)
    over_time = eqx.filter_jit(eqx.filter_vmap(energy.energy, in_axes=(None, 0)))(
        u[0], times(energy)
    )
    assert over_time.shape == (5,) and jnp.all(jnp.isfinite(over_time))
    in_time = eqx.filter_jit(eqx.filter_grad(lambda t: energy.energy(u[0], t)))(t)
    assert in_time.shape == () and jnp.isfinite(in_time)
    arrays, rest = eqx.partition(energy, eqx.is_inexact_array)
    at_u = lambda a: eqx.combine(a, rest).energy(u[0], t)
    slopes = eqx.filter_jit(eqx.filter_grad(at_u))(arrays)
    assert all(jnp.all(jnp.isfinite(slope)) for slope in jax.tree.leaves(slopes))


def test_denoiser_jit_vmap_and_shape(denoiser):
    u = example(denoiser, jnp.float64, 3)
    for t in times(denoiser):
        alpha_t, _ = denoiser.schedule(t)
        x_hat = eqx.filter_jit(eqx.filter_vmap(denoiser.denoise, in_axes=(0, None)))(alpha_t * u, t)
        assert x_hat.shape == u.shape and jnp.all(jnp.isfinite(x_hat))
        np.testing.assert_allclose(
            eqx.filter_jit(denoiser.denoise)(alpha_t * u[1], t), x_hat[1], rtol=1e-9
        )


def test_flatten_and_unflatten(denoiser):
    leaves, structure = jax.tree.flatten(denoiser)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    u, t = example(denoiser), times(denoiser)[1]
    expected = eqx.filter_jit(lambda m: m.denoise(u, t))(denoiser)
    np.testing.assert_array_equal(eqx.filter_jit(lambda m: m.denoise(u, t))(again), expected)
    assert type(denoiser).__name__ in repr(denoiser)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_of_the_position_is_kept(denoiser, dtype):
    denoiser = cast(denoiser, dtype)
    u, t = example(denoiser, dtype), jnp.asarray(times(denoiser)[1], dtype)
    shapes = [eqx.filter_eval_shape(denoiser.denoise, u, t), *denoiser.moments(t)]
    if isinstance(denoiser, nd.AbstractEnergy):
        shapes += eqx.filter_eval_shape(denoiser.energy_and_score, u, t)
        shapes += eqx.filter_eval_shape(denoiser.log_density_and_score, u, t)
    assert [one.dtype for one in shapes] == [dtype] * len(shapes)


def test_draws_where_they_exist_have_the_moments(energy):
    t, num = times(energy)[2], 4000
    if energy.draw(jax.random.key(0), t) is None:
        return
    draws = eqx.filter_jit(eqx.filter_vmap(energy.draw, in_axes=(0, None)))(
        jax.random.split(jax.random.key(1), num), t
    )
    mean, variance = energy.moments(t)
    assert jnp.all(jnp.abs(draws.mean(0) - mean) < 5 * jnp.sqrt(variance / num))
    spread = jnp.std((draws - mean) ** 2, 0) / np.sqrt(num)
    assert jnp.all(jnp.abs(draws.var(0) - variance) < 5 * spread)


def test_it_is_a_prior_and_has_a_reverse_process(denoiser, key):
    prior = nd.DiffusionPrior(denoiser, num_steps=20)
    draws = prior.sample(key, (3,))
    assert draws.shape == (3, *denoiser.shape) and jnp.all(jnp.isfinite(draws))
    if isinstance(denoiser, nd.AbstractEnergy):
        assert jnp.all(jnp.isfinite(eqx.filter_jit(prior.log_prob)(draws)))


def test_algebra_applies(energy):
    u, t = example(energy), times(energy)[1]
    E = value_at(energy, u, t)
    np.testing.assert_allclose(value_at(energy + energy, u, t), 2 * E, rtol=1e-10)
    np.testing.assert_allclose(value_at(energy / 4.0, u, t), E / 4, rtol=1e-10)
    np.testing.assert_allclose(value_at(energy - 0.5 * energy, u, t), E / 2, rtol=1e-10)


def test_save_and_load(energy, tmp_path):
    if isinstance(energy, nd.EnergyFunction):
        return  # a function has no name on disk
    path = tmp_path / "energy.safetensors"
    nd.save(path, energy)
    again = nd.load(path)
    assert jax.tree.structure(again) == jax.tree.structure(energy)
    u, t = example(energy), times(energy)[1]
    np.testing.assert_array_equal(value_at(again, u, t), value_at(energy, u, t))
