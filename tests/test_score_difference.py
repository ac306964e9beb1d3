"""Guidance away from a cost: where it is exact, and how far the cost falls where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.energies import score_difference

# Two classes N(+-0.75, 1), equally frequent. With J = 1 / p(c | x) one reweighted is both together.
CLASS = nd.Gaussian([0.75], [[1.0]])
BOTH = nd.GaussianMixture([0.5, 0.5], [[-0.75], [0.75]], [[[1.0]], [[1.0]]])
SHIFT, STRENGTH = 0.6, 1.5
TILTED = nd.Gaussian([-SHIFT], [[1.0]])  # N(0, 1) times J = exp(-0.6 x)
LINE = nd.Gaussian([0.0], [[1.0]])
GUIDED = nd.Gaussian([STRENGTH * SHIFT], [[1.0]])


def scores(energy, times, u):
    """Of scores alone: an energy would do, and a network without one must."""
    return jax.vmap(lambda t: jax.vmap(lambda u: energy.data_score(u, t))(u))(times)


def test_linear_costs_shift_a_normal_by_w_a():
    """N(0, 1) and J = exp(-a x): the guided score is that of N(w a, 1) at every level."""
    times = nd.schedules.log_snr_grid(LINE.schedule, 5, LINE.t_min, LINE.t_max)
    u = jnp.linspace(-2.0, 3.0, 7)[:, None]
    without = [
        nd.ScoreFunction(lambda e, x, t: e.score(x, t), (1,), params=e) for e in (LINE, TILTED)
    ]
    expected = scores(GUIDED, times, u)
    for pair in ((LINE, TILTED), without):
        found = scores(score_difference(*pair, STRENGTH), times, u)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert isinstance(score_difference(*without, STRENGTH), nd.energies.ComposedDenoiser)
    assert isinstance(score_difference(LINE, TILTED, lambda t: 2 * t), nd.AbstractEnergy)


def test_classifier_free_guidance_is_the_cost_one_over_the_class_probability():
    """E[J] is 1 / p(c) = 2 without guidance; `test_tilt` has how far it falls."""
    u = jnp.linspace(-3.0, 3.0, 9)[:, None]
    t = jnp.asarray(CLASS.t_min)
    log_p = jax.jit(lambda law: jax.vmap(lambda u: law.log_density(u, t))(u))
    wide = 1 + float(CLASS.schedule.noise_level(t)) ** 2
    cost = 1 + np.exp(-1.5 * np.ravel(u) / wide)
    np.testing.assert_allclose(log_p(BOTH), log_p(CLASS) + np.log(cost / 2), atol=1e-6)
    found = log_p(score_difference(CLASS, BOTH, 2.0))
    np.testing.assert_allclose(found, log_p(CLASS) - 2 * np.log(cost / 2), atol=1e-6)
    np.testing.assert_allclose(found, log_p(nd.cfg(BOTH, CLASS, 3.0)), rtol=1e-12)


@pytest.mark.long
def test_draws_of_a_shifted_normal(key):
    """Guided reverse diffusion without weights, where it happens to be exact."""
    scheme = nd.schemes.unweighted(nd.ReverseDiffusion(levels=100, moves=0, pilot=64))
    model = scheme(nd.from_energy(score_difference(LINE, TILTED, STRENGTH)), key)
    x = np.asarray(nd.run_smc(key, model, 20_000).positions["x"]).ravel()
    assert abs(x.mean() - STRENGTH * SHIFT) < 0.03 and abs(x.var() - 1) < 0.05


def test_data_weighed_by_the_cost_train_the_reweighted_distribution(key):
    """`fit(weights=J)` draws examples in proportion: their mean is that of p^J."""
    data = jax.random.normal(key, (100_000, 1))
    source = nd.train.sources.Examples(data, None, jnp.exp(-SHIFT * data[:, 0]))
    batch = source.draw(jax.random.key(1), 100_000, None).examples
    assert abs(batch.mean() + SHIFT) < 0.02 and abs(batch.var() - 1) < 0.03


@pytest.mark.parametrize("strength", [-1.0, np.inf, np.nan])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(ValueError, match="a finite number of at least 0; got"):
        score_difference(LINE, TILTED, strength)
