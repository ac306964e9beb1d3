"""Coresets and class weights: enumeration, unbiased sums, and saddle points in closed form."""

from itertools import combinations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import numpyro_diffusion as nd
from numpyro_diffusion.train import coreset, group_dro_weights
from numpyro_diffusion.train.coresets import inclusion
from numpyro_diffusion.train.sources import as_source

METHODS = ["sample", "kcenter", "herding", "density"]
SKEWED = np.random.default_rng(0).exponential(size=(400, 1)) ** 1.5
TWELVE = np.random.default_rng(1).normal(size=(12, 2)) * [1.0, 3.0]


# ---- coresets


@pytest.mark.parametrize("num", [2, 3, 5])
def test_centers_are_within_twice_the_least_radius(num):
    """All choices of centers among twelve points, by enumeration."""
    distances = np.linalg.norm(TWELVE[:, None] - TWELVE, axis=-1)
    least = min(distances[:, list(c)].min(1).max() for c in combinations(range(12), num))
    for seed in range(12):
        found = coreset(jax.random.key(seed), TWELVE, num / 12, method="kcenter")
        assert len(set(found.indices)) == num
        np.testing.assert_allclose(found.radius, distances[:, found.indices].min(1).max())
        assert least - 1e-12 <= found.radius <= 2 * least


@pytest.mark.parametrize("method", ["kcenter", "density"])
def test_distance_is_that_of_wasserstein(key, method):
    found = coreset(key, SKEWED, 0.1, method=method)
    kept = SKEWED[found.indices, 0]
    exact = wasserstein_distance(SKEWED[:, 0], kept, None, found.weights)
    np.testing.assert_allclose(found.distance, exact, rtol=1e-9)
    assert wasserstein_distance(SKEWED[:, 0], kept) > exact  # pruned, and not weighted
    assert found.weights.sum() == 400


def test_weighted_sums_of_a_sample_are_unbiased():
    """Sums over keys; without the weights they are not."""
    chances = inclusion(TWELVE, 4)
    np.testing.assert_allclose(chances.sum(), 4)
    f = TWELVE[:, 0] + TWELVE[:, 1] ** 2
    weighted, plain = [], []
    for seed in range(300):
        found = coreset(jax.random.key(seed), TWELVE, 1 / 3)
        assert len(set(found.indices)) == 4
        np.testing.assert_allclose(found.weights, 1 / chances[found.indices])
        weighted.append(found.weights @ f[found.indices])
        plain.append(3 * f[found.indices].sum())
    error = np.std(weighted) / 300**0.5
    assert abs(np.mean(weighted) - f.sum()) < 4 * error
    assert abs(np.mean(plain) - f.sum()) > 8 * error


def test_an_example_that_is_certain_to_be_kept_has_weight_one(key):
    far = np.append(np.zeros(9), 100.0)[:, None]
    chances = inclusion(far, 3)
    np.testing.assert_allclose(chances, np.append(np.full(9, 2 / 9), 1.0))
    found = coreset(key, far, 0.3)
    assert found.indices[-1] == 9 and found.weights[-1] == 1.0


def test_herding_keeps_the_means_of_the_features(key):
    features = np.concatenate([SKEWED, SKEWED**2 / 10], 1)
    errors = {}
    for method in ("herding", "density"):
        found = coreset(key, features, 0.1, method=method)
        kept = np.average(features[found.indices], 0, found.weights)
        errors[method] = np.abs(kept - features.mean(0)).max() / features.std(0).max()
    assert errors["herding"] < 0.06 < errors["density"]


def test_density_drops_the_tails(key):
    """The 40 farthest of the mean; a standard deviation without weights, for comparison."""
    found = coreset(key, SKEWED, 0.9, method="density")
    far = np.abs(SKEWED - SKEWED.mean())[:, 0]
    dropped = np.setdiff1d(np.arange(400), found.indices)
    assert far[dropped].min() >= far[found.indices].max()
    assert SKEWED[found.indices].std() < 0.7 * SKEWED.std()
    assert "heuristic" in found.target


@pytest.mark.parametrize("method", METHODS)
def test_everything_kept_is_the_data(key, method):
    found = coreset(key, TWELVE, 1.0, method=method)
    np.testing.assert_array_equal(found.indices, np.arange(12))
    np.testing.assert_allclose(found.weights, 1.0)
    assert found.radius < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_equal_examples_are_kept_once_each(key, method):
    found = coreset(key, np.zeros((6, 2)), 0.5, method=method)
    assert len(set(found.indices)) == 3 and found.distance == 0
    np.testing.assert_allclose(found.weights.sum(), 6)


@pytest.mark.parametrize("method", ["sample", "kcenter"])
def test_training_draws_the_data_from_a_weighted_coreset(key, method):
    """Half of the examples, drawn as `fit` draws them: the mean and spread of all."""
    found = coreset(key, SKEWED, 0.5, method=method)
    source = as_source(jnp.asarray(SKEWED[found.indices]), (1,), None, found.weights)
    drawn = np.asarray(source.draw(key, 100_000, None).examples)
    np.testing.assert_allclose(drawn.mean(), SKEWED.mean(), rtol=0.05)
    np.testing.assert_allclose(drawn.std(), SKEWED.std(), rtol=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "`share` must be a finite number above 0 and at most 1; got 0.0"),
        ({"share": 1.5}, "`share` must be a finite number above 0 and at most 1; got 1.5"),
        (
            {"method": "best"},
            "`method` must be one of sample, kcenter, herding, density; got 'best'",
        ),
        ({"features": np.full((3, 1), np.nan)}, r"`features` must be finite.*\(3, 1\) with 3 NaN"),
        ({"features": np.zeros((0, 2))}, r"`features` must be finite.*got shape \(0, 2\)"),
    ],
)
def test_what_no_coreset_is_made_of(key, given, message):
    given = {"features": TWELVE, "share": 0.5, **given}
    with pytest.raises(ValueError, match=message):
        coreset(key, **given)


# ---- class weights


def exactly(mean, variance, num, seed):
    x = np.random.default_rng(seed).normal(size=num)
    return mean + (x - x.mean()) / x.std() * variance**0.5


# Means 0 and 4, variances 1 and 3, nine to one.
DATA = np.concatenate([exactly(0, 1, 900, 0), exactly(4, 3, 100, 1)])[:, None]
LABELS = np.array(["common"] * 900 + ["rare"] * 100)
START = nd.ScoreFunction(lambda theta, x, t: -x, (1,), params=jnp.asarray(0.4))


def squared(model, key, batch):
    del key
    return jnp.mean((batch - model.params) ** 2)


OPTIONS = {
    "steps": 4000,
    "batch_size": 64,
    "learning_rate": 1e-2,
    "rate": 5e-3,
    "smoothing": 1e-5,
}


def solved(reference, **options):
    return group_dro_weights(
        jax.random.key(0), START, DATA, LABELS, reference=reference, loss=squared,
        trainable=lambda model: model.params, **(OPTIONS | options),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "theta"),
    [
        ([1.0, 3.0], 2.0),  # what each class can reach
        (None, 2.25),  # the wide class counts more than it can help
        ([1.16, 15.96], 0.4),  # the minimum of the average loss is its own saddle point
    ],
)
def test_the_saddle_point(reference, theta):
    found = solved(reference)
    losses = np.array([theta**2 + 1, (theta - 4) ** 2 + 3])
    np.testing.assert_allclose(found.shares, [1 - theta / 4, theta / 4], atol=0.02)
    np.testing.assert_allclose(found.energy.params, theta, atol=0.04)
    excess = losses - (0 if reference is None else np.array(reference))
    np.testing.assert_allclose(found.excess, excess, atol=0.3)
    # The weights, given to an average over the data, lead to the same model.
    np.testing.assert_allclose(np.average(DATA[:, 0], weights=found.weights), theta, atol=0.08)
    np.testing.assert_allclose(found.weights.sum(), 1000)
    assert found.classes.tolist() == ["common", "rare"]


def test_the_worst_class_is_better_off():
    found = solved([1.0, 3.0])
    worst = lambda theta: max(theta**2, (theta - 4) ** 2)
    plain = DATA.mean()
    np.testing.assert_allclose(plain, 0.4)
    np.testing.assert_allclose(worst(plain), 12.96)
    assert abs(worst(float(found.energy.params)) - 4.0) < 0.2


def test_a_model_as_reference_sees_the_same_examples():
    """A model that is its own reference, and does not move, has no excess at all."""
    found = solved(START, steps=10, learning_rate=1e-12)
    np.testing.assert_allclose(found.excess, 0, atol=1e-5)
    np.testing.assert_allclose(found.shares, 0.5, atol=1e-6)


def test_losses_that_are_no_numbers_end_it():
    with pytest.raises(nd.train.TrainingDiverged, match="became non-finite. Lower `learning_rate`"):
        solved(None, steps=20, learning_rate=1e200)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": LABELS[:3]}, r"`labels` must have shape \(1000,\).*got \(3,\)"),
        ({"labels": np.zeros(1000)}, "at least 2 classes.*got"),
        ({"reference": [1.0]}, "`reference` must be 2 finite losses"),
        ({"rate": 0.0}, "`rate` must be a finite number above 0"),
        ({"smoothing": 1.0}, r"`smoothing` must be .* of at least 0 and below 1"),
        ({"steps": 0}, "`steps`.*at least 1"),
    ],
)
def test_what_is_refused(given, message):
    given = {"labels": LABELS, **given}
    with pytest.raises(ValueError, match=message):
        group_dro_weights(jax.random.key(0), START, DATA, loss=squared, **given)


def test_units_go_through():
    """A standardised distribution is trained in its own units: the same shares."""
    units = nd.energies.Standardized(START, np.array([1.0]), np.array([2.0]))
    scaled = lambda model, key, batch: 4 * squared(model, key, batch)
    options = {"steps": 50, "loss": scaled, "trainable": lambda model: model.params}
    found = group_dro_weights(jax.random.key(0), units, DATA, LABELS, **options)
    plain = group_dro_weights(jax.random.key(0), START, (DATA - 1) / 2, LABELS, **options)
    np.testing.assert_allclose(found.shares, plain.shares, rtol=1e-4)
    assert isinstance(found.energy, nd.energies.Standardized)
    assert eqx.tree_equal(found.energy.energy.params, plain.energy.params, rtol=1e-4)
