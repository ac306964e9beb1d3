"""A network outside JAX: the same denoiser, in batches, and no gradient in silence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import teachers
from numpyro_diffusion.schedules import VariancePreserving

SCHEDULE = VariancePreserving()
MEAN, VARIANCE = np.array([0.5, -1.0]), np.array([1.5, 0.4])
CARD = teachers.PriorCard(
    name="outside",
    shape=(2,),
    units="dimensionless",
    data_range=(-20.0, 20.0),
    transform=teachers.Identity(),
    schedule=SCHEDULE,
    prediction=teachers.Noise(),
    time_scale=1000.0,
)
X, T = jnp.array([0.8, -1.7]), jnp.asarray(0.3)
EXACT = nd.Gaussian(MEAN, np.diag(VARIANCE), SCHEDULE)


class Outside:
    """The noise of a Gaussian in NumPy, and how it was called."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x, time):
        assert isinstance(x, np.ndarray) and x.dtype == time.dtype == np.float32
        self.sizes.append(x.shape)
        b = 0.1 * time / 1000 + 0.5 * 19.9 * (time / 1000) ** 2
        alpha, sigma = np.exp(-b / 2)[:, None], np.sqrt(-np.expm1(-b))[:, None]
        return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def test_it_is_the_denoiser_of_its_function():
    teacher = teachers.HostTeacher(Outside(), CARD)
    for t in (0.05, 0.3, 0.9):
        t = jnp.asarray(t)
        np.testing.assert_allclose(teacher.denoise(X, t), EXACT.denoise(X, t), rtol=1e-4)
        jitted = eqx.filter_jit(teacher.denoise)(X, t)
        np.testing.assert_allclose(jitted, EXACT.denoise(X, t), rtol=1e-4)


def test_vmap_calls_once_a_batch():
    outside = Outside()
    teacher = teachers.HostTeacher(outside, CARD, batch_size=8)
    points = X + jnp.arange(20.0)[:, None] / 10
    times = jnp.linspace(0.1, 0.9, 20)
    got = jax.jit(jax.vmap(teacher.denoise))(points, times)
    np.testing.assert_allclose(got, jax.vmap(EXACT.denoise)(points, times), rtol=1e-4)
    assert outside.sizes == [(8, 2), (8, 2), (4, 2)]
    outside.sizes.clear()
    one_time = jax.vmap(teacher.denoise, in_axes=(0, None))(points, T)
    np.testing.assert_allclose(one_time, jax.vmap(EXACT.denoise, (0, None))(points, T), rtol=1e-4)
    twice = jax.vmap(jax.vmap(teacher.denoise, (0, None)), (None, 0))(points, times)
    assert twice.shape == (20, 20, 2) and sum(size[0] for size in outside.sizes) == 20 + 400
    np.testing.assert_allclose(twice[3], jax.vmap(teacher.denoise, (0, None))(points, times[3]))


def test_gradients_are_refused_in_words():
    teacher = teachers.HostTeacher(Outside(), CARD)
    for differentiate in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TypeError, match="has no gradient"):
            differentiate(lambda x: teacher.denoise(x, T).sum())(X)


def test_wrong_outputs_and_arguments_are_refused():
    flat = teachers.HostTeacher(lambda x, time: x[0], CARD)
    with pytest.raises(Exception, match=r"must return the shape \(1, 2\) of its input; got \(2,\)"):
        jax.block_until_ready(flat.denoise(X, T))
    with pytest.raises(ValueError, match="batch_size"):
        teachers.HostTeacher(Outside(), CARD, batch_size=0)
    with pytest.raises(TypeError, match="function"):
        teachers.HostTeacher(None, CARD)
    with pytest.raises(TypeError, match="PriorCard"):
        teachers.HostTeacher(Outside(), None)


@pytest.mark.long
def test_it_can_be_distilled():
    """From a start at unit variance to the Gaussian that lives outside JAX."""
    teacher = teachers.HostTeacher(Outside(), CARD)
    data = np.asarray(MEAN + np.sqrt(VARIANCE) * np.random.default_rng(0).normal(size=(640, 2)))
    net = nd.nets.ResidualMLP(jax.random.key(0), (2,), width=16)
    # A preconditioning that is wrong on purpose: twice the spread.
    start = nd.ProperEnergy.from_data(net, 2 * data, noise_min=0.3, noise_max=10.0)
    result = nd.distill(
        jax.random.key(1), teacher, start, data, steps=150, batch_size=64, progress_bar=False
    )
    points, t = jnp.asarray(data[:200]), SCHEDULE.time(jnp.asarray(0.0))
    gap = lambda model: jnp.mean(
        jax.vmap(lambda x: (model.denoise(x, t) - EXACT.denoise(x, t)) ** 2)(points)
    )
    assert gap(result.energy) < 0.2 * gap(start)
