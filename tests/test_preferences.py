"""Preferences: optima of the losses, log ratios that are exact, and the distributions they lead to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit

import numpyro_diffusion as nd
from numpyro_diffusion.train import DMPO, DPO, EarlyStopping

PRIOR = nd.Gaussian([0.0], [[1.0]])
SKEWED = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
REWARD = np.array([1.0, -2.0])
BETA = 2.0
MEAN = {
    "trainable": lambda energy: energy.mean, "steps": 400, "batch_size": 512, "learning_rate": 0.02,
    "stopping": EarlyStopping(check_every=100, validation_repeats=1), "progress_bar": False,
}  # fmt: skip


def least(loss, rate):
    """Where the mean loss is least if a share `rate` of pairs of one kind is won by the first."""
    won, lost = (
        (lambda h: float(loss(jnp.asarray(h), 1.0))),
        (lambda h: float(loss(jnp.asarray(-h), 1.0))),
    )
    return minimize_scalar(
        lambda h: rate * won(h) + (1 - rate) * lost(h), bounds=(-9, 9), method="bounded"
    ).x


@pytest.mark.parametrize("rate, sharp", [(0.6, 0.9190), (0.8, 2.7571), (0.95, 4.1356)])
def test_hard_labels_calibrate_one_loss_and_sharpen_the_other(rate, sharp):
    np.testing.assert_allclose(least(DPO(), rate), logit(rate), atol=1e-4)
    np.testing.assert_allclose(least(DMPO(flip_rate=0.01), rate), sharp, atol=1e-4)
    for loss in (DPO(), DMPO()):
        soft = lambda h, loss=loss: float(loss(jnp.asarray(h), rate))
        h = minimize_scalar(soft, bounds=(-9, 9), method="bounded").x
        np.testing.assert_allclose(h, logit(rate), atol=1e-4)
    np.testing.assert_allclose(
        DMPO()(logit(rate), rate), 0.0, atol=1e-12
    )  # a divergence, not a likelihood


def test_the_reverse_divergence_is_that_of_a_softmax_over_two_examples():
    """KL of softmax(log ratios) from the labels, as in the paper's finite-sample form; and its slope."""
    rng = np.random.default_rng(0)
    for g_won, g_lost, reward, other in rng.normal(scale=2.0, size=(20, 4)):
        ours, label = log_softmax([g_won, g_lost]), log_softmax([reward, other])
        expected = np.sum(np.exp(ours) * (ours - label))
        h, chance = jnp.asarray(g_won - g_lost), np.exp(label[0])
        np.testing.assert_allclose(DMPO()(h, chance), expected, rtol=1e-9, atol=1e-12)
        slope = expit(h) * expit(-h) * (h - logit(chance))
        np.testing.assert_allclose(jax.grad(DMPO())(h, chance), slope, rtol=1e-9, atol=1e-12)
        for won in (1.0, 0.0):
            hard = np.log([0.99, 0.01] if won else [0.01, 0.99])
            expected = np.sum(np.exp(ours) * (ours - hard))
            np.testing.assert_allclose(DMPO(flip_rate=0.01)(h, won), expected, rtol=1e-9)


@pytest.mark.parametrize("loss", [DPO(), DMPO()])
@pytest.mark.parametrize("chain", [False, True])
def test_all_that_a_table_of_examples_can_be_becomes_the_tilted_distribution(loss, chain):
    """Free probabilities of seven examples, from all pairs or from neighbours alone."""
    rng = np.random.default_rng(1)
    prior, reward = rng.dirichlet(np.ones(7)), rng.normal(scale=1.5, size=7)
    first, second = np.triu_indices(7, 1)
    if chain:
        first, second = np.arange(6), np.arange(1, 7)
    chances = jnp.asarray(expit(reward[first] - reward[second]))

    def objective(log_ratio):
        h = BETA * (log_ratio[first] - log_ratio[second])
        return jnp.mean(jax.vmap(loss)(h, chances))

    slope = jax.jit(jax.value_and_grad(objective))
    found = minimize(
        lambda x: tuple(np.asarray(v, float) for v in slope(x)), np.zeros(7), jac=True, tol=1e-12
    ).x
    law = np.exp(np.log(prior) + found)
    tilted = prior * np.exp(reward / BETA)
    np.testing.assert_allclose(law / law.sum(), tilted / tilted.sum(), rtol=1e-3)


@pytest.mark.parametrize("num_levels", [1, 5])
def test_a_shift_of_a_gaussian_has_no_noise_in_its_log_ratio(num_levels, key):
    """Every level and every draw says the same, less what lies outside of the levels."""
    moved = nd.Gaussian([0.7], [[1.0]])
    log_ratio = nd.train.denoising_log_ratio(num_levels)
    found = jax.jit(
        jax.vmap(lambda key: log_ratio(moved, PRIOR, key, jnp.array([1.2]), jnp.array([-0.8])))
    )
    np.testing.assert_allclose(found(jax.random.split(key, 50)), 0.7 * 2.0, rtol=1e-3)


def test_log_ratios_of_other_pairs_are_right_in_the_mean(key):
    """Another mean and another covariance, neither like the scale of the prior."""
    other = nd.Gaussian([0.2, 0.4], [[0.5, -0.2], [-0.2, 0.6]])
    winner, loser = jnp.array([0.4, 1.0]), jnp.array([-0.3, -0.2])
    exact = nd.train.energy_log_ratio(other, SKEWED, key, winner, loser)
    at_end = lambda law, x: law.log_density(x, jnp.asarray(law.t_min))
    density = [at_end(other, x) - at_end(SKEWED, x) for x in (winner, loser)]
    np.testing.assert_allclose(exact, density[0] - density[1], rtol=1e-10)
    log_ratio = nd.train.denoising_log_ratio(64)
    one = jax.jit(jax.vmap(lambda key: log_ratio(other, SKEWED, key, winner, loser)))
    draws = np.asarray(one(jax.random.split(key, 2000)))
    error = draws.std() / len(draws) ** 0.5
    assert error < 0.05 and abs(draws.mean() - exact) < 5 * error


def pairs(num, seed, law=SKEWED, reward=REWARD):
    """Two draws of the prior each, and with which chance the first is preferred."""
    rng = np.random.default_rng(seed)
    x, y = rng.multivariate_normal(law.mean, [[1.0, 0.6], [0.6, 0.8]], size=(2, num))
    return x, y, expit((x - y) @ reward)


@pytest.mark.parametrize("loss", [DPO(), DMPO()])
def test_soft_labels_tilt_a_gaussian(loss, key):
    """Mean m + S a / beta, whatever the loss."""
    x, y, chances = pairs(4000, 0)
    found = nd.train.fit_preferences(
        key, SKEWED, x, y, chances=chances, loss=loss, beta=BETA, **MEAN
    )
    expected = np.array([0.5, -1.0]) + np.array([[1.0, 0.6], [0.6, 0.8]]) @ REWARD / BETA
    np.testing.assert_allclose(found.energy.mean, expected, rtol=0.02)
    assert "p(x) exp(r(x) / 2)" in found.target and found.learned


def test_hard_labels_tilt_a_gaussian_by_one_loss_and_too_far_by_the_other(key):
    """On the line with r = x: 0.5 for DPO, and 1.0160 for DMPO with a flip rate of 0.01."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 60_000, 1))
    first = rng.uniform(size=(len(x), 1)) < expit(x - y)
    winners, losers = np.where(first, x, y), np.where(first, y, x)
    fitted = lambda loss: nd.train.fit_preferences(
        key, PRIOR, winners[:-40_000], losers[:-40_000], loss=loss, beta=BETA,
        validation=(winners[-40_000:], losers[-40_000:]), log_ratio=nd.train.energy_log_ratio, **MEAN,
    )  # fmt: skip
    # A pair tells beta^2 (x - y)^2 p (1 - p) of the shift: 0.8 in the mean, for 20,000 of them.
    error = 5 / (0.8 * 20_000) ** 0.5
    calibrated, sharp = fitted(DPO()), fitted(DMPO(flip_rate=0.01))
    np.testing.assert_allclose(calibrated.energy.mean, 0.5, atol=error)
    np.testing.assert_allclose(sharp.energy.mean, 1.0160, atol=2 * error)
    assert "heuristic" in sharp.target and "heuristic" not in calibrated.target


def test_units_of_a_table_are_kept(key):
    """In thousands around 5,000: the same fit."""
    x, y, chances = pairs(500, 2)
    location, scale = np.array([5e3, 1.0]), np.array([1e3, 2.0])
    units = nd.energies.Standardized(SKEWED, location, scale)
    short = MEAN | {"steps": 50, "stopping": EarlyStopping(check_every=50, validation_repeats=1)}
    found = nd.train.fit_preferences(
        key, units, *(location + scale * a for a in (x, y)), chances=chances, **short
    )
    same = nd.train.fit_preferences(key, SKEWED, x, y, chances=chances, **short)
    np.testing.assert_allclose(found.energy.energy.mean, same.energy.mean, rtol=1e-6)
    assert np.abs(same.energy.mean - SKEWED.mean).max() > 0.1


@pytest.mark.long
def test_a_network_learns_the_tilted_distribution(key):
    time = lambda s: float(PRIOR.schedule.time_at_noise(s))
    net = nd.nets.ResidualMLP(key, (1,), width=32, depth=1)
    start = nd.NetworkDenoiser(
        nd.InnerProductEnergy(net, [0.0], [[1.0]], t_min=time(0.05), t_max=time(20.0))
    )
    x, y = np.random.default_rng(0).normal(size=(2, 50_000, 1))
    found = nd.train.fit_preferences(
        key, start, x, y, chances=expit(x - y)[:, 0], beta=BETA, steps=1500, learning_rate=3e-3,
        stopping=EarlyStopping(check_every=500, validation_repeats=1), progress_bar=False,
    )  # fmt: skip
    draw = jax.jit(jax.vmap(lambda key: nd.energies.reverse.draw_prior(found.energy, key, 300)))
    draws = np.asarray(draw(jax.random.split(key, 20_000)))
    np.testing.assert_allclose(draws.mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(draws.var(), 1.0, atol=0.05)


def test_what_is_refused(key):
    x, y, chances = pairs(50, 3)
    fit = lambda *args, **options: nd.train.fit_preferences(key, *args, **(MEAN | options))
    with pytest.raises(ValueError, match="`DMPO` expects `chances` in .*DMPO.flip_rate=0.01"):
        fit(SKEWED, x, y, loss=DMPO())
    with pytest.raises(ValueError, match="`flip_rate` of `DMPO` must be .* below 0.5; got 0.7"):
        DMPO(flip_rate=0.7)
    with pytest.raises(ValueError, match="as many losers as winners; got 50 winners and 20"):
        fit(SKEWED, x, y[:20])
    with pytest.raises(ValueError, match=r"50 numbers in \[0, 1\]"):
        fit(SKEWED, x, y, chances=2 * chances + 1)
    with pytest.raises(ValueError, match="`beta` must be a finite number above 0; got 0"):
        fit(SKEWED, x, y, beta=0.0)
    with pytest.raises(TypeError, match="must be `train.DPO"):
        fit(SKEWED, x, y, loss=nd.train.denoising_loss)
    with pytest.raises(TypeError, match="`Gaussian` has no network to train"):
        fit(SKEWED, x, y, trainable=None)
    with pytest.raises(TypeError, match="takes no `weights`"):
        fit(SKEWED, x, y, weights=chances)
    with pytest.raises(TypeError, match="`energy_log_ratio` expects energies; got ScoreFunction"):
        law = nd.ScoreFunction(lambda x, t: -x, (2,))
        nd.train.energy_log_ratio(law, law, key, x[0], y[0])
