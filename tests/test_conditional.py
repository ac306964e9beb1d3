"""Energies under conditions: null conditions, normalisers by label, and what training finds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import energy_at, log_density_at

import numpyro_diffusion as nd
from numpyro_diffusion.nets import Labels, ResidualMLP, UNet, Vectors

MEANS = np.array([[-1.5, 0.4], [1.0, -0.8], [0.5, 2.0]])
FACTORS = np.array([[[0.5, 0.0], [0.3, 0.4]], [[0.9, 0.0], [-0.6, 0.3]], [[0.3, 0.0], [0.0, 0.8]]])
SHARES = np.array([0.5, 0.3, 0.2])
X = jnp.array([0.7, -0.4])


def random_energy(key, condition, shape=(2,), net=ResidualMLP, **options):
    @eqx.filter_jit  # layer by layer, every shape of a network would be a program
    def make(key, condition):
        made = net(key, shape, condition=condition, **options)
        weight = 0.2 * jax.random.normal(key, made.write.weight.shape)
        return eqx.tree_at(lambda n: n.write.weight, made, weight)

    size = int(np.prod(shape))
    return nd.ProperEnergy(make(key, condition), np.zeros(shape), np.linspace(0.4, 1.3, size))


CONDITIONS = {
    "labels": (Labels(jax.random.key(3), 4), [0, 3]),
    "vectors": (Vectors(jax.random.key(3), 2), [np.array([0.3, -1.0]), np.array([0.0, 2.0])]),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_null_is_no_condition_and_others_differ(kind, key):
    condition, (first, second) = CONDITIONS[kind]
    energy, t = random_energy(key, condition), jnp.asarray(0.2)
    told_at = eqx.filter_jit(lambda c: energy.given(c).energy(X, t))
    none, null = energy_at(energy, X, t), told_at(condition.null)
    np.testing.assert_allclose(null, none, rtol=1e-12)
    told = [float(energy_at(energy.given(c), X, t)) for c in (first, second)]
    assert abs(told[0] - told[1]) > 1e-3 and abs(told[0] - none) > 1e-3
    np.testing.assert_allclose(energy_at(energy.given(first).given(None), X, t), none, rtol=1e-12)
    # Traced conditions are the same law, and one program serves all of them.
    traced = jax.jit(lambda c: energy.given(c).energy(X, t))
    np.testing.assert_allclose([traced(c) for c in (first, second)], told, rtol=1e-10)
    for c in (first, condition.null):
        nd.check_energy(energy.given(c), X, t, key)


def test_a_missing_vector_leaves_no_nan_in_gradients(key):
    energy = random_energy(key, Vectors(key, 2))

    def value(arrays, c):
        return eqx.combine(arrays, rest).given(c).energy(X, jnp.asarray(0.2))

    arrays, rest = eqx.partition(energy, eqx.is_inexact_array)
    batch = jnp.array([[0.3, 1.0], [jnp.nan, jnp.nan]])
    slopes = jax.jit(jax.grad(lambda a: jax.vmap(lambda c: value(a, c))(batch).sum()))(arrays)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert np.abs(slopes.net.condition.weight).max() > 0
    assert np.abs(slopes.net.condition.absent).max() > 0


def test_a_network_without_conditions_refuses_one():
    with pytest.raises(ValueError, match="takes no condition.*Labels"):
        nd.ProperEnergy().given(2).energy(X, jnp.asarray(0.1))


def test_normalisers_of_labels_make_energies_comparable(key, tmp_path):
    plain = random_energy(key, Labels(key, 3))
    known = np.array([0.7, -2.0, 5.0])
    energy = plain.with_label_normalizers(known, [0.1, 0.3, 0.2])
    assert energy.log_normalizer is None and energy.given(1).log_normalizer == 0.0
    assert energy.given(1).log_normalizer_error == 0.3 and plain.given(1).log_normalizer is None
    t = jnp.asarray(energy.t_min)
    log_density = lambda e: jax.jit(
        jax.vmap(lambda c: e.given(c).log_density(X, t))
    )(jnp.arange(3))  # fmt: skip
    np.testing.assert_allclose(log_density(energy), log_density(plain) - known, rtol=1e-12)
    nd.save(tmp_path / "energy.safetensors", energy)
    again = nd.load(tmp_path / "energy.safetensors")
    np.testing.assert_array_equal(log_density(again), log_density(energy))
    other = energy.with_horizon(t_min=2 * energy.t_min)
    assert other.label_normalizers is None and other.given(1).log_normalizer is None
    for values, errors in (([1.0, np.nan, 0.0], None), ([1.0], [-1.0]), ([1.0, 2.0], [0.1])):
        with pytest.raises(ValueError, match="one finite value a label"):
            plain.with_label_normalizers(values, errors)


def test_no_label_gets_the_normaliser_of_another(key):
    energy = random_energy(key, Labels(key, 3)).with_label_normalizers([0.7, -2.0, 5.0])
    t = jnp.asarray(energy.t_min)
    for label in (
        3,
        -1,
        12,
        1.5,
    ):  # 3 is null: the law of all labels, whose normaliser is another one
        with pytest.raises(ValueError, match="label from 0 to 2"):
            energy.given(label)
    traced = jax.jit(lambda c: energy.given(c).log_density(X, t))
    assert jnp.isfinite(traced(2)) and all(jnp.isnan(traced(c)) for c in (3, -1, 12))
    assert energy.with_label_normalizers(None).given(3).log_normalizer is None


def test_training_forgets_the_normalisers_of_the_old_weights(key):
    start = random_energy(key, Labels(key, 3)).with_label_normalizers([0.7, -2.0, 5.0])
    start = start.with_log_normalizer(1.3, 0.1)
    data = np.random.default_rng(0).normal(size=(100, 2))
    stopping = nd.train.EarlyStopping(check_every=1)
    options = {"steps": 2, "stopping": stopping, "batch_size": 8, "progress_bar": False}
    found = nd.fit(key, start, data, **options).energy
    assert found.log_normalizer is None and found.label_normalizers is None


def test_a_conditional_prior_in_a_model(key):
    """The posterior of a known label's energy is that of the energy itself."""
    energy = random_energy(key, Labels(key, 3)).with_label_normalizers([0.1, 0.2, 0.3])
    prior = nd.DiffusionPrior(energy.given(2))
    expected = log_density_at(energy.given(2), X, jnp.asarray(energy.t_min))
    np.testing.assert_allclose(jax.jit(prior.log_prob)(X), expected, rtol=1e-12)
    plain = jax.jit(nd.DiffusionPrior(energy).log_prob)(X)
    assert abs(plain - expected) > 1e-3


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 4)])
def test_unet_is_the_gaussian_before_training_and_an_energy_after(shape, key):
    size = int(np.prod(shape))
    variances, t = np.linspace(0.2, 2.0, size), jnp.asarray(0.3)
    x = jax.random.normal(key, shape)
    net = eqx.filter_jit(UNet)(key, shape, channels=(4, 6))
    untrained = nd.InnerProductEnergy(net, np.zeros(shape), variances)
    exact = nd.Gaussian(np.zeros(size), np.diag(variances))
    expected = energy_at(exact, x.ravel(), t)
    np.testing.assert_allclose(energy_at(untrained, x, t), expected, rtol=1e-10)
    energy = random_energy(key, Labels(key, 3), shape, UNet, channels=(4, 6, 5))
    nd.check_energy(energy.given(1), x, t, key)
    first, second = (energy_at(energy.given(c), x, t) for c in (1, 2))
    assert abs(first - second) > 1e-4


def test_unet_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match="multiples of 4.*got \\(8, 6\\)"):
        UNet(None, (8, 6), channels=(4, 4, 4))


@pytest.mark.long
def test_training_finds_the_law_of_each_label_and_of_all(key):
    keys = jax.random.split(key, 4)
    label = jax.random.choice(keys[0], 3, (6000,), p=jnp.asarray(SHARES))
    white = jax.random.normal(keys[1], (6000, 2))
    data = jnp.asarray(MEANS)[label] + jnp.einsum("nij,nj->ni", jnp.asarray(FACTORS)[label], white)
    net = ResidualMLP(keys[2], (2,), width=48, depth=2, condition=Labels(keys[2], 3))
    energy = nd.ProperEnergy.from_data(net, data, noise_min=0.2, noise_max=15.0)
    fitted = nd.fit(
        keys[3], energy, data, condition=label, steps=2500, null_rate=0.25, progress_bar=False
    ).energy
    covariances = FACTORS @ FACTORS.transpose(0, 2, 1)
    laws = [nd.Gaussian(m, c) for m, c in zip(MEANS, covariances, strict=True)]
    laws.append(nd.GaussianMixture(SHARES, MEANS, covariances))
    for s in (0.3, 1.0):
        t = fitted.schedule.time(jnp.asarray(-2 * np.log(s)))
        alpha, _ = fitted.schedule(t)
        for k, law in enumerate(laws):
            points = data[label == k][:300] if k < 3 else data[:300]
            x = alpha * (points + s * jax.random.normal(jax.random.key(k), points.shape))
            told = fitted.given(k if k < 3 else None)
            found, truth = (jax.vmap(lambda x, e=e, t=t: e.denoise(x, t))(x) for e in (told, law))
            error = jnp.sqrt(
                jnp.mean((found - truth) ** 2) / jnp.mean((truth - points.mean(0)) ** 2)
            )
            assert error < 0.15, (s, k, error)
