"""The bound as a function of the horizon, and starts from the wrong law: known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.energies.reverse import reverse_process

VARIANCE, TIMES = 4.0, np.array([0.2, 0.3, 0.5, 1.0])


def gaussian(dimension, t_min=1e-4, t_max=1.0):
    covariance = VARIANCE * np.eye(dimension)
    return nd.Gaussian(np.zeros(dimension), covariance, t_min=t_min, t_max=t_max)


def whitened(dimension, num, seed=0):
    """Data whose sample covariance is exactly that of the law, so that chance is in the noise alone."""
    x = np.random.default_rng(seed).normal(size=(num, dimension))
    x -= x.mean(0)
    factor = np.linalg.cholesky(x.T @ x / num)
    return VARIANCE**0.5 * np.linalg.solve(factor, x.T).T


def integrated_rate(t):
    return 0.1 * t + 0.5 * 19.9 * t**2


def test_divergence_from_the_standard_normal_at_known_horizons():
    energy, data = gaussian(10), whitened(10, 4000)
    report = nd.density.elbo_vs_horizon(energy, data, jax.random.key(1), TIMES, num_noises=2)
    excess = (VARIANCE - 1) * np.exp(-integrated_rate(TIMES))
    exact = 5 * (excess - np.log1p(excess))
    np.testing.assert_allclose(exact, [4.4241, 2.0278, 0.1217, 0.0], atol=1e-4)
    np.testing.assert_allclose(report.kl_to_initial, exact, rtol=0.02, atol=0.005)
    # The exact score: what the bound gives away is the divergence, and the rest is E log p.
    np.testing.assert_allclose(report.loss, exact - exact[-1], rtol=0.02, atol=0.005)
    entropy = 5 * np.log(2 * np.pi * np.e * VARIANCE)
    assert abs(report.elbo[-1] + entropy) < 0.01
    assert report.best == 1.0 and np.isnan(report.score_gap).all()


def test_the_bound_is_flat_for_a_fitted_law():
    energy, data = gaussian(3), whitened(3, 500)
    law = nd.energies.fit_gaussian(energy, data)
    report = nd.density.elbo_vs_horizon(energy, data, jax.random.key(1), TIMES, initial=law.at)
    np.testing.assert_allclose(report.loss, 0, atol=1e-4)
    np.testing.assert_allclose(report.kl_to_initial, 0, atol=1e-4)
    entropy = 1.5 * np.log(2 * np.pi * np.e * VARIANCE)
    assert abs(report.elbo[0] + entropy) < 3 * report.elbo_error[0]


@pytest.mark.parametrize(("error", "best"), [(0.1, 0.5753), (0.3, 0.4602)])
def test_the_best_horizon_under_a_constant_error_of_the_score(error, best):
    """A long horizon collects the score's error, a short one starts from the wrong law."""
    exact = gaussian(1)
    wrong = nd.ScoreFunction(
        lambda params, x, t: params[0].score(x, t) + params[1],
        1,
        params=(exact, jnp.asarray(error)),
        t_min=exact.t_min,
        t_max=exact.t_max,
        variance=VARIANCE,
    )
    grid = np.arange(0.3, 0.7, 0.01)
    report = nd.density.elbo_vs_horizon(
        wrong, whitened(1, 8000), jax.random.key(1), grid, truth=exact
    )
    assert abs(report.best - best) < 0.02
    gap = 0.5 * error**2 * (integrated_rate(grid) - integrated_rate(exact.t_min))
    np.testing.assert_allclose(report.score_gap, gap, rtol=1e-4)
    # The three parts of the bound add up to the mean log density of the data.
    total = report.elbo + report.score_gap + report.kl_to_initial
    np.testing.assert_allclose(total, -0.5 * np.log(2 * np.pi * np.e * VARIANCE), atol=0.01)
    place = int(np.argmax(report.elbo))
    assert report.loss[place] == 0 and np.all(report.loss_error[place - 3 : place + 4] < 1e-3)


@pytest.mark.long
def test_a_fitted_mixture_makes_a_short_horizon_as_good_as_a_long_one():
    mixture = nd.GaussianMixture(t_max=0.8)
    draw = lambda key: mixture.draw(key, jnp.asarray(0.0))
    data = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
    law = nd.energies.fit_mixture(mixture, data, 2, jax.random.key(1))
    times = np.array([0.1, 0.2, 0.4, 0.8])
    fitted, normal = (
        nd.density.elbo_vs_horizon(mixture, data, jax.random.key(2), times, initial=initial)
        for initial in (law.at, None)
    )
    assert np.all(np.abs(fitted.loss) < 0.02)
    assert normal.loss[0] > 0.2 and normal.loss[1] > 0.1 and normal.best == 0.8


@pytest.mark.long
@pytest.mark.parametrize(
    ("t", "variance"), [(0.2, 1.6494), (0.3, 2.4265), (0.5, 3.8040), (1.0, 4.0000)]
)
def test_a_start_from_the_wrong_law_is_felt_without_weights(t, variance):
    """The reverse diffusion from N(0, 1) at T, and from the law itself, which is right at every T."""
    energy = gaussian(1, t_min=0.01, t_max=t)  # its noise adds 0.002 to the variance
    keys = jax.random.split(jax.random.key(0), 30_000)
    for initial, expected in (
        (nd.energies.StandardNormal.of(energy), variance),
        (nd.energies.fit_gaussian(energy, whitened(1, 100)), VARIANCE),
    ):
        run = jax.jit(jax.vmap(lambda key, law=initial: reverse_process(energy, key, 1000, law)))
        np.testing.assert_allclose(np.var(np.asarray(run(keys))), expected, rtol=0.02)


@pytest.mark.long
def test_the_initial_weight_repairs_the_variance_at_a_short_horizon():
    energy = gaussian(1, t_max=0.2)
    bridge = nd.from_energy(energy, initial=nd.energies.StandardNormal.of(energy))
    model = nd.Annealed()(bridge, jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, 1000, num_chains=16)
    weights = jax.nn.softmax(result.log_weights, -1)
    second = np.asarray(jnp.sum(weights * result.positions["x"][..., 0] ** 2, -1))
    assert abs(second.mean() - VARIANCE) < 3 * second.std(ddof=1) / 4 and second.std() < 0.6
    z = np.exp(np.asarray(result.log_evidence))
    assert abs(z.mean() - 1) < 3 * z.std(ddof=1) / 4


def test_what_the_report_refuses():
    energy, data = gaussian(1, t_max=0.5), whitened(1, 10)
    for horizons in ([0.6], [0.2, 0.1], [], 0.3, [1e-5]):
        with pytest.raises(ValueError, match="rising times in.*with_horizon"):
            nd.density.elbo_vs_horizon(energy, data, jax.random.key(0), horizons)
    with pytest.raises(ValueError, match="`num_noises` must be at least 1"):
        nd.density.elbo_vs_horizon(energy, data, jax.random.key(0), [0.2], num_noises=0)
