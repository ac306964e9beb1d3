"""Normalisers from single points, one law or one a label, and label posteriors in NumPyro models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import labelled
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import Shifted
from numpyro.infer import MCMC, NUTS, DiscreteHMCGibbs
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    GaussHermite,
    GaussLegendre,
    ScoreFormula,
)
from numpyro_diffusion.normalizers import label_normalizers, pointwise_normalizer

SIZE = 3.0
PROBS = np.array([0.5, 0.3, 0.2])
SEEN, NOISE = np.array([0.3, -0.2]), 0.6  # a point with noise on it


def exact_normalizers(energy) -> np.ndarray:
    """What was added to the energy of each label is minus its normaliser."""
    log_s = jnp.log(energy.schedule.noise_level(jnp.asarray(energy.t_min)))
    return -np.array([float(energy.net.offset(log_s, c)) for c in range(len(energy.net.weights))])


@pytest.fixture(scope="module")
def found():
    """An energy with arbitrary offsets, and what 100 points a label say of its normalisers."""
    energy = labelled.classes(SIZE, num=3)
    return energy, label_normalizers(energy, *labelled.draws(300, 3), jax.random.key(2))


def calibrated(found):
    energy, normalizers = found
    return energy.with_label_normalizers(normalizers.values, normalizers.standard_errors)


def mixture_data(num, seed=0):
    draw = lambda key: nd.GaussianMixture().draw(key, jnp.asarray(0.0))
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


def test_normaliser_of_one_law_and_where_it_disagrees():
    """A bump is in the energy and not in the score, so that points disagree by its size."""
    mixture = nd.GaussianMixture()
    energy = Shifted(mixture, jnp.asarray(SIZE))
    exact = -float(energy.constant(jnp.asarray(energy.t_min)))
    data = mixture_data(300)
    found = pointwise_normalizer(energy, data, jax.random.key(1))
    assert abs(found.value - exact) < 3 * found.standard_error and found.standard_error < 0.02
    assert found.spread < 0.1 and found.evaluations == 300 * 257
    rule = ScoreFormula(GaussLegendre(32), GaussHermite(16))
    sharp = pointwise_normalizer(energy, data[:50], jax.random.key(1), estimator=rule)
    assert abs(sharp.value - exact) < 2e-4 and sharp.spread < 2e-3
    # Any points will do, those of another law too.
    other = pointwise_normalizer(energy, 1.5 * data[:50], jax.random.key(1), estimator=rule)
    assert abs(other.value - exact) < 1e-3


@pytest.mark.long
def test_a_wrong_energy_shows_in_the_spread():
    """Between two far modes the energy is off by half a nat, which its score there does not say."""
    far = nd.GaussianMixture(
        [0.5, 0.5], [[-4.0, 0.0], [4.0, 0.0]], [0.2 * np.eye(2), 0.2 * np.eye(2)]
    )
    step = lambda p, x, t: p.energy(x, t) + 0.5 * jnp.tanh(4 * x[0]) * jnp.exp(-300 * t)
    energy = nd.EnergyFunction(step, 2, params=far, variance=[16.0, 0.2])
    rng = np.random.default_rng(0)
    data = rng.normal(size=(200, 2)) * 0.2**0.5 + 4.0 * np.array([1, 0]) * rng.choice(
        [-1, 1], (200, 1)
    )
    found = pointwise_normalizer(energy, data, jax.random.key(1))
    assert 0.4 < found.spread < 0.6


def test_normalisers_of_labels_with_an_arbitrary_offset_each(found):
    energy, found = found
    exact = exact_normalizers(energy)
    assert np.ptp(exact) > 4  # the offsets matter
    assert np.all(np.abs(found.values - exact) < 3.5 * found.standard_errors)
    assert np.all(found.standard_errors < 0.03) and np.all(found.spreads < 0.12)
    np.testing.assert_array_equal(found.counts, [100, 100, 100])
    # Normalisers that are stored already change nothing.
    stored = energy.with_label_normalizers([5.0, -3.0, 1.0])
    again = label_normalizers(stored, *labelled.draws(300, 3), jax.random.key(2))
    np.testing.assert_allclose(again.values, found.values, rtol=1e-10)


def label_model(energy, x):
    c = numpyro.sample("c", dist.Categorical(jnp.asarray(PROBS)))
    numpyro.sample("x", nd.DiffusionPrior(energy.given(c)), obs=x)


@eqx.filter_jit
def posterior(energy, points):
    """Of the label of each, by summing over labels: NumPyro is asked for densities alone."""
    at = lambda x, c: log_density(label_model, (energy, x), {}, {"c": c})[0]
    each = jax.vmap(jax.vmap(at, (None, 0)), (0, None))(points, jnp.arange(3))
    return jax.nn.softmax(each, -1)


def test_the_posterior_of_an_unknown_label_in_a_model(found):
    """Right with calibration; without it an arbitrary offset decides."""
    energy, normalizers = found
    points, _ = labelled.draws(12, 3, seed=1)
    log_joint = labelled.log_densities(energy, points) + np.log(PROBS)
    exact = np.exp(log_joint - np.logaddexp.reduce(log_joint, 1)[:, None])
    right, wrong = (posterior(e, jnp.asarray(points)) for e in (calibrated(found), energy))
    # The error of a probability is at most a quarter of that of the log odds.
    allowed = np.hypot(*np.sort(normalizers.standard_errors)[-2:])
    assert np.abs(right - exact).max() < allowed < 0.03
    assert np.abs(wrong - exact).max() > 0.5 and np.abs(wrong - exact).mean() > 0.15


def hidden_posterior() -> np.ndarray:
    """Of the label, in closed form."""
    v = labelled.VARIANCES + NOISE**2
    squares = ((SEEN - labelled.MEANS) ** 2).sum(-1)
    joint = PROBS * (labelled.WEIGHTS * np.exp(-0.5 * squares / v) / v).sum(-1)
    return joint / joint.sum()


def test_the_label_of_a_hidden_point(found):
    """The point has noise on it and is summed out on a grid; the label's normaliser stays."""
    axis = np.linspace(-4.0, 4.0, 81)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)) + SEEN

    def model(energy, x, c):
        x = numpyro.sample("x", nd.DiffusionPrior(energy.given(c)), obs=x)
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.asarray(SEEN))

    @eqx.filter_jit
    def log_evidences(energy):
        at = lambda x, c: log_density(model, (energy, x, c), {}, {})[0]
        each = jax.vmap(lambda c: jax.nn.logsumexp(jax.vmap(lambda x: at(x, c))(grid)))
        return each(jnp.arange(3)) + np.log(PROBS)

    normalised = jax.nn.softmax
    right = normalised(log_evidences(calibrated(found)))
    np.testing.assert_allclose(right, hidden_posterior(), atol=0.02)
    assert np.abs(normalised(log_evidences(found[0])) - right).max() > 0.3


@pytest.mark.long
def test_label_and_hidden_point_by_gibbs_steps_of_numpyro(found):
    """A Categorical label picks the prior of a latent point; arbitrary offsets would pick the label."""

    def model(energy):
        c = numpyro.sample("c", dist.Categorical(jnp.asarray(PROBS)))
        x = numpyro.sample("x", nd.DiffusionPrior(energy.given(c)))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.asarray(SEEN))

    def shares(energy):
        sampler = DiscreteHMCGibbs(NUTS(model))
        mcmc = MCMC(sampler, num_warmup=300, num_samples=4000, progress_bar=False)
        mcmc.run(jax.random.key(0), energy)
        return np.bincount(mcmc.get_samples()["c"], minlength=3) / 4000

    exact = hidden_posterior()
    np.testing.assert_allclose(shares(calibrated(found)), exact, atol=0.05)
    assert np.abs(shares(found[0]) - exact).max() > 0.3


def test_what_they_refuse():
    energy, (data, label) = labelled.classes(), labelled.draws(10)
    with pytest.raises(TypeError, match="expects an energy"):
        pointwise_normalizer(nd.ScoreFunction(lambda x, t: -x, 2), data, jax.random.key(0))
    with pytest.raises(ValueError, match="at least 2 finite examples"):
        pointwise_normalizer(nd.Gaussian(), np.zeros((5, 3)), jax.random.key(0))
    with pytest.raises(TypeError, match="under conditions"):
        label_normalizers(nd.Gaussian(), data, label, jax.random.key(0))
    for wrong in (label[:-1], label - 1, label.astype(float)):
        with pytest.raises(ValueError, match="one integer an example"):
            label_normalizers(energy, data, wrong, jax.random.key(0))
    with pytest.raises(ValueError, match=r"labels \[2\] have fewer.*prior_normalizer"):
        label_normalizers(energy, data, label, jax.random.key(0), num_labels=3)
