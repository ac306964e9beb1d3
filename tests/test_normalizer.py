"""Normalisers of the prior, from noised data and from a run of the sampler, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import Shifted

import numpyro_diffusion as nd
from numpyro_diffusion.density.paths import gauss_legendre
from numpyro_diffusion.density.reference import Reference
from numpyro_diffusion.normalizers.thermodynamic import anchor_normalizer

SIZE = 1.3  # of the offset that `Shifted` adds to an energy


def exact_data(energy, num, seed=0):
    draw = lambda key: energy.draw(key, jnp.asarray(0.0))
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


def shifted(energy):
    """An energy with an arbitrary function of time in it, and its normaliser."""
    other = Shifted(energy, jnp.asarray(SIZE))
    return other, -float(other.constant(jnp.asarray(energy.t_min)))


@pytest.mark.parametrize(
    "method", [nd.normalizers.thermodynamic_normalizer, nd.normalizers.adjacent_normalizer]
)
def test_normalizer_of_a_mixture_with_an_arbitrary_offset_in_time(method):
    mixture = nd.GaussianMixture()
    energy, truth = shifted(mixture)
    num = {nd.normalizers.thermodynamic_normalizer: 8000, nd.normalizers.adjacent_normalizer: 4000}[
        method
    ]
    result = method(energy, exact_data(mixture, num), jax.random.key(1), batch_size=2000)
    assert result.standard_error < 0.01
    assert abs(result.value - truth) < min(3 * result.standard_error, 0.02)
    assert isinstance(result.value, float) and isinstance(result.standard_error, float)
    assert 0 < result.spread < 1
    assert result.evaluations > 60 * num


def test_a_gaussian_is_its_own_control_variate():
    """Nothing is left to chance but the moments of the data; another batch size changes nothing."""
    energy, truth = shifted(nd.Gaussian())
    data = exact_data(nd.Gaussian(), 1000)
    result = nd.normalizers.thermodynamic_normalizer(energy, data, jax.random.key(1))
    assert abs(result.value - truth) < min(3 * result.standard_error, 0.002)
    again = nd.normalizers.thermodynamic_normalizer(energy, data, jax.random.key(1), batch_size=300)
    np.testing.assert_allclose(again.value, result.value, rtol=1e-8)


@pytest.mark.long
def test_standard_errors_are_honest():
    """Over repeated data sets and noises the estimates spread as each of them says."""
    mixture = nd.GaussianMixture()
    for method in (nd.normalizers.thermodynamic_normalizer, nd.normalizers.adjacent_normalizer):
        results = [
            method(mixture, exact_data(mixture, 300, seed), jax.random.key(seed), num_anchors=500)
            for seed in range(30)
        ]
        values, errors = np.array([(r.value, r.standard_error) for r in results]).T
        assert 0.6 < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 1.5
        assert abs(values.mean()) < 3 * values.std(ddof=1) / 30**0.5


def test_data_of_another_law_bias_the_value_and_widen_the_spread():
    """What the docstring warns of: model error enters, and the spread over data tells."""
    energy = nd.Gaussian([0.0], [[1.0]])
    wrong = 3.0 + jax.random.normal(jax.random.key(0), (1000, 1))
    right = nd.normalizers.thermodynamic_normalizer(energy, wrong - 3.0, jax.random.key(1))
    other = nd.normalizers.thermodynamic_normalizer(energy, 2.0 * wrong, jax.random.key(1))
    assert abs(right.value) < 3 * right.standard_error + 1e-3
    assert other.spread > 10 * right.spread


def test_images_and_a_short_horizon_with_an_initial_law():
    """The anchor is drawn from the law that is given; examples of any shape will do."""
    inner = nd.Gaussian([0.5, -1.0, 0.3, 0.0], np.diag([1.0, 0.3, 2.0, 0.1]))
    energy = nd.EnergyFunction(
        lambda g, x, t: g.energy(x.ravel(), t) - 2.5,
        (2, 2),
        params=inner,
        mean=inner.mean.reshape(2, 2),
        variance=jnp.diag(jnp.diag(jnp.array([1.0, 0.3, 2.0, 0.1]))).reshape(2, 2),
    ).with_horizon(t_max=0.3)
    data = exact_data(inner, 500).reshape(-1, 2, 2)
    law = nd.energies.fit_gaussian(energy, data)
    result = nd.normalizers.adjacent_normalizer(
        energy, data, jax.random.key(1), num_levels=48, initial=law
    )
    assert result.standard_error < 0.02
    assert abs(result.value - 2.5) < 3 * result.standard_error
    value, error = anchor_normalizer(energy, jax.random.key(0), 1000, law)
    assert abs(value - 2.5) < 3 * error < 0.03


def test_quadrature_and_reference():
    nodes, weights = gauss_legendre(np.array([-1.0, 0.5, 2.0]), 24)
    np.testing.assert_allclose(weights @ np.exp(nodes), np.exp([0.5, 2.0]) - np.exp(-1), rtol=1e-12)
    energy = nd.Gaussian()
    reference = Reference.of(exact_data(energy, 50_000))
    t, u = jnp.asarray(0.2), jnp.array([0.3, -2.0])
    value, score = reference.log_density_and_score(u, energy.schedule.noise_level(t))
    exact, exact_score = energy.log_density_and_score(u, t)
    np.testing.assert_allclose(value, exact, atol=0.03)
    np.testing.assert_allclose(score, exact_score, atol=0.03)
    gradient = jax.grad(lambda u: reference.log_density_and_score(u, jnp.asarray(0.1))[0])(u)
    score = reference.log_density_and_score(u, jnp.asarray(0.1))[1]
    np.testing.assert_allclose(gradient, score, rtol=1e-8)


@pytest.mark.long
def test_prior_run_finds_the_normalizer():
    energy, truth = shifted(nd.GaussianMixture())
    result = nd.prior_normalizer(energy, jax.random.key(0), num_particles=2000, num_chains=8)
    assert result.standard_error < 0.02
    assert abs(result.value - truth) < 3 * result.standard_error
    assert result.evaluations > 16_000 and "8 clouds" in result.method


def test_what_is_stored_is_taken_off_densities_and_saved_with_the_energy(tmp_path):
    energy = nd.ProperEnergy(t_min=0.02)
    result = nd.normalizers.Normalizer(1.25, 0.03, "by hand", 0)
    known = energy.with_log_normalizer(result.value, result.standard_error)
    nd.save(tmp_path / "energy.safetensors", known)
    loaded = nd.load(tmp_path / "energy.safetensors")
    assert (loaded.log_normalizer, loaded.log_normalizer_error) == (1.25, 0.03)
    assert nd.from_energy(loaded).log_normalizer_error == 0.03
    u, t = jnp.zeros(2), jnp.asarray(loaded.t_min)
    expected = energy.log_density(u, t) - 1.25
    np.testing.assert_allclose(loaded.log_density(u, t), expected, rtol=1e-6)


def test_any_energy_with_a_field_for_it_keeps_a_normalizer():
    energy = nd.EnergyFunction(lambda x, t: jnp.sum(x**2) / 2, 3).with_log_normalizer(2.0, 0.1)
    assert (energy.log_normalizer, energy.log_normalizer_error) == (2.0, 0.1)
    assert energy.with_log_normalizer(None).log_normalizer is None
    sum_of_two = (nd.Gaussian() + nd.GaussianMixture()).with_log_normalizer(-3.0, 0.2)
    assert nd.from_energy(sum_of_two).log_normalizer_error == 0.2
    with pytest.raises(ValueError, match="finite value and an error of at least 0"):
        energy.with_log_normalizer(1.0, -0.1)
    with pytest.raises(ValueError, match="finite value"):
        energy.with_log_normalizer(float("nan"))
    with pytest.raises(TypeError, match="no fields.*log_normalizer.*`with_log_normalizer`"):
        shifted(nd.Gaussian())[0].with_log_normalizer(1.0)


def test_what_normalizers_refuse():
    energy, data, key = nd.Gaussian(), np.zeros((10, 2)), jax.random.key(0)
    for method in (nd.normalizers.thermodynamic_normalizer, nd.normalizers.adjacent_normalizer):
        with pytest.raises(ValueError, match=r"examples of shape \(2,\).*got shape \(10, 3\)"):
            method(energy, np.zeros((10, 3)), key)
        with pytest.raises(ValueError, match="at least 2 finite examples"):
            method(energy, np.full((10, 2), np.nan), key)
        with pytest.raises(ValueError, match="`num_anchors` must be at least 1; got 0"):
            method(energy, data, key, num_anchors=0)
        with pytest.raises(TypeError, match="no density"):
            method(nd.ScoreFunction(lambda x, t: -x, 2), data, key)
    with pytest.raises(ValueError, match="`num_chains` must be at least 2"):
        nd.prior_normalizer(energy, key, num_chains=1)
    with pytest.raises(ValueError, match="free of the prior's normaliser"):
        nd.prior_normalizer(energy, key, scheme=nd.LikelihoodTempered(pilot=16))


@pytest.mark.slow
def test_digits_three_ways(float32):
    """A sampler that is not told the stored value finds it again; digits miss it by the model's error."""
    energy = nd.load_pretrained("digits-8x8")
    images, _ = nd.pretrained.load_digits("test")
    run = nd.prior_normalizer(energy, jax.random.key(1), num_particles=400)
    error = np.hypot(run.standard_error, energy.log_normalizer_error)
    assert abs(run.value - energy.log_normalizer) < 3 * error < 0.6
    for method in (nd.normalizers.thermodynamic_normalizer, nd.normalizers.adjacent_normalizer):
        result = method(energy, images, jax.random.key(1))
        assert result.standard_error < 0.3 and result.spread > 2
        assert abs(result.value - energy.log_normalizer) < 2.0
