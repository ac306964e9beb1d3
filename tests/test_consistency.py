"""Consistency of levels: nothing to say against exact laws, and errors of known size."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import train
from numpyro_diffusion.energies import AbstractEnergy
from numpyro_diffusion.train import LevelNormalizer, fit_normalizer

consistency_loss = eqx.filter_jit(train.consistency_loss)
fokker_planck_loss = eqx.filter_jit(train.fokker_planck_loss)
step_errors = eqx.filter_jit(train.step_errors)

ENDS = {"t_min": 0.02, "t_max": 0.6}
GAUSSIAN = nd.Gaussian([1.0, -0.5], [[0.9, -0.5], [-0.5, 0.6]], **ENDS)
MIXTURE = nd.GaussianMixture(
    [0.3, 0.7], [[-1.5, 0.5], [1.0, -0.5]], [np.diag([0.2, 0.4]), [[0.3, 0.1], [0.1, 0.2]]], **ENDS
)


class Changed(AbstractEnergy):
    """An energy and a change of it, `change(x, t)`."""

    inner: AbstractEnergy
    change: object
    schedule: object
    shape: tuple = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: None = None
    log_normalizer_error: float = 0.0

    def __init__(self, inner, change):
        self.inner, self.change, self.schedule = inner, change, inner.schedule
        self.shape, self.t_min, self.t_max = inner.shape, inner.t_min, inner.t_max

    def energy(self, x, t):
        return self.inner.energy(x, t) + self.change(x, t)

    def moments(self, t):
        return self.inner.moments(t)


def data_of(energy, num):
    keys = jax.random.split(jax.random.key(7), num)
    return jax.vmap(lambda key: energy.draw(key, jnp.zeros(())))(keys)


def test_the_heat_equation_holds_for_exact_laws(key):
    data = data_of(MIXTURE, 500)
    assert fokker_planck_loss(MIXTURE, key, data) < 1e-20
    assert abs(fokker_planck_loss(MIXTURE, key, data, num_probes=1)) < 0.03  # signs cancel


def test_the_rule_of_bayes_holds_for_a_gaussian_at_any_step(key):
    for step in (0.05, 1.0):
        assert consistency_loss(GAUSSIAN, key, data_of(GAUSSIAN, 200), step=step) < 1e-20


@pytest.mark.long
def test_what_skewness_leaves_is_of_the_order_of_the_step(key):
    data = data_of(MIXTURE, 20_000)
    values = [float(consistency_loss(MIXTURE, key, data, step=step)) for step in (0.2, 0.1, 0.05)]
    ratios = np.divide(values[:-1], values[1:])
    np.testing.assert_allclose(ratios, 2.0, atol=0.5)
    means = [float(jnp.mean(step_errors(MIXTURE, key, data, step=d)[0])) for d in (0.2, 0.1)]
    assert np.abs(means).max() < 5 * np.sqrt(2 * values[0] / len(data)) + 0.005


@pytest.mark.parametrize("loss", [consistency_loss, fokker_planck_loss])
def test_a_wrong_offset_costs_the_square_of_its_slope(loss, key):
    """c log s: a rate of c nats a unit of log noise, at every point."""
    data = data_of(GAUSSIAN, 200)
    tilt = lambda x, t: 0.7 * jnp.log(GAUSSIAN.schedule.noise_level(t))
    np.testing.assert_allclose(loss(Changed(GAUSSIAN, tilt), key, data), 0.7**2 / 2, rtol=1e-9)


@pytest.mark.parametrize("loss", [consistency_loss, fokker_planck_loss])
def test_a_law_too_wide_costs_what_the_heat_equation_says(loss, key):
    r"""Variance k (c^2 + s^2): the residual is r (1 - 1/k) (u^2 / k T - 1), T = c^2 + s^2, r = s^2 / T."""
    exact, k = nd.Gaussian([0.0], [[0.5]], **ENDS), 1.5
    widen = lambda x, t: (1 / k - 1) * jnp.sum(x**2) / (2 * exact.moments(t)[1][0])
    levels = lambda key, energy, num: jnp.full(num, 0.2)
    s = exact.schedule.noise_level(jnp.asarray(0.2))
    if loss is consistency_loss:  # times are squeezed to make room for the step; undo it
        step = 0.02
        ends = [float(exact.schedule.log_snr(jnp.asarray(t))) for t in (0.6, 0.02)]
        snr = exact.schedule.log_snr(jnp.asarray(0.2))
        place = (ends[1] - snr) / (ends[1] - ends[0] - 2 * step)
        t = exact.schedule.time(ends[1] - place * (ends[1] - ends[0]))
        levels = lambda key, energy, num: jnp.full(num, t)
        options = {"step": step, "levels": levels}
    else:
        options = {"levels": levels}
    r = s**2 / (0.5 + s**2)
    expected = (r * (1 - 1 / k)) ** 2 * (3 / k**2 - 2 / k + 1)
    found = loss(Changed(exact, widen), key, data_of(exact, 40_000), **options)
    np.testing.assert_allclose(found, expected, rtol=0.06)


def bent(c):
    """The Gaussian with other precisions, in a way that scales with the noise."""

    def change(x, t):
        u = x / GAUSSIAN.schedule(t)[0] - GAUSSIAN.mean
        bends = c[0] * u[0] ** 2 + c[1] * u[1] ** 2 + 2 * c[2] * u[0] * u[1]
        return bends / (1 + GAUSSIAN.schedule.noise_level(t) ** 2)

    return Changed(GAUSSIAN, change)


@pytest.mark.long
def test_the_gradient_is_that_of_the_heat_equation(key):
    """Also with probes, whose kernels have the wrong covariance: pairs of steps take the bias away."""
    data, c = data_of(GAUSSIAN, 20_000), jnp.array([0.04, -0.05, 0.02])
    slope = lambda loss, **options: jax.grad(lambda c: loss(bent(c), key, data, **options))(c)
    expected = slope(fokker_planck_loss)
    assert jnp.linalg.norm(expected) > 0.2
    for options, bound in (({}, 0.1), ({"num_probes": 1}, 0.25)):
        found = slope(consistency_loss, step=0.03, **options)
        error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
        assert error < bound, (options, found, expected)


def test_a_kernel_that_follows_a_stopped_energy_is_no_descent(key):
    """Why the gradient goes through the mean of the kernel: else an error that scales with noise grows."""
    data, c = data_of(GAUSSIAN, 20_000), jnp.array([0.04, 0.0, 0.0])

    def loss(c, stopped):
        options = {"reverse": bent(jax.lax.stop_gradient(c))} if stopped else {}
        return consistency_loss(bent(c), key, data, step=0.05, **options)

    np.testing.assert_allclose(loss(c, True), loss(c, False))
    assert jax.grad(loss)(c, False)[0] > 0.1
    assert jax.grad(loss)(c, True)[0] < -0.02


@pytest.mark.long
def test_no_gradient_goes_through_a_teacher(key):
    """A parameter that moves the score of the teacher alone moves the loss, yet has no gradient."""
    data = data_of(MIXTURE, 300)
    values = []
    for variance in (1.0, 2.0):
        teacher = nd.Gaussian([0.0, 0.0], variance * np.eye(2), **ENDS)
        loss = lambda e: consistency_loss(MIXTURE, key, data, reverse=e)
        value, gradient = eqx.filter_value_and_grad(loss)(teacher)
        values.append(value)
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
    assert abs(values[0] - values[1]) > 0.01
    same = consistency_loss(MIXTURE, key, data, reverse=MIXTURE)
    np.testing.assert_allclose(same, consistency_loss(MIXTURE, key, data), rtol=1e-9)


@pytest.mark.slow
def test_the_normaliser_of_every_level_is_learned(key):
    """c(t) added to an exact energy is -L(t): found to .02 nat, by regression and as a minimum."""
    constant = lambda t: 3 * jnp.sin(4 * t) + 2 * t - 1
    energy = Changed(MIXTURE, lambda x, t: constant(t))
    data = data_of(MIXTURE, 8000)
    found = fit_normalizer(energy, key, data)
    times = jnp.linspace(energy.t_min, energy.t_max, 50)
    expected = constant(energy.t_max) - jax.vmap(constant)(times)
    np.testing.assert_allclose(jax.vmap(found)(times), expected, atol=0.02)
    loss = lambda module: consistency_loss(energy, key, data, normalizer=module)
    slope = jax.grad(lambda module: loss(module))(found).coefficients
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    assert loss(LevelNormalizer.of(energy)) > loss(found) + 0.5
    residual = fokker_planck_loss(energy, key, data[:500], normalizer=found)
    assert residual < 1e-3 < fokker_planck_loss(energy, key, data[:500])


def test_steps_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match="positive difference of log noise; got 0"):
        consistency_loss(GAUSSIAN, key, data_of(GAUSSIAN, 4), step=0.0)


@pytest.mark.long
def test_a_network_learns_its_normaliser_with_its_score():
    """The offset of a network energy learns -L: levels of one energy are normalised alike."""
    data = data_of(MIXTURE, 8000)
    net = nd.nets.ResidualMLP(jax.random.key(1), (2,), width=32)
    energy = nd.ProperEnergy.from_data(net, data, noise_min=0.15, noise_max=10.0)
    same = MIXTURE.with_horizon(t_min=energy.t_min, t_max=energy.t_max)

    def loss(energy, key, batch):
        keys = jax.random.split(key)
        score = nd.train.denoising_loss(energy, keys[0], batch, data_scale=1.3)
        return score + 0.1 * consistency_loss(energy, keys[1], batch)

    options = {
        "steps": 1500, "learning_rate": 1e-2, "optimizer": nd.train.Optimizer(weight_decay=0.0),
        "stopping": nd.train.EarlyStopping(patience=100),
    }  # fmt: skip
    found = nd.fit(jax.random.key(2), energy, data, loss=loss, progress_bar=False, **options).energy
    normalizers = []
    for s in (0.2, 0.5, 1.5, 5.0):
        t = energy.schedule.time(-2 * jnp.log(jnp.asarray(s)))
        draw = lambda key: same.draw(key, t)  # noqa: B023
        x = jax.vmap(draw)(jax.random.split(jax.random.key(3), 4000))
        gap = lambda x: same.energy(x, t) - found.energy(x, t)  # noqa: B023
        normalizers.append(float(jax.nn.logsumexp(jax.vmap(gap)(x)) - np.log(4000)))
    assert np.ptp(normalizers) < 0.15
