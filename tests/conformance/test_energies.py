"""What every energy and denoiser promises."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd


class Seen(NamedTuple):
    """What a model says at points `u` of shape `(3, *shape)` and five times, from data to noise."""

    times: np.ndarray
    log_snr: np.ndarray
    signal_and_noise: tuple[np.ndarray, np.ndarray]
    moments: tuple[np.ndarray, np.ndarray]
    u: np.ndarray
    denoised: np.ndarray
    # Of energies alone, all at (time, point):
    energy: np.ndarray | None = None
    score: np.ndarray | None = None
    energy_and_score: tuple[np.ndarray, np.ndarray] | None = None
    log_density_and_score: tuple[np.ndarray, np.ndarray] | None = None


@functools.cache
def grid(schedule, t_min, t_max):
    return np.asarray(nd.schedules.log_snr_grid(schedule, 4, t_min, t_max))[::-1]


def times(model):
    """From data to noise, equally spaced in log-SNR."""
    return jnp.asarray(np.ascontiguousarray(grid(model.schedule, model.t_min, model.t_max)))


@eqx.filter_jit
def _see(model, times):
    t_min = jnp.asarray(model.t_min)
    mean, variance = model.moments(t_min)
    white = jax.random.normal(jax.random.key(11), (3, *model.shape))
    u = (mean + 1.3 * jnp.sqrt(variance) * white) / model.schedule(t_min)[0]

    def everywhere(method):
        at = lambda t: jax.vmap(lambda u: method(model.schedule(t)[0] * u, t))(u)
        return jax.vmap(at)(times)

    own = []
    if isinstance(model, nd.AbstractEnergy):
        methods = model.energy, model.score, model.energy_and_score
        own = [everywhere(method) for method in methods]
        density = lambda t: jax.vmap(lambda u: model.log_density_and_score(u, t))(u)
        own.append(jax.vmap(density)(times))
    log_snr, kernels = jax.vmap(model.schedule.log_snr)(times), jax.vmap(model.schedule)(times)
    moments = jax.vmap(model.moments)(times)
    return Seen(times, log_snr, kernels, moments, u, everywhere(model.denoise), *own)


_SEEN = {}


def seen(model) -> Seen:
    """What is seen of a model, one program a class."""
    name = type(model).__name__
    if name not in _SEEN:
        _SEEN[name] = jax.tree.map(np.asarray, _see(model, times(model)))
    return _SEEN[name]


def example(model):
    """A point where data are, in data units."""
    return jnp.asarray(seen(model).u[0])


# Compiled once a class; the model travels as an argument.
value_at = eqx.filter_jit(lambda energy, x, t: energy.energy(x, t))
values_at = eqx.filter_jit(lambda energies, x, t: [energy.energy(x, t) for energy in energies])
denoised_at = eqx.filter_jit(lambda model, x, t: model.denoise(x, t))
draws_at = eqx.filter_jit(
    eqx.filter_vmap(lambda e, key, t: e.draw(key, t), in_axes=(None, 0, None))
)


@eqx.filter_jit
@eqx.filter_grad
def slopes_at(parts, rest, x):
    """Gradient in the time and in all numbers of a model."""
    numbers, t = parts
    return eqx.combine(numbers, rest).energy(x, t)


def cast(model, dtype):
    to = lambda a: jnp.asarray(np.asarray(a).astype(dtype)) if eqx.is_inexact_array(a) else a
    return jax.tree.map(to, model)


def test_classes_are_found():
    from numpyro_diffusion.energies import AbstractEnergy

    assert len(AbstractEnergy.__subclasses__()) >= 4


def test_horizon_and_shape_make_sense(denoiser):
    assert 0 <= denoiser.t_min < denoiser.t_max <= 1
    assert isinstance(denoiser.shape, tuple) and all(isinstance(n, int) for n in denoiser.shape)
    log_snr, (mean, variance) = seen(denoiser).log_snr, seen(denoiser).moments
    assert np.all(np.isfinite(log_snr)) and np.all(np.diff(log_snr) < 0)
    assert mean.shape == variance.shape == (5, *denoiser.shape)
    assert np.all(np.isfinite(mean)) and np.all(variance > 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_density_and_gradient_agree(energy, dtype):
    """The whole point: values and gradients of one law, at every level and in both precisions."""
    found = seen(energy)
    energy = cast(energy, dtype)
    for i, (t, alpha_t) in enumerate(zip(found.times, found.signal_and_noise[0], strict=True)):
        for j, u in enumerate(found.u):
            key = jax.random.key(10 * i + j)
            nd.check_energy(energy, (alpha_t * u).astype(dtype), t, key)


def test_methods_agree_with_each_other(energy):
    found = seen(energy)
    value, score = found.energy_and_score
    beside = lambda a: a.reshape(5, 1, *(1,) * len(energy.shape))
    alpha, sigma = map(beside, found.signal_and_noise)
    np.testing.assert_allclose(value, found.energy, rtol=1e-10)
    np.testing.assert_allclose(score, found.score, rtol=1e-10)
    np.testing.assert_allclose(
        found.denoised, (alpha * found.u + sigma**2 * score) / alpha, rtol=1e-8
    )
    log_density, slope = found.log_density_and_score
    constant = energy.log_normalizer or 0.0
    expected = found.u[0].size * np.log(alpha.reshape(5, 1)) - value - constant
    np.testing.assert_allclose(log_density, expected, rtol=1e-10)
    np.testing.assert_allclose(slope, alpha * score, rtol=1e-10)


def test_jit_vmap_and_grad(energy):
    found = seen(energy)
    t, alpha_t = jnp.asarray(found.times[2]), found.signal_and_noise[0][2]
    each = [value_at(energy, jnp.asarray(alpha_t * u), t) for u in found.u]
    np.testing.assert_allclose(found.energy[2], each, rtol=1e-10)
    assert found.energy.shape == (5, 3) and np.all(np.isfinite(found.energy))
    numbers, rest = eqx.partition(energy, eqx.is_inexact_array)
    slopes, in_time = slopes_at((numbers, t), rest, example(energy))
    assert in_time.shape == () and np.isfinite(in_time)
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))


def test_denoiser_jit_vmap_and_shape(denoiser):
    found = seen(denoiser)
    assert found.denoised.shape == (5, *found.u.shape) and np.all(np.isfinite(found.denoised))
    for t, alpha_t, x_hat in zip(
        found.times, found.signal_and_noise[0], found.denoised, strict=True
    ):
        one = denoised_at(denoiser, jnp.asarray(alpha_t * found.u[1]), jnp.asarray(t))
        np.testing.assert_allclose(one, x_hat[1], rtol=1e-9)


def test_flatten_and_unflatten(denoiser):
    leaves, structure = jax.tree.flatten(denoiser)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    u, t = example(denoiser), times(denoiser)[1]
    expected = denoised_at(denoiser, u, t)
    np.testing.assert_array_equal(denoised_at(again, u, t), expected)
    assert type(denoiser).__name__ in repr(denoiser)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_of_the_position_is_kept(denoiser, dtype):
    denoiser = cast(denoiser, dtype)
    u, t = jnp.zeros(denoiser.shape, dtype), jnp.zeros((), dtype)
    shape_of = eqx.filter_eval_shape
    shapes = [shape_of(denoiser.denoise, u, t), *shape_of(denoiser.moments, t)]
    if isinstance(denoiser, nd.AbstractEnergy):
        shapes += shape_of(denoiser.energy_and_score, u, t)
        shapes += shape_of(denoiser.log_density_and_score, u, t)
    assert [one.dtype for one in shapes] == [dtype] * len(shapes)


def test_draws_where_they_exist_have_the_moments(energy):
    found, num = seen(energy), 4000
    t = jnp.asarray(found.times[2])
    if eqx.filter_eval_shape(energy.draw, jax.random.key(0), t) is None:
        return
    draws = np.asarray(draws_at(energy, jax.random.split(jax.random.key(1), num), t))
    mean, variance = (moment[2] for moment in found.moments)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / num))
    spread = np.std((draws - mean) ** 2, 0) / np.sqrt(num)
    assert np.all(np.abs(draws.var(0) - variance) < 5 * spread)


@pytest.mark.filterwarnings("ignore:draws of")
def test_it_is_a_prior_and_has_a_reverse_process(denoiser, key):
    prior = nd.DiffusionPrior(denoiser, num_steps=20)
    draws = prior.sample(key, (3,))
    assert draws.shape == (3, *denoiser.shape) and np.all(np.isfinite(draws))
    if isinstance(denoiser, nd.AbstractEnergy):
        assert np.all(np.isfinite(eqx.filter_jit(prior.log_prob)(draws)))


def test_algebra_applies(energy):
    u, t = example(energy), times(energy)[1]
    composed = energy + energy, energy / 4.0, energy - 0.5 * energy
    twice, quarter, half = values_at(composed, u, t)
    E = value_at(energy, u, t)
    if isinstance(energy, nd.energies.PowerEnergy):  # normalised again, so that a constant is free
        E = E - value_at(energy, 0 * u, t)
        others = values_at(composed, 0 * u, t)
        twice, quarter, half = twice - others[0], quarter - others[1], half - others[2]
    np.testing.assert_allclose(twice, 2 * E, rtol=1e-10)
    np.testing.assert_allclose(quarter, E / 4, rtol=1e-10)
    np.testing.assert_allclose(half, E / 2, rtol=1e-10)


def test_save_and_load(energy, tmp_path):
    if isinstance(energy, nd.EnergyFunction):
        return  # a function has no name on disk
    path = tmp_path / "energy.safetensors"
    nd.save(path, energy)
    again = nd.load(path)
    assert jax.tree.structure(again) == jax.tree.structure(energy)
    u, t = example(energy), times(energy)[1]
    np.testing.assert_array_equal(value_at(again, u, t), value_at(energy, u, t))
