"""Losses against closed forms, and what a fit finds: scores, normalisers and the weights of modes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import draws_at, log_densities_at

from numpyro_diffusion import Gaussian, GaussianMixture, InnerProductEnergy, ProperEnergy, fit
from numpyro_diffusion.nets import ResidualMLP
from numpyro_diffusion.schedules import VarianceExploding, VariancePreserving
from numpyro_diffusion.train import (
    EarlyStopping,
    Optimizer,
    TrainingDiverged,
    anchor_loss,
    denoising_loss,
    energy_loss,
    fit_recovery,
    level_loss,
    log_normal,
    make_anchors,
    score_log_density,
    uniform_log_snr,
)

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.9, -0.5], [-0.5, 0.6]])
QUICK = {
    "loss": denoising_loss,
    "progress_bar": False,
    "steps": 100,
    "batch_size": 16,
    "stopping": EarlyStopping(check_every=50, validation_repeats=4),
}
NO_DECAY = {"optimizer": Optimizer(weight_decay=0.0)}


def data_of(energy, key, num):
    return draws_at(energy, jax.random.split(key, num), jnp.zeros(()))


def small(kind=ProperEnergy, width=8, **options):
    options = {"t_min": 0.02, "t_max": 0.6} | options
    return kind(ResidualMLP(None, (2,), width=width, depth=1), (0.0, 0.0), np.eye(2), **options)


@pytest.mark.parametrize("levels", [uniform_log_snr, log_normal(-1.0, 1.5)])
@pytest.mark.parametrize(
    "schedule", [VariancePreserving(), VarianceExploding(0.01, 50.0)], ids=repr
)
def test_levels_stay_inside_and_spread(levels, schedule, key):
    energy = small(schedule=schedule, t_min=0.1, t_max=0.7)
    times = np.asarray(jax.jit(lambda key: levels(key, energy, 512))(key))
    assert np.all((times >= energy.t_min) & (times <= energy.t_max))
    log_snr = jax.jit(jax.vmap(schedule.log_snr))
    snr, ends = np.sort(log_snr(times)), np.asarray(log_snr(np.array([energy.t_max, energy.t_min])))
    if (
        levels is uniform_log_snr
    ):  # one in each of 512 cells: a uniform draw would miss by 1/sqrt(512)
        np.testing.assert_allclose(
            (snr - ends[0]) / (ends[1] - ends[0]), np.arange(0.5, 512) / 512, atol=2e-3
        )
    else:
        inside = (ends[1] + ends[0]) / 2
        assert np.mean(snr > inside) != 0.5


def test_denoising_loss_is_the_posterior_variance(key):
    exact = Gaussian(MEAN, COVARIANCE, t_min=0.02, t_max=0.6)
    data, scale = data_of(exact, key, 20_000), 0.8
    times = np.linspace(
        *(-0.5 * float(exact.schedule.log_snr(jnp.asarray(t))) for t in (0.02, 0.6)), 4001
    )
    values, levels = np.linalg.eigvalsh(COVARIANCE), np.exp(times)[:, None]
    posterior = values * levels**2 / (values + levels**2)
    expected = np.mean((1 / levels**2 + 1 / scale**2) * posterior)
    loss_of = eqx.filter_jit(lambda e: denoising_loss(e, key, data, data_scale=scale))
    loss = loss_of(exact)
    np.testing.assert_allclose(loss, expected, rtol=0.02)
    for wrong in ((MEAN + 0.2, COVARIANCE), (MEAN, 1.3 * COVARIANCE)):
        other = Gaussian(*wrong, t_min=0.02, t_max=0.6)
        assert loss_of(other) > loss


class Shifted(eqx.Module):
    """An energy whose constant is wrong from level to level."""

    inner: GaussianMixture
    slope: jax.Array

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def energy(self, x, t):
        return self.inner.energy(x, t) + self.slope * self.inner.schedule.log_snr(t)


def test_level_loss_is_least_for_the_true_energies(key):
    exact = GaussianMixture(t_min=0.02, t_max=0.6)
    data = data_of(exact, key, 8000)
    loss_of = eqx.filter_jit(lambda energy: level_loss(energy, key, data))
    best = loss_of(exact)
    others = [Shifted(exact, jnp.asarray(slope)) for slope in (0.3, -0.3)]
    others.append(GaussianMixture((0.6, 0.4), t_min=0.02, t_max=0.6))
    for other in others:
        assert loss_of(other) > best + 1e-3
    assert best < np.log(8)


@pytest.mark.parametrize("time", [0.02, 0.2])
def test_score_formula_gives_the_log_density(time, key):
    exact, t = GaussianMixture(t_min=0.02), jnp.asarray(time)
    keys = jax.random.split(key, 100)
    points = np.asarray(draws_at(exact, keys, t)) / np.asarray(exact.schedule(t)[0])
    estimate = jax.jit(
        jax.vmap(lambda k, u: score_log_density(exact, k, u, t, num_levels=64, num_draws=32))
    )
    errors = np.asarray(estimate(keys, points)) - np.asarray(log_densities_at(exact, points, t))
    assert np.std(errors) < 0.15
    assert np.abs(np.mean(errors)) < 5 * np.std(errors) / 10 + 0.01


def test_anchors_lie_on_the_density_of_their_level(key):
    exact = GaussianMixture(t_min=0.02, t_max=0.6)
    anchors = make_anchors(exact, key, data_of(exact, key, 500), num=64, num_steps=20)
    expected = jax.jit(jax.vmap(exact.log_density))(anchors.points, anchors.times)
    assert np.mean(np.asarray(anchors.times) == exact.t_min) > 0.3
    assert np.std(np.asarray(anchors.log_densities) - expected) < 0.6
    loss_of = eqx.filter_jit(lambda anchors: anchor_loss(exact, anchors))
    assert loss_of(anchors) < 0.1
    moved = anchors._replace(log_densities=anchors.log_densities + 3.0)
    assert loss_of(moved) > 1.0


@pytest.mark.long
@pytest.mark.parametrize("kind", [InnerProductEnergy, ProperEnergy])
def test_fit_recovers_the_score_of_a_gaussian_at_every_level(kind, key):
    exact = Gaussian(MEAN, COVARIANCE, t_min=0.02, t_max=0.6)
    data = data_of(exact, key, 4000).astype(jnp.float32)
    energy = jax.tree.map(
        lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, small(kind, 32)
    )
    options = {"steps": 1250, "learning_rate": 1e-2, "progress_bar": False} | NO_DECAY
    result = fit(key, energy, data, **options)
    constants = []
    for t in (0.02, 0.1, 0.4):
        t = jnp.asarray(t)
        points = jax.vmap(lambda k: exact.draw(k, t))(jax.random.split(key, 500))  # noqa: B023
        scores = jax.vmap(lambda x: result.energy.score(x, t))(points)  # noqa: B023
        expected = jax.vmap(lambda x: exact.score(x, t))(points)  # noqa: B023
        assert jnp.mean((scores - expected) ** 2) < 0.06 * jnp.mean(expected**2)
        difference = jax.vmap(lambda x: result.energy.energy(x, t) - exact.energy(x, t))(points)  # noqa: B023
        assert jnp.std(difference) < 0.4
        constants.append(jnp.mean(difference))
    assert np.ptp(constants) < 0.15  # L(t) is one number: levels are told apart by their energies


@pytest.mark.long
def test_fit_weighs_far_modes_right(key):
    # At t_min nothing lies between the modes: denoising alone cannot tell .85 from .15.
    exact = GaussianMixture(
        (0.15, 0.85),
        ((-2.0, 0.0), (2.0, 1.0)),
        0.05 * np.stack([np.eye(2)] * 2),
        t_min=0.01,
        t_max=0.7,
    )
    data = data_of(exact, key, 4000).astype(jnp.float32)
    energy = ProperEnergy.from_data(
        ResidualMLP(None, (2,), width=32), data, noise_min=0.1, noise_max=15.0
    )
    energy = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, energy)
    options = {"steps": 1000, "learning_rate": 1e-2, "progress_bar": False} | NO_DECAY
    first = fit(key, energy, data, **options)
    anchors = make_anchors(first.energy, key, data, num=1024)
    loss = functools.partial(energy_loss, anchors=anchors, data_scale=1.5)
    second = fit(key, first.energy, data, loss=loss, **options)
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(-5, 5, 201), jnp.linspace(-4, 5, 181)), -1).reshape(
        -1, 2
    )
    t = jnp.asarray(second.energy.t_min)
    log_p = jax.vmap(lambda u: second.energy.log_density(u, t))(grid.astype(jnp.float32))
    share = jnp.sum(jnp.where(grid[:, 0] < 0, jax.nn.softmax(log_p), 0.0))
    mass = jax.nn.logsumexp(log_p) + 2 * jnp.log(0.05)
    assert abs(share - 0.15) < 0.05
    assert abs(mass) < 0.3


def test_history_and_best_weights_agree_and_only_the_network_is_trained(key):
    data = data_of(Gaussian(MEAN, COVARIANCE), key, 200)
    energy = small(offset=(0.0, 0.0))
    result = fit(key, energy, data, **(QUICK | {"steps": 200, "loss": None}))
    history = result.history
    assert list(history) == ["step", "train_loss", "validation_loss"]
    np.testing.assert_array_equal(history["step"], np.arange(0, 201, 50))
    assert result.best_loss == history["validation_loss"].min()
    assert result.best_step == history["step"][history["validation_loss"].argmin()]
    assert result.best_loss < 0.95 * history["validation_loss"][0]
    assert result.stopped == "steps"
    for name in ("mean", "scales", "basis", "schedule", "t_min", "t_max"):
        assert eqx.tree_equal(getattr(result.energy, name), getattr(energy, name))
    assert np.any(np.asarray(result.energy.offset) != 0)
    assert np.any(np.asarray(result.energy.net.write.weight) != 0)


def test_early_stopping_returns_the_weights_before(key):
    data = data_of(Gaussian(MEAN, COVARIANCE), key, 60)
    elsewhere = data + 3.0  # the better the fit, the worse here
    options = QUICK | {"steps": 2000, "validation": elsewhere, "optimizer": Optimizer(ema=0.0)}
    options["stopping"] = EarlyStopping(check_every=50, validation_repeats=4, patience=2)
    with pytest.warns(UserWarning, match="learned nothing"):
        result = fit(key, small(), data, **options)
    assert result.stopped == "patience"
    assert result.history["step"][-1] == result.best_step + 2 * 50


def test_augmentation_reaches_the_network(key):
    data = data_of(Gaussian(MEAN, 0.01 * COVARIANCE), key, 200)
    energy = small()
    options = QUICK | {"steps": 600, "augment": lambda k, x: x + 1.0}
    moved = fit(key, energy, data, validation=data + 1.0, **options)
    assert moved.best_loss < 0.7 * moved.history["validation_loss"][0]


def test_divergence_names_the_step_and_keeps_the_weights(key):
    data = data_of(Gaussian(MEAN, COVARIANCE), key, 100)

    def fragile(energy, key, batch):
        loss = denoising_loss(energy, key, batch)
        return jnp.where(jnp.sum(energy.net.write.weight**2) > 0.01, jnp.nan, loss)

    with pytest.raises(TrainingDiverged, match="non-finite at step") as caught:
        fit(key, small(), data, **(QUICK | {"loss": fragile, "steps": 2000} | NO_DECAY))
    error = caught.value
    assert f"step {error.step} " in str(error)
    assert error.history["step"][-1] <= error.step
    leaves = jax.tree.leaves(eqx.filter(error.energy, eqx.is_array))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


def test_interrupt_returns_what_there_is(key, monkeypatch):
    import tqdm

    data = data_of(Gaussian(MEAN, COVARIANCE), key, 100)
    calls = []

    def interrupt(self, n=1):
        calls.append(n)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm.auto.tqdm, "update", interrupt)
    result = fit(key, small(), data, **(QUICK | {"steps": 1000}))
    assert result.stopped == "interrupted"
    assert result.history["step"][-1] == 150
    assert result.best_step <= 150


def test_bad_data_are_refused(key):
    energy, good = small(), np.zeros((10, 2))
    with pytest.raises(TypeError, match="must be floating; got int"):
        fit(key, energy, good.astype(int), **QUICK)
    with pytest.raises(ValueError, match=r"must have shape \(num, 2\)"):
        fit(key, energy, np.zeros((10, 3)), **QUICK)
    with pytest.raises(ValueError, match="1 of 10 examples"):
        fit(key, energy, np.where(np.arange(20).reshape(10, 2) == 4, np.nan, good), **QUICK)
    with pytest.raises(ValueError, match="`validation` must have shape"):
        fit(key, energy, good, validation=np.zeros((10, 2, 1)), **QUICK)
    with pytest.raises(ValueError, match="`ema` must be .* of at least 0 and below 1; got 1"):
        Optimizer(ema=1.0)
    with pytest.raises(ValueError, match="`patience` must be at least 1; got 0"):
        EarlyStopping(patience=0)
    for train in (fit, fit_recovery):
        for wrong in ("adam", None):
            with pytest.raises(TypeError, match="`optimizer` must be an instance of `Optimizer`"):
                train(key, energy, good, optimizer=wrong, steps=10)
    with pytest.raises(TypeError, match="`stopping` must be an instance of `EarlyStopping`"):
        fit(key, energy, good, **(QUICK | {"stopping": None}))
    with pytest.raises(ValueError, match="must vary"):
        fit(key, energy, good, **(QUICK | {"loss": None}))
