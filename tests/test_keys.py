"""No two streams of random numbers that must be independent come from one key."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from filtering import walk

import numpyro_diffusion as nd
from numpyro_diffusion.density import estimate
from numpyro_diffusion.ppl import draws
from numpyro_diffusion.train.sources import Examples
from numpyro_diffusion.train.updates import Updates

numbers = lambda key: np.asarray(jax.random.key_data(key)).reshape(-1, 2).tolist()


def test_a_fold_is_a_part_of_a_split(key):
    """The fact that makes the rest of this file worth looking at."""
    assert numbers(jax.random.fold_in(key, 1)) == numbers(jax.random.split(key)[1])


def test_conditions_are_dropped_whatever_the_augmentation_draws(key):
    """If their keys are related, the number that drops a condition follows from that of its augmentation."""
    num, found = 64, {}

    def augment(key, x):
        first, second = jax.random.key_data(key)
        return jnp.where((first ^ second) >> 9 < 0.5 * 2**23, 1.0, 0.0) + 0 * x

    def objective(weights, key, batch):
        found["batch"] = batch
        return jnp.sum(weights), {}

    data = Examples(jnp.zeros((num, 1)), jnp.ones((num, 1)))
    updates = Updates(objective, data, num, 1, 0.9, optax.sgd(0.1), key, lambda leaf: leaf, augment,
                      jnp.zeros(1), np.float32(0.5))  # fmt: skip
    updates.gradient(jnp.ones(1), key, None)
    batch = found["batch"]
    alike = np.mean(
        np.asarray(batch.examples[:, 0] == 1.0) == np.asarray(batch.condition[:, 0] == 0.0)
    )
    assert abs(alike - 0.5) < 0.25, alike


def streams(monkeypatch, function):
    """Keys that random functions are called with; those that are split are no stream."""
    seen = []
    for name in ("uniform", "permutation", "normal", "bernoulli"):
        real = getattr(jax.random, name)

        def spy(key, *args, real=real, name=name, **kwargs):
            seen.append((name, *numbers(key)[0]))
            return real(key, *args, **kwargs)

        monkeypatch.setattr(jax.random, name, spy)
    with jax.disable_jit():
        function()
    return seen


def test_weighted_examples_are_placed_and_ordered_by_two_keys(key, monkeypatch):
    source = Examples(jnp.arange(8.0)[:, None], None, jnp.arange(1.0, 9.0))
    used = {name: pair for name, *pair in streams(monkeypatch, lambda: source.draw(key, 16, None))}
    parts = numbers(jax.random.split(key))
    assert [used["uniform"], used["permutation"]] == parts


def test_rounds_of_an_estimate_do_not_share_keys(key, monkeypatch):
    rounds = []

    def estimates_at(estimator, prior, x, keys, **_):
        rounds.append(keys)
        nothing = jnp.zeros(len(x))
        return estimate.Point(nothing, nothing + 1.0, nothing + 10.0)

    monkeypatch.setattr(estimate, "estimates_at", estimates_at)
    nd.density.ScoreFormula()(
        nd.GaussianMixture(), jnp.zeros((4, 2)), key, tolerance=0.1, max_evaluations=60
    )
    assert len(rounds) == 6
    family = lambda key: [*numbers(key), *numbers(jax.random.split(key, 4))]
    parts = [{tuple(one) for k in keys for one in family(k)} for keys in rounds]
    for i, one in enumerate(parts):
        assert len(one) == 4 * 5
        for two in parts[:i]:
            assert not one & two


def test_discrete_sites_and_clouds_do_not_share_keys(key, monkeypatch):
    result = nd.run_smc(key, walk(), 12, num_chains=4)
    used = []
    monkeypatch.setattr(
        draws, "_drawn_discrete", lambda model, z, keys: (used.append(keys), ({}, np.ones(1)))[1]
    )
    draws.with_discrete(SimpleNamespace(discrete_sites=("k",), model=None), result, key)
    clouds = jax.random.split(key, 4)
    theirs = {tuple(k) for one in clouds for k in numbers(jax.random.split(one, (4, 12)))}
    assert not theirs & {tuple(k) for k in numbers(used[0])}
