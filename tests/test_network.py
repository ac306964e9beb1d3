"""Network energies: their algebra, what they are before training, and how they behave far away."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import Gaussian, InnerProductEnergy, ProperEnergy
from numpyro_diffusion.nets import ResidualMLP, convolve
from numpyro_diffusion.schedules import VarianceExploding, VariancePreserving

MEAN = np.array([0.5, -1.0, 2.0])
FACTOR = np.array([[1.2, 0.0, 0.0], [0.6, 0.2, 0.0], [0.1, -0.4, 0.6]])
COVARIANCE = FACTOR @ FACTOR.T
BOTH = pytest.mark.parametrize("kind", [InnerProductEnergy, ProperEnergy])
X = jnp.array([0.8, -1.7, 0.4])


def random_net(key, shape, gain=1.0, width=32):
    """A network whose last layer is not zero."""
    net = ResidualMLP(key, shape, width=width)
    weight = gain * jax.random.normal(key, net.write.weight.shape) / np.sqrt(width)
    return eqx.tree_at(lambda n: n.write.weight, net, weight)


def energy_of(kind, key, covariance=COVARIANCE, mean=MEAN, gain=1.0, **options):
    return kind(random_net(key, mean.shape, gain), mean, covariance, **options)


@BOTH
@pytest.mark.parametrize("log_snr", [8.0, 1.0, -5.0])
def test_untrained_is_the_gaussian(kind, log_snr):
    t = VariancePreserving().time(jnp.asarray(log_snr))
    untrained, exact = kind(ResidualMLP(None, (3,)), MEAN, COVARIANCE), Gaussian(MEAN, COVARIANCE)
    np.testing.assert_allclose(untrained.energy(X, t), exact.energy(X, t), rtol=1e-10)
    np.testing.assert_allclose(untrained.score(X, t), exact.score(X, t), rtol=1e-9)
    for got, expected in zip(untrained.moments(t), exact.moments(t), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10)


@BOTH
def test_variances_alone_keep_the_coordinates(kind, key):
    variances = np.array([0.3, 2.0, 0.01])
    as_vector = kind(None, MEAN, variances)
    exact = Gaussian(MEAN, np.diag(variances))
    t = jnp.asarray(0.2)
    np.testing.assert_allclose(as_vector.energy(X, t), exact.energy(X, t), rtol=1e-10)


def literal_energy(energy, x, sigma, scale):
    """The inner-product energy as it is printed: with c_skip, c_in, c_out and divisions by sigma^2."""
    c_skip = scale**2 / (sigma**2 + scale**2)
    c_in = 1 / jnp.sqrt(sigma**2 + scale**2)
    c_out = sigma * scale * c_in
    f = energy.net(c_in * x, jnp.log(sigma) / 4)
    volume = x.size / 2 * jnp.log(2 * jnp.pi * (sigma**2 + scale**2))
    inner = jnp.sum(f * (c_in * x))
    return (
        (1 - c_skip) / (2 * sigma**2) * jnp.sum(x**2) - c_out / (c_in * sigma**2) * inner + volume
    )


def variance_exploding(key, size=64):
    schedule = VarianceExploding(0.001, 10.0)
    options = {"mean": np.zeros(size), "covariance": np.full(size, 1.3**2), "schedule": schedule}
    return energy_of(InnerProductEnergy, key, **options, gain=0.1, t_min=0.01)


def test_stable_algebra_is_the_literal_one(key):
    energy = variance_exploding(key)
    x = jax.random.normal(key, (64,))
    for t in (0.05, 0.4, 0.9):
        sigma = energy.schedule(jnp.asarray(t))[1]
        expected = literal_energy(energy, x, sigma, 1.3)
        np.testing.assert_allclose(energy.energy(x, jnp.asarray(t)), expected, rtol=1e-9)


def test_stable_algebra_keeps_digits_in_float32(key):
    # Errors common to all points move no weight: compare what differs from point to point.
    energy = variance_exploding(key)
    energy = eqx.tree_at(lambda e: e.net.write.weight, energy, 0 * energy.net.write.weight)
    small = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, energy)
    points = jax.random.normal(key, (200, 64)).astype(jnp.float32)
    t = jnp.asarray(0.075)
    sigma = energy.schedule(t)[1]
    assert 0.001 < sigma < 0.003
    exact = jax.vmap(lambda x: energy.energy(x, t))(points.astype(jnp.float64))
    stable = jax.vmap(lambda x: small.energy(x, t.astype(jnp.float32)))(points)
    literal = jax.vmap(
        lambda x: literal_energy(small, x, sigma.astype(jnp.float32), jnp.float32(1.3))
    )
    assert stable.dtype == jnp.float32
    error_stable = jnp.std(stable - exact)
    error_literal = jnp.std(literal(points) - exact)
    assert error_stable < 1e-4
    assert error_literal > 100 * error_stable


def test_denoiser_is_the_conservative_edm_form(key):
    scale, t = 1.3, jnp.asarray(0.3)
    energy = energy_of(InnerProductEnergy, key, np.full(3, scale**2))
    alpha_t, sigma_t = energy.schedule(t)
    s = sigma_t / alpha_t
    v, c_in = X / alpha_t - MEAN, 1 / jnp.sqrt(s**2 + scale**2)
    inner = lambda w: jnp.sum(energy.net(w, jnp.log(s) / 4) * w)
    field = jax.grad(inner)(c_in * v)
    expected = MEAN + scale**2 * c_in**2 * v + s * scale * c_in * field
    np.testing.assert_allclose(energy.denoise(X, t), expected, rtol=1e-10)


@BOTH
def test_density_does_not_depend_on_the_schedule(kind, key):
    preserving, exploding = VariancePreserving(), VarianceExploding()
    for level in (0.05, 1.0, 7.0):
        log_snr = jnp.asarray(-2 * np.log(level))
        densities, denoised = [], []
        for schedule in (preserving, exploding):
            t = schedule.time(log_snr)
            energy = energy_of(kind, key, schedule=schedule)
            densities.append(energy.log_density(X, t))
            denoised.append(energy.denoise(schedule(t)[0] * X, t))
        np.testing.assert_allclose(densities[0], densities[1], rtol=1e-8)
        np.testing.assert_allclose(denoised[0], denoised[1], rtol=1e-7)


@BOTH
def test_score_is_minus_the_slope_of_the_energy(kind, key):
    energy = energy_of(kind, key, offset=(0.3, -0.2))
    for t in (energy.t_min, 0.3, energy.t_max):
        t = jnp.asarray(t)
        step = 1e-5 * energy.schedule(t)[1]
        slopes = [
            (energy.energy(X + step * e, t) - energy.energy(X - step * e, t)) / (2 * step)
            for e in jnp.eye(3)
        ]
        score = energy.score(X, t)
        np.testing.assert_allclose(score, -jnp.stack(slopes), rtol=1e-5, atol=1e-5)


def test_offset_moves_the_energy_and_no_score(key):
    plain = energy_of(ProperEnergy, key)
    moved = energy_of(ProperEnergy, key, offset=(0.5, 0.25))
    t_min, t_max = jnp.asarray(plain.t_min), jnp.asarray(plain.t_max)
    # 10 nats a unit; the second cosine is +1 at t_min and -1 at t_max.
    for t, expected in ((t_min, 7.5), (t_max, 2.5)):
        np.testing.assert_allclose(moved.energy(X, t) - plain.energy(X, t), expected, rtol=1e-6)
        np.testing.assert_array_equal(moved.score(X, t), plain.score(X, t))


def test_proper_energy_is_bounded_whatever_the_weights(key):
    wild = energy_of(ProperEnergy, key, gain=100.0)
    flat = ProperEnergy(None, MEAN, COVARIANCE)
    directions = jax.random.normal(key, (20, 3))
    points = MEAN + jnp.logspace(0, 4, 9)[:, None, None] * directions
    over_points = lambda e, t: jax.jit(jax.vmap(jax.vmap(lambda x: e.energy(x, t))))(points)
    for t in (wild.t_min, 0.3, wild.t_max):
        t = jnp.asarray(t)
        volume = flat.energy(wild.schedule(t)[0] * MEAN, t)
        lowest = 0.5 * (over_points(flat, t) - volume)
        assert jnp.all(over_points(wild, t) - volume >= lowest * (1 - 1e-9))


@BOTH
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_results_have_the_type_of_the_position(kind, key, dtype):
    for weights in (jnp.float32, jnp.float64):
        energy = energy_of(kind, key)
        energy = jax.tree.map(lambda a: a.astype(weights) if eqx.is_array(a) else a, energy)  # noqa: B023
        value, score = energy.energy_and_score(X.astype(dtype), jnp.asarray(0.1))
        assert value.dtype == score.dtype == dtype


def test_extreme_positions_stay_finite(key):
    energy = energy_of(ProperEnergy, key)
    for t in (energy.t_min, energy.t_max):
        for x in (jnp.full(3, 1e5), jnp.full(3, -1e5), jnp.zeros(3)):
            value, score = energy.energy_and_score(x.astype(jnp.float32), jnp.asarray(t))
            assert jnp.isfinite(value) and jnp.all(jnp.isfinite(score))


def test_from_data_takes_mean_covariance_and_levels(key):
    data = np.asarray(MEAN + jax.random.normal(key, (500, 3)) @ FACTOR.T)
    energy = ProperEnergy.from_data(ResidualMLP(None, (3,)), data, noise_min=0.05, noise_max=20.0)
    alpha_t, _ = energy.schedule(jnp.asarray(energy.t_min))
    mean, variance = energy.moments(jnp.asarray(energy.t_min))
    np.testing.assert_allclose(mean / alpha_t, data.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance / alpha_t**2, data.var(0) + 0.05**2, rtol=1e-6)
    levels = [energy.schedule.noise_level(jnp.asarray(t)) for t in (energy.t_min, energy.t_max)]
    np.testing.assert_allclose(levels, [0.05, 20.0], rtol=1e-6)
    constant = np.concatenate([data, np.ones((500, 1))], 1)  # a pixel that never changes
    with pytest.warns(UserWarning, match="column 3 never change"):
        ProperEnergy.from_data(ResidualMLP(None, (4,)), constant, noise_min=0.05, noise_max=20.0)


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="must have shape"):
        ProperEnergy(None, MEAN, np.eye(2))
    with pytest.raises(ValueError, match="positive definite"):
        ProperEnergy(None, MEAN, np.diag([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="finite examples"):
        ProperEnergy.from_data(None, np.full((5, 2), np.nan), noise_min=0.1, noise_max=1.0)
    with pytest.raises(ValueError, match="noise_min < noise_max"):
        ProperEnergy.from_data(None, np.ones((5, 2)), noise_min=1.0, noise_max=0.1)
    with pytest.raises(ValueError, match="at least 1"):
        ResidualMLP(None, (2,), depth=0)


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 1, 0), (4, 3, 2)]
)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_convolution_is_that_of_jax(side, stride, padding, device, key, monkeypatch):
    """By matrix products on a CPU, since a loop there would make the other one slow."""
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    x = jax.random.normal(key, (3, 9, 7))
    weight = jax.random.normal(jax.random.fold_in(key, 1), (5, 3, side, side))
    edges = [(padding, padding)] * 2
    expected = jax.lax.conv_general_dilated(x[None], weight, (stride, stride), edges)[0]
    np.testing.assert_allclose(
        convolve(x, weight, stride=stride, padding=padding), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("make", ["ResidualMLP", "UNet", "Applied", "EnergyFunction"])
@pytest.mark.parametrize("shape", [(2.5,), (-1,), (0, 8), "ab", None, True])
def test_shapes_that_are_none_are_refused(make, shape):
    makers = {
        "ResidualMLP": lambda: nd.nets.ResidualMLP(None, shape),
        "UNet": lambda: nd.nets.UNet(None, shape),
        "Applied": lambda: nd.nets.Applied(lambda p, u, t: p * u, jnp.ones(()), shape),
        "EnergyFunction": lambda: nd.EnergyFunction(lambda x, t: jnp.sum(x**2), shape),
    }
    with pytest.raises(ValueError, match="`shape` must be .*got .*that of one example"):
        makers[make]()


def test_a_vector_has_its_length_for_a_shape():
    assert nd.nets.ResidualMLP(None, 3)(jnp.ones(3), jnp.zeros(())).shape == (3,)
    assert nd.nets.Applied(lambda p, u, t: p * u, jnp.ones(()), 3).shape == (3,)
