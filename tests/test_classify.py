"""Labels by Bayes' rule on densities: against closed forms, and beside the heuristics in use."""

import jax
import jax.numpy as jnp
import labelled
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    GaussHermite,
    GaussLegendre,
    NormalizedEnergy,
    ScoreFormula,
    UsualSum,
    classify,
    ddpm_weights,
    snr_weights,
)

POINTS = np.array([[0.0, 0.0], [1.0, -0.4], [0.0, 0.4]])
LABELS = jnp.arange(2)


def truth(energy, x, prior_probs=None):
    log_p = labelled.log_densities(energy, x) + np.log(1.0 if prior_probs is None else prior_probs)
    return log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True)


def uniform_mean(tau):
    return jnp.full(len(tau) - 1, 1 / (len(tau) - 1))


def uniform_sum(tau):
    return jnp.ones(len(tau) - 1)


def test_the_formula_is_right_and_the_usual_losses_are_not():
    """Two classes in the plane, every expectation exact, 1,000 steps of DDPM where there are steps."""
    energy, exact_mean = labelled.classes().with_horizon(t_min=1e-3), GaussHermite(14)
    p = np.exp(truth(energy, POINTS)[:, 0])
    np.testing.assert_allclose(p, [0.4742, 0.1151, 0.8458], atol=1e-4)
    found = {
        name: classify(energy, POINTS, LABELS, estimator=estimator)
        for name, estimator in (
            ("formula", ScoreFormula(GaussLegendre(16), exact_mean)),
            ("ddpm", UsualSum(ddpm_weights, 1000, exact_mean)),
            ("snr", UsualSum(snr_weights, 1000, exact_mean)),
            ("mean", UsualSum(uniform_mean, 1000, exact_mean)),
            ("sum", UsualSum(uniform_sum, 1000, exact_mean)),
        )
    }
    by = {name: np.exp(np.asarray(f.log_probs[:, 0])) for name, f in found.items()}
    for name, allowed in (("formula", 1e-4), ("ddpm", 1e-3), ("snr", 4e-3)):
        np.testing.assert_allclose(by[name], p, atol=allowed, err_msg=name)
    # The mean of the losses is far too unsure, their sum is certain, and of the wrong label if need be.
    np.testing.assert_allclose(by["mean"], [0.497, 0.419, 0.564], atol=2e-3)
    np.testing.assert_allclose(by["sum"], [0, 0, 1], atol=1e-3)
    # Weights of the bound rank labels well, but as log densities they are off by a constant.
    exact = labelled.log_densities(energy, POINTS)
    np.testing.assert_allclose(found["formula"].log_densities, exact, atol=3e-4)
    np.testing.assert_allclose(found["ddpm"].log_densities - exact, 2 * 0.32, atol=0.02)
    np.testing.assert_allclose(found["snr"].log_densities - exact, -2 * 0.43, atol=0.03)
    assert "usual sum" in found["ddpm"].law and "lower bound" in found["formula"].law


def test_shared_noises_make_sharp_odds_with_an_honest_error():
    energy, (x, _) = labelled.classes(1.3), labelled.draws(200)
    found = classify(energy, x, LABELS, jax.random.key(1))
    odds = found.log_probs[:, 0] - found.log_probs[:, 1]
    exact = truth(energy, x)
    # log p_0 and log p_1 move against each other, so their errors add up to that of the odds.
    error = found.standard_error.sum(-1)
    z = np.asarray((odds - (exact[:, 0] - exact[:, 1])) / error)
    assert 0.75 < np.sqrt(np.mean(np.minimum(np.abs(z), 4) ** 2)) < 1.3
    assert abs(np.median(z)) < 0.3
    apart = jnp.sqrt(jnp.sum(found.density_error**2, -1))
    assert jnp.mean(error) < 0.7 * jnp.mean(apart)
    np.testing.assert_allclose(jnp.exp(found.log_probs).sum(-1), 1)
    assert (found.num_evaluations == 256).all()


def calibrated():
    """Three classes, an offset each, and the normalisers: minus what was added."""
    energy = labelled.classes(1.3, num=3)
    log_s = jnp.log(energy.schedule.noise_level(jnp.asarray(energy.t_min)))
    known = [-float(energy.net.offset(log_s, label)) for label in range(3)]
    return energy.with_label_normalizers(known, [0.1, 0.2, 0.3])


def test_a_normalised_energy_classifies_with_one_evaluation():
    energy = calibrated()
    found = classify(energy, POINTS, jnp.arange(3), estimator=NormalizedEnergy())
    np.testing.assert_allclose(found.log_probs, truth(energy, POINTS), atol=1e-8)
    assert (found.standard_error == 0).all() and (found.num_evaluations == 1).all()
    single = NormalizedEnergy()(energy.given(1), POINTS)
    np.testing.assert_allclose(single.value, labelled.log_densities(energy, POINTS)[:, 1])


def test_priors_of_labels_batches_and_the_compiled_function():
    energy, x = calibrated(), np.stack([POINTS, 0.5 * POINTS])
    probs, options = np.array([0.2, 0.7, 0.1]), {"estimator": NormalizedEnergy()}
    run = lambda x, size=4096: classify(
        energy, x, jnp.arange(3), prior_probs=10 * probs, batch_size=size, **options
    )
    found = run(x)
    expected = truth(energy, x.reshape(-1, 2), probs).reshape(2, 3, 3)
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-8)
    np.testing.assert_allclose(jnp.exp(found.log_probs).sum(-1), 1)
    for size in (1, 4):
        np.testing.assert_allclose(run(x, size).log_probs, found.log_probs, rtol=1e-10)
    compiled = jax.jit(lambda x: run(x).log_probs)(x)
    np.testing.assert_allclose(compiled, found.log_probs, rtol=1e-10)
    np.testing.assert_allclose(run(x[0, 1]).log_probs, found.log_probs[0, 1], rtol=1e-10)
    # Any part of the labels, in any order.
    part = classify(energy, x, jnp.array([2, 0]), **options)
    gap = found.log_densities[..., 2] - found.log_densities[..., 0]
    np.testing.assert_allclose(part.log_probs[..., 0] - part.log_probs[..., 1], gap, rtol=1e-8)


@pytest.mark.long
def test_single_precision(float32):
    found = classify(labelled.classes(), POINTS, LABELS)
    assert found.log_probs.dtype == jnp.float32
    gap = np.exp(found.log_probs) - np.exp(truth(labelled.classes(), POINTS))
    assert np.abs(gap).max() < 0.1
    assert np.all(np.abs(gap) < 6 * np.exp(found.log_probs) * found.standard_error)


def test_what_it_refuses():
    energy = labelled.classes()
    with pytest.raises(TypeError, match="`classify` expects a denoiser"):
        classify(lambda x: x, POINTS, LABELS)
    with pytest.raises(TypeError, match="under conditions.*compare_priors"):
        classify(nd.Gaussian(), POINTS, LABELS)
    with pytest.raises(ValueError, match=r"points of shape \(\.\.\., 2\)"):
        classify(energy, np.zeros((4, 3)), LABELS)
    for labels in (1, []):
        with pytest.raises(ValueError, match="stacked along the first axis"):
            classify(energy, POINTS, labels)
    for probs in ([0.5], [1.0, 0.0], [0.5, -0.1], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="one positive probability a label"):
            classify(energy, POINTS, LABELS, prior_probs=probs)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        classify(energy, POINTS, LABELS, batch_size=0)
    with pytest.raises(ValueError, match="label from 0 to 1"):
        classify(energy.with_label_normalizers([0.0, 0.0]), POINTS, jnp.arange(3))
    with pytest.raises(ValueError, match="whose `log_normalizer` is known"):
        classify(energy, POINTS, LABELS, estimator=NormalizedEnergy())
    with pytest.raises(FloatingPointError, match="NaN"):
        classify(calibrated(), [0.0, np.nan], jnp.arange(3), estimator=NormalizedEnergy())
