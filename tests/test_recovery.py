"""Recovery likelihood: optima in closed form, chains that are right, and densities that are learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.energies import AbstractEnergy
from numpyro_diffusion.schedules import AbstractSchedule, VariancePreserving
from numpyro_diffusion.train import (
    EarlyStopping,
    Initializer,
    Optimizer,
    TrainingDiverged,
    denoising_loss,
    recovery_loss,
    recovery_process,
)

SCHEDULE = VariancePreserving()
VARIANCE = 2.25


def time_of(alpha_bar: float) -> float:
    """Time at which alpha_t^2 has this value."""
    return float(SCHEDULE.time(jnp.log(jnp.asarray(alpha_bar / (1 - alpha_bar)))))


class Quadratic(AbstractEnergy):
    """E(x_t, t) = exp(c) x_t^2 / 2 at every time: one number to learn."""

    log_precision: jax.Array
    schedule: AbstractSchedule = SCHEDULE
    shape: tuple[int, ...] = eqx.field(static=True, default=(1,))
    t_min: float = eqx.field(static=True, default=time_of(0.9))
    t_max: float = eqx.field(static=True, default=time_of(0.2))
    log_normalizer: None = None
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def energy(self, x, t):
        return 0.5 * jnp.sum(jnp.exp(self.log_precision) * x**2)

    def moments(self, t):
        alpha_t, sigma_t = self.schedule(t)
        return jnp.zeros(1), alpha_t**2 * jnp.ones(1) + sigma_t**2


class Linear(eqx.Module):
    """F(w) = slope w, at every level."""

    slope: jax.Array

    def __call__(self, w, c_noise):
        return self.slope * w


def quantiles(num: int) -> np.ndarray:
    """Points of N(0, 2.25) with exact variance."""
    points = norm.ppf((np.arange(num) + 0.5) / num)
    return (VARIANCE**0.5 * points / points.std())[:, None]


@pytest.mark.parametrize("alpha_bars, expected", [((0.9, 0.6), 0.7059), ((0.6, 0.2), 1.7143)])
def test_a_quadratic_finds_the_precision_of_noised_data(alpha_bars, expected, key, optimized):
    """Also what the initialiser should find: the regression of less noisy on noisier data."""
    t, data = time_of(alpha_bars[0]), quantiles(4000)
    energy = Quadratic(jnp.asarray(0.5, float))
    start = Initializer(Linear(jnp.zeros(())), jnp.zeros(1), jnp.ones(1))
    found = nd.train.fit_recovery(
        key, energy, data, initializer=start, validation=data, num_levels=2,
        levels=lambda key, energy, num: jnp.full(num, t), trainable=lambda e: e.log_precision,
        steps=1500, batch_size=512, learning_rate=0.02, optimizer=Optimizer(weight_decay=0.0),
        stopping=EarlyStopping(check_every=1500, validation_repeats=8), level_weight=0.0,
        progress_bar=False,
    )  # fmt: skip
    # The expected number is the coefficient in y = a x_t with a = alpha_{t+1} / alpha_t, as in the paper.
    coefficient = jnp.exp(found.energy.log_precision) / (alpha_bars[1] / alpha_bars[0])
    np.testing.assert_allclose(coefficient, expected, rtol=0.02)
    variance = [(1 - a) / a for a in alpha_bars]  # of the noise, in units of the data
    regression = (VARIANCE + variance[0]) / (VARIANCE + variance[1])
    s, s_next = jnp.sqrt(jnp.asarray(variance))
    r = 1 - variance[0] / variance[1]
    slope = 1 + r * (found.initializer.denoise(jnp.ones(1), s_next)[0] - 1)
    np.testing.assert_allclose(slope, regression, rtol=0.02)
    assert found.history["acceptance"][-1] > 0.5


def test_the_gradient_vanishes_at_the_law_of_the_data(key):
    """Chains that start in the conditional law stay there: no bias of few moves, none of wide rungs."""
    alpha_bar = 0.6
    t, s2 = time_of(alpha_bar), (1 - alpha_bar) / alpha_bar
    exact = -np.log(alpha_bar * VARIANCE + 1 - alpha_bar)
    data = np.sqrt(VARIANCE) * jax.random.normal(key, (40_000, 1))
    denoiser = VARIANCE / (
        VARIANCE + 6 * s2
    )  # the initialiser's mean is exact, its variance is not
    start = Initializer(Linear(jnp.zeros(())), jnp.zeros(1), jnp.full(1, VARIANCE**0.5))
    np.testing.assert_allclose(start.denoise(jnp.ones(1), jnp.sqrt(6 * s2)), denoiser)

    def gradient(log_precision, num_moves):
        contrast = lambda c: recovery_loss(
            Quadratic(c), start, key, data, ratio=6**0.5, num_moves=num_moves,
            levels=lambda key, energy, num: jnp.full(num, t),
        )[0]  # fmt: skip
        return float(jax.jit(jax.grad(contrast))(jnp.asarray(log_precision)))

    error = 5 / len(data) ** 0.5  # each term is chi squared over 2, of standard deviation 0.7
    assert abs(gradient(exact, 15)) < error
    # Away from it: half of 1 - v / (1/v' ...): the expectation of E under the chain's own law.
    for shift in (-0.4, 0.4):
        precision = np.exp(exact + shift) * alpha_bar  # of u = x_t / alpha_t
        v, total = 5 * s2, VARIANCE + 6 * s2
        mean = 1 / (1 + precision * v)
        spread = v / (1 + precision * v)
        expected = 0.5 * precision * (VARIANCE + s2 - (mean**2 * total + spread))
        np.testing.assert_allclose(gradient(exact + shift, 60), expected, atol=error)


def mixture_of_two():
    return nd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.1]], [[0.25]]])


@pytest.mark.long
def test_a_small_network_learns_the_density_of_a_mixture():
    mixture = mixture_of_two()
    keys = jax.random.split(jax.random.key(0), 8000)
    data = jax.vmap(lambda key: mixture.draw(key, jnp.asarray(0.0)))(keys)
    energy = nd.ProperEnergy.from_data(
        nd.nets.ResidualMLP(jax.random.key(1), (1,), width=32), data, noise_min=0.1, noise_max=10.0
    )
    options = {
        "steps": 2000, "learning_rate": 1e-2, "optimizer": Optimizer(weight_decay=0.0),
        "stopping": EarlyStopping(patience=100),
    }  # fmt: skip
    found = nd.train.fit_recovery(jax.random.key(2), energy, data, progress_bar=False, **options)
    grid, t = jnp.linspace(-5, 5, 2001)[:, None], jnp.asarray(energy.t_min)
    log_p = jax.vmap(lambda u: found.energy.log_density(u, t))(grid)
    log_p -= jax.nn.logsumexp(log_p) + jnp.log(grid[1, 0] - grid[0, 0])
    exact = jax.vmap(lambda u: mixture.log_density(u, t))(grid)
    divergence = jnp.trapezoid(jnp.exp(log_p) * (log_p - exact), grid[:, 0])
    assert divergence < 0.05  # 0.35 for the Gaussian of the data
    at_every_level = found.history["validation_loss"]
    draw = lambda key: recovery_process(found.energy, found.initializer, key)
    draws = jax.vmap(draw)(jax.random.split(jax.random.key(5), 2000))[:, 0]
    error = 5 / len(draws) ** 0.5
    share, width = jnp.mean(draws < -0.25), jnp.std(draws)
    assert abs(share - np.mean(data < -0.25)) < 0.46 * error + 0.02
    assert abs(width - np.std(data)) < 0.5 * error + 0.02
    same = mixture.with_horizon(t_min=energy.t_min, t_max=energy.t_max)
    scale = float(jnp.std(data))
    judge = lambda model: float(denoising_loss(model, jax.random.key(3), data, data_scale=scale))
    assert judge(found.energy) - judge(same) < 0.2 * (judge(energy) - judge(same))
    assert found.best_loss == at_every_level.min()


SMALL = {
    "steps": 30, "stopping": EarlyStopping(check_every=10, validation_repeats=1), "batch_size": 16,
    "num_moves": 2,
    "trainable": lambda energy: energy.log_precision, "level_weight": 0.0, "progress_bar": False,
}  # fmt: skip


def small_fit(key, **options):
    start = Initializer(Linear(jnp.zeros(())), jnp.zeros(1), jnp.ones(1))
    energy = Quadratic(jnp.asarray(0.5, float))
    return nd.train.fit_recovery(
        key, energy, quantiles(100), initializer=start, **(SMALL | options)
    )


def test_history_has_one_row_a_check(key):
    history = small_fit(key).history
    names = ["step", "train_loss", "validation_loss", "acceptance", "energy_gap"]
    assert list(history) == names
    np.testing.assert_array_equal(history["step"], [0, 10, 20, 30])
    assert np.isnan(history["acceptance"][0])
    assert np.all((history["acceptance"][1:] > 0) & (history["acceptance"][1:] <= 1))
    # At first the law is too narrow: data have the higher energy.
    first = small_fit(key, learning_rate=1e-9, batch_size=500, steps=10).history
    assert np.all(first["energy_gap"][1:] > 0.05)


def test_an_interrupt_keeps_the_best_so_far(key, monkeypatch):
    import tqdm

    calls = []

    def interrupt(self, n=1):
        calls.append(n)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm.auto.tqdm, "update", interrupt)
    found = small_fit(key)
    assert found.stopped == "interrupted"
    assert found.history["step"][-1] == 20
    assert len(found.history["acceptance"]) == 3


def test_divergence_carries_an_energy(key):
    rate = lambda step: jnp.where(step < 12, 1e-3, jnp.nan)
    with pytest.raises(TrainingDiverged, match="non-finite at step 13") as caught:
        small_fit(key, learning_rate=rate)
    assert isinstance(caught.value.energy, Quadratic)
    assert jnp.isfinite(caught.value.energy.log_precision)
    assert len(caught.value.history["acceptance"]) == 2


def test_what_is_refused(key):
    data = np.zeros((10, 2))
    with pytest.raises(TypeError, match="expects an energy; got ScoreFunction"):
        nd.train.fit_recovery(key, nd.ScoreFunction(lambda x, t: -x, (2,)), data)
    with pytest.raises(ValueError, match="`num_levels` must be at least 1; got 0"):
        nd.train.fit_recovery(key, nd.ProperEnergy(), data, num_levels=0)
    for name in ("loss", "condition", "checkpoint"):
        with pytest.raises(TypeError, match=f"takes no `{name}`"):
            nd.train.fit_recovery(key, nd.ProperEnergy(), data, **{name: data})
    with pytest.raises(ValueError, match="must be finite"):
        nd.train.fit_recovery(key, nd.ProperEnergy(), data * np.nan)
