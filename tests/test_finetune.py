"""Fine-tuning with rewards: a chain in closed form, and five routes to one distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.train import (
    PPO,
    DirectBackprop,
    EarlyStopping,
    Optimizer,
    PathConsistency,
    ReverseChain,
    RewardWeighted,
    TrainingDiverged,
    ValueWeighted,
    finetune,
)
from numpyro_diffusion.train.finetune.ppo import above_baseline, clipped, returns_of

LOW, HIGH = 0.05, 20.0
SCHEDULE = nd.schedules.VariancePreserving()
ENDS = {"t_min": float(SCHEDULE.time_at_noise(LOW)), "t_max": float(SCHEDULE.time_at_noise(HIGH))}
LINE = nd.Gaussian([0.0], [[1.0]], **ENDS)
NET = nd.nets.ResidualMLP(jax.random.key(1), (1,), width=16, depth=1)
START = nd.NetworkDenoiser(nd.InnerProductEnergy(NET, [0.0], [[1.0]], **ENDS))
LAWS = {"linear": (1.5, 1.0, 1.125), "curved": (0.8, 0.2, -1.2047)}  # mean, variance, log constant
QUICK = {"stopping": EarlyStopping(check_every=100, validation_repeats=1), "progress_bar": False}


def linear(x):
    return 1.5 * x[0]


def curved(x):
    return -2.0 * (x[0] - 1.0) ** 2


REWARDS = {"linear": linear, "curved": curved}


def best_of_gaussian_steps(num_steps, k=4.0, m=1.0):
    """Mean, variance, and E[r] - KL of the best steps with the prior's variances for r = -k (x - m)^2 / 2.

    A control problem with a quadratic cost, by Riccati's recursion: a step is a u + noise of variance v.
    """
    s = np.geomspace(HIGH, LOW, num_steps + 1)
    share = 1 - s[1:] ** 2 / s[:-1] ** 2
    a = 1 - share + share / (1 + s[:-1] ** 2)
    v = s[1:] ** 2 * share + share**2 * s[:-1] ** 2 / (1 + s[:-1] ** 2)
    steps = list(zip(a, v, strict=True))
    p, q, c, gains = k, k * m, 0.5 * k * m**2, []  # what is left to pay: p x^2 / 2 - q x + c
    for a, v in steps[::-1]:
        gains.append((a / (1 + p * v), q * v / (1 + p * v)))
        c += 0.5 * p * v - 0.5 * q**2 * v / (1 + p * v)
        p, q = a**2 * p / (1 + p * v), a * q / (1 + p * v)
    mean, variance = 0.0, 1 + HIGH**2
    gain = -c - 0.5 * p * variance
    for (a, b), (_, v) in zip(gains[::-1], steps, strict=True):
        mean, variance = a * mean + b, a**2 * variance + v
    return mean, variance, gain


def draws_of(model, chain, num=20_000):
    draw = jax.jit(jax.vmap(lambda key: chain.draw(model, key)))
    return np.asarray(draw(jax.random.split(jax.random.key(9), num)))[:, 0]


def test_the_chain_of_a_gaussian_is_exact_in_three_steps():
    prior = nd.Gaussian([0.5, -1.0], [[2.25, 0.0], [0.0, 0.3]], **ENDS)
    chain = ReverseChain(prior, 3)
    mean, variance = prior.data_moments(chain.times[0])
    for step in range(3):
        moments = lambda u, step=step: chain.moments(prior, u, jnp.asarray(step))
        slope = jnp.diagonal(jax.jacfwd(moments)(mean)[0])
        mean, sd = moments(mean)
        variance = slope**2 * variance + sd**2
    np.testing.assert_allclose(mean, [0.5, -1.0], rtol=1e-6)
    np.testing.assert_allclose(variance, np.array([2.25, 0.3]) + LOW**2, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [4, 16])
def test_the_best_control_of_a_linear_reward_costs_its_divergence(num_steps, key):
    """Girsanov's divergence, 1.5^2 / 2, and path weights that do not vary: less what t_max leaves."""
    prior, ideal = nd.Gaussian([0.0], [[1.0]]), nd.Gaussian([1.5], [[1.0]])
    chain = ReverseChain(prior, num_steps)

    @jax.jit
    @jax.vmap
    def found(key):
        return jnp.sum(chain.path(ideal, key).divergences), chain.log_weight(ideal, key, linear)

    divergence, log_weight = found(jax.random.split(key, 200))
    np.testing.assert_allclose(divergence, 1.125, rtol=1e-3)
    # A path begins where it likes: 1.5 u / (1 + s^2) with noise s = 100 and u as wide.
    np.testing.assert_allclose(log_weight, 1.125, atol=5 * 1.5 / 100)
    np.testing.assert_allclose(np.std(log_weight), 1.5 / 100, rtol=0.2)


def test_paths_of_a_wrong_model_weigh_what_is_missing(key):
    """Their mean weight is E[exp(r)] whatever the model; E[r] - KL is less."""
    chain, wrong = ReverseChain(LINE, 8), nd.Gaussian([0.8], [[1.0]], **ENDS)

    @jax.jit
    @jax.vmap
    def found(key):
        return chain.log_weight(wrong, key, linear), chain.gain(wrong, key, linear)

    log_weights, gains = (np.asarray(a) for a in found(jax.random.split(key, 20_000)))
    weights = np.exp(log_weights - 1.125 * (1 + LOW**2))
    error = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - 1) < 5 * error and error < 0.01
    expected = 1.5 * 0.8 - 0.5 * 0.8**2
    np.testing.assert_allclose(
        gains.mean(), expected, atol=5 * gains.std() / len(gains) ** 0.5 + 2e-3
    )


def test_backpropagation_finds_the_best_gaussian_steps(key):
    found = finetune(
        DirectBackprop(num_steps=8), key, START, curved, steps=150, learning_rate=2e-2, **QUICK
    )
    x = draws_of(found.energy, ReverseChain(START, 8))
    mean, variance, gain = best_of_gaussian_steps(8)
    assert variance > 0.29  # eight steps with the prior's variances cannot do better
    np.testing.assert_allclose(x.mean(), mean, atol=0.02)
    np.testing.assert_allclose(x.var(), variance, atol=0.02)
    np.testing.assert_allclose(found.history["validation_loss"].min(), -gain, atol=0.1)
    # Path weights make up for the rest.
    np.testing.assert_allclose(found.log_normalizer, LAWS["curved"][2], atol=0.08)
    assert 0.6 < found.ess < 0.95 and found.evaluations == 6 * 8 * 128 * 150


@pytest.mark.parametrize(
    "route, options",
    [
        (PPO(num_steps=8), {"steps": 400, "learning_rate": 1e-2}),
        (PathConsistency(num_steps=8), {"steps": 150, "learning_rate": 2e-2}),
    ],
)
def test_routes_without_a_slope_of_the_reward_reach_a_shift(route, options, key):
    """With a black box: no derivative of the reward exists."""
    black_box = lambda x: jax.pure_callback(
        lambda x: np.asarray(1.5 * x[..., 0]), jax.ShapeDtypeStruct((), x.dtype), x,
        vmap_method="expand_dims",
    )  # fmt: skip
    found = finetune(
        route, key, START, lambda x: 2 * black_box(x), temperature=2.0, **options, **QUICK
    )
    x = draws_of(found.energy, ReverseChain(START, 8))
    np.testing.assert_allclose(x.mean(), 1.5, atol=0.05)
    np.testing.assert_allclose(x.var(), 1.0, atol=0.05)
    np.testing.assert_allclose(found.log_normalizer, 1.125, atol=0.05)
    assert found.ess > 0.9


ROUTES = {
    "reward-weighted": (RewardWeighted(num_draws=50_000), {"steps": 1500, "batch_size": 512}),
    "value-weighted": (ValueWeighted(), {"steps": 1500, "batch_size": 512}),
    "ppo": (PPO(), {"steps": 800}),
    "backpropagation": (DirectBackprop(), {"steps": 300}),
    "path consistency": (PathConsistency(), {"steps": 400}),
}


@pytest.mark.long
@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("name", list(ROUTES))
def test_all_routes_lead_to_one_distribution(name, law, key):
    route, options = ROUTES[name]
    # A prior with exact draws is needed for a value: the Gaussian that the network starts from.
    start = LINE if name == "value-weighted" else START
    rate = 3e-3 if "weighted" in name else 1e-2
    found = finetune(route, key, start, REWARDS[law], learning_rate=rate, **options, **QUICK)
    mean, variance, log_constant = LAWS[law]
    chain = ReverseChain(start, 32)

    @jax.jit
    @jax.vmap
    def weighted(key):
        points = chain.path(found.energy, key).points
        log_weight = REWARDS[law](points[-1]) - jnp.sum(chain.log_ratios(found.energy, points))
        return points[-1][0], jnp.exp(log_weight) if name == "value-weighted" else 1.0

    x, weights = weighted(jax.random.split(jax.random.key(9), 20_000))
    found_mean = jnp.average(x, weights=weights)
    found_variance = jnp.average((x - found_mean) ** 2, weights=weights)
    # Finite steps leave 0.02 of the variance, and what is read has noise 0.05; draws have an error of 0.01.
    np.testing.assert_allclose(found_mean, mean, atol=0.05)
    wide = 0.08 if name == "reward-weighted" else 0.05  # few examples count
    np.testing.assert_allclose(found_variance, variance, atol=wide)
    np.testing.assert_allclose(found.log_normalizer, log_constant, atol=0.05)
    assert found.ess > 0.85


def test_a_value_beside_a_prior_without_exact_draws(key):
    """The same tilt for a denoiser, which comes back with a factor for weighted samplers."""
    route = ValueWeighted(num_draws=4000, num_steps=16)
    found = finetune(
        route, key, START, curved, steps=300, batch_size=256, learning_rate=5e-3, **QUICK
    )
    assert isinstance(found.energy, nd.energies.FactoredDenoiser)
    np.testing.assert_allclose(found.log_normalizer, LAWS["curved"][2], atol=0.15)
    assert found.ess > 0.6


def test_a_ratio_is_clipped_where_it_has_gone_far_enough():
    ratio, advantage = jnp.array([1.5, 1.5, 0.5, 0.5, 1.1]), jnp.array([1.0, -1.0, 1.0, -1.0, 2.0])
    np.testing.assert_allclose(clipped(ratio, advantage, 0.2), [1.2, -1.5, 0.5, -0.8, 2.2])


def test_a_return_pays_for_what_is_left_of_the_path():
    found = returns_of(jnp.array([1.0, 2.0]), jnp.array([[0.1, 0.2, 0.3], [0.0, 0.5, 0.0]]))
    np.testing.assert_allclose(found, [[0.5, 0.7, 1.0], [1.5, 2.0, 2.0]])


def test_a_baseline_knows_nothing_of_its_own_path(rng):
    """Against regressions on the other paths, one by one; less the ridge that all share."""
    returns, points = rng.normal(size=(12, 3)), rng.normal(size=(12, 3, 2))
    found = above_baseline(jnp.asarray(returns), jnp.asarray(points))
    z = (points[:, 1] - points[:, 1].mean(0)) / points[:, 1].std(0)
    design = np.column_stack([np.ones(12), z])
    for i in range(12):
        rest = np.delete(np.arange(12), i)
        ridge = 12e-3 * np.eye(3)
        gram = design[rest].T @ design[rest] + ridge
        coefficients = np.linalg.solve(gram, design[rest].T @ returns[rest, 1])
        np.testing.assert_allclose(found[i, 1], returns[i, 1] - design[i] @ coefficients, rtol=1e-4)


def test_rewards_are_in_the_units_of_a_table(key):
    data = np.random.default_rng(0).normal(size=(1000, 1))
    short = QUICK | {"steps": 60, "stopping": EarlyStopping(check_every=30, validation_repeats=1)}
    units = nd.energies.Standardized(START, np.array([5e3]), np.array([2e3]))
    in_units = lambda x: linear((x - 5e3) / 2e3)
    route = RewardWeighted(num_steps=4)
    found = finetune(route, key, units, in_units, data=5e3 + 2e3 * data, **short)
    same = finetune(route, key, START, linear, data=data, **short)
    np.testing.assert_allclose(
        found.history["validation_loss"], same.history["validation_loss"], rtol=1e-6
    )
    assert isinstance(found.energy, nd.energies.Standardized)
    assert same.history["validation_loss"][-1] < 0.9 * same.history["validation_loss"][0]


def test_a_reward_that_is_no_number_stops_training(key):
    hole = lambda x: jnp.where(x[0] > 1.0, jnp.nan, x[0])
    options = QUICK | {"steps": 8, "batch_size": 64}
    with pytest.raises(TrainingDiverged, match="non-finite before step 8"):
        finetune(PPO(num_steps=2), key, START, hole, **options)
    with pytest.raises(ValueError, match=r"rewards must be finite; \d+ of 500 are not"):
        finetune(RewardWeighted(num_draws=500, num_steps=2), key, START, hole, **options)


def test_what_is_refused(key):
    call = lambda *args, **options: finetune(*args, **(QUICK | options))
    with pytest.raises(TypeError, match="`route` must be an instance .* got <class"):
        call(PPO, key, START, linear)
    with pytest.raises(ValueError, match="`temperature` must be a finite number above 0; got 0"):
        call(PPO(), key, START, linear, temperature=0.0)
    with pytest.raises(ValueError, match=r"one number, of shape \(\); got shape \(1,\)"):
        call(PPO(), key, START, lambda x: x)
    with pytest.raises(ValueError, match="`clip` of `PPO` must be a finite number above 0"):
        PPO(clip=0.0)
    with pytest.raises(ValueError, match="`length` of `PathConsistency` must be at least 1; got 0"):
        PathConsistency(length=0)
    with pytest.raises(TypeError, match="`Gaussian` has no network to train"):
        call(DirectBackprop(), key, LINE, linear)
    with pytest.raises(ValueError, match="`PPO` takes one batch on one device"):
        call(PPO(), key, START, linear, optimizer=Optimizer(accumulate=2))
    with pytest.raises(TypeError, match="`ValueWeighted` trains a value beside the prior"):
        call(ValueWeighted(), key, START, linear, trainable=lambda model: model.net)
    with pytest.raises(ValueError, match="`data` must have shape"):
        call(RewardWeighted(), key, START, linear, data=np.zeros((10, 3)))
