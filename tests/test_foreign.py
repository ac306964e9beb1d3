"""Plain functions as energies and scores, and the check that catches energies that lie."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import EnergyFunction, Gaussian, GaussianMixture, ScoreFunction, check_energy
from numpyro_diffusion.energies import AbstractEnergy
from numpyro_diffusion.schedules import VarianceExploding

X, T = jnp.array([0.8, -1.7]), jnp.asarray(0.3)
EXACT = GaussianMixture()


def test_energy_function_is_the_energy_it_wraps():
    wrapped = EnergyFunction(EXACT.energy, 2, EXACT.schedule)
    assert wrapped.shape == (2,) and wrapped.log_normalizer is None
    for method in ("energy", "score", "denoise", "log_density"):
        got, expected = getattr(wrapped, method)(X, T), getattr(EXACT, method)(X, T)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_params_are_data_and_come_first():
    fn = lambda params, x, t: params["scale"] * EXACT.energy(x, t)
    wrapped = EnergyFunction(fn, (2,), params={"scale": jnp.asarray(3.0)})
    np.testing.assert_allclose(wrapped.energy(X, T), 3 * EXACT.energy(X, T), rtol=1e-12)
    slope = eqx.filter_grad(lambda e: e.energy(X, T))(wrapped)
    np.testing.assert_allclose(slope.params["scale"], EXACT.energy(X, T), rtol=1e-12)


def test_score_function_is_a_denoiser_and_no_energy():
    wrapped = ScoreFunction(EXACT.score, (2,), EXACT.schedule)
    with_params = ScoreFunction(lambda p, x, t: p * EXACT.score(x, t), 2, params=jnp.asarray(1.0))
    assert not isinstance(wrapped, AbstractEnergy)
    for model in (wrapped, with_params):
        np.testing.assert_allclose(model.denoise(X, T), EXACT.denoise(X, T), rtol=1e-12)


@pytest.mark.parametrize("wrap", [EnergyFunction, ScoreFunction])
def test_moments_are_those_of_noised_data(wrap):
    schedule = VarianceExploding()
    model = wrap(
        lambda x, t: x, (3, 2), schedule, mean=[1.0, 2.0], variance=4.0, t_min=0.1, t_max=0.9
    )
    mean, variance = model.moments(T)
    alpha_t, sigma_t = schedule(T)
    assert mean.shape == variance.shape == (3, 2)
    np.testing.assert_allclose(mean, alpha_t * np.array([[1.0, 2.0]] * 3))
    np.testing.assert_allclose(variance, alpha_t**2 * 4.0 + sigma_t**2)
    assert (model.t_min, model.t_max) == (0.1, 0.9)


@pytest.mark.parametrize("wrap", [EnergyFunction, ScoreFunction])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3.0, 2), {}, TypeError, "expects a function .* got float"),
        ((abs, 2, 0.5), {}, TypeError, "expects a schedule"),
        ((abs, (2, 3)), {"mean": np.zeros(2)}, ValueError, "must broadcast to the shape"),
        ((abs, 2), {"mean": np.zeros((5, 2))}, ValueError, "must broadcast to the shape"),
        ((abs, 2), {"variance": 0.0}, ValueError, "positive variances"),
        ((abs, 2), {"mean": np.nan}, ValueError, "finite mean"),
        ((abs, 2), {"t_min": 0.9, "t_max": 0.1}, ValueError, "t_min=0.9, t_max=0.1"),
    ],
)
def test_nonsense_is_refused(wrap, arguments, options, error, message):
    with pytest.raises(error, match=message):
        wrap(*arguments, **options)


@jax.custom_vjp
def silent(x):
    """The constant 0 whose gradient claims to be that of half the squared norm."""
    return 0.0 * jnp.sum(x)


silent.defvjp(lambda x: (silent(x), x), lambda x, g: (g * x,))


class OwnDenoiser(Gaussian):
    def denoise(self, x, t):
        return super().denoise(x, t) * 1.001


LIARS = {
    "constant value": (EnergyFunction(lambda x, t: silent(x), 2), "disagree .*rises by 0 nats"),
    "a little off": (
        EnergyFunction(lambda e, x, t: e.energy(x, t) + 1e-3 * silent(x), 2, params=EXACT),
        "disagree",
    ),
    "not finite": (EnergyFunction(lambda x, t: jnp.log(jnp.sum(x)), 2), "not finite"),
    "gradient not finite": (
        EnergyFunction(lambda x, t: jnp.sqrt(jnp.sum(0.0 * x)), 2),
        "score .* not finite",
    ),
    "own denoiser": (OwnDenoiser(), "not Tweedie's formula"),
}


@pytest.mark.parametrize("name", LIARS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_check_catches_energies_that_lie(name, dtype, key):
    energy, message = LIARS[name]
    energy = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, energy)
    if name in ("constant value", "a little off"):
        message += r".*discrepancy .*let `jax.grad`"
    with pytest.raises(ValueError, match=message):
        check_energy(energy, X.astype(dtype), 0.5, key)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_check_passes_honest_energies_at_every_level(dtype, level):
    """Many directions and far-away points too: no false alarm."""
    energy = GaussianMixture(
        [0.2, 0.8],
        [[-3.0, 0.5, 1.0], [2.0, -0.5, 0.3]],
        [np.diag([1e-4, 0.5, 2.0]), np.diag([3.0, 0.01, 0.3])],
    )
    energy = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, energy)
    t = energy.t_min + level * (energy.t_max - energy.t_min)
    for seed in range(8):
        key_x, key = jax.random.split(jax.random.key(seed))
        check_energy(energy, 4 * jax.random.normal(key_x, (3,), dtype), t, key)


def test_check_refuses_vectors_types_and_scores(key):
    with pytest.raises(ValueError, match=r"the energy of .* must have shape \(\) .* float32"):
        cast = EnergyFunction(lambda x, t: jnp.sum(x.astype(jnp.float32)), 2)
        check_energy(cast, X, T, key)
    with pytest.raises(TypeError, match="expects an energy; got ScoreFunction"):
        check_energy(ScoreFunction(lambda x, t: -x, 2), X, T, key)
