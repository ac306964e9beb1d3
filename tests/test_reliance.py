"""When a run's numbers may be relied on: collapsed clouds, one posterior mean, means over clouds."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics
from numpyro_diffusion.ppl.draws import pooled_log_weights
from numpyro_diffusion.schemes.levels import Level

NOISE = float(nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))) ** 2


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian([0.0], [[1.0]])))
    numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)


@pytest.fixture(scope="module")
def smc():
    """A few frozen levels, right for a datum that the prior expects and far too few for others."""
    clock, power = jnp.array([1.0, 0.6, 0.3, 0.0, 0.0]), jnp.array([0.0, 0.3, 0.6, 1.0, 1.0])
    levels = Level.by_hand(clock, power, {"x": jnp.full((4, 1), 0.3)}, num_moves=1)
    scheme = nd.Annealed(levels=levels, moves=1)
    return nd.SMC(model, scheme, num_particles=60, num_chains=3, progress_bar=False)


def test_a_collapsed_run_hands_out_no_small_error(smc, key):
    """Far from the prior one family is left: the evidence is off by nats, and says so wherever it is seen."""
    smc.run(key, y=jnp.asarray(4.0))
    exact = stats.norm.logpdf(4.0, 0.0, np.sqrt(1 + NOISE + 0.01))
    with pytest.warns(UserWarning, match="not to be relied on. Cloud . collapsed at level"):
        found = smc.log_evidence
    assert abs(found - exact) > 1.5, "this run was to fail"
    assert abs(found - exact) < 3 * smc.log_evidence_error
    assert "collapsed" in diagnostics.reservations(smc.result)[0]
    with pytest.warns(UserWarning, match="collapsed"):
        exported = smc.to_arviz(predictive=False, log_likelihood=False)
    assert "collapsed" in exported["posterior"].attrs["evidence_reservations"]


def test_ladders_that_nothing_refreshes_hand_out_no_small_error(key):
    """A mode of weight 1e-6 holds all the posterior: replicas start there, and hardly any state returns."""
    prior = nd.GaussianMixture([1 - 1e-6, 1e-6], [[0.0], [9.0]], [[[1.0]], [[0.04]]])
    bridge = nd.from_energy(prior, lambda x: jax.scipy.stats.norm.logpdf(9.0, x[0], 0.3))
    found = nd.replica_exchange(key, bridge, num_draws=100, num_burn_in=20, num_chains=3)
    exact = np.log(1e-6) + stats.norm.logpdf(0.0, 0.0, np.sqrt(0.04 + 0.09 + NOISE))
    assert abs(found.log_evidence - exact) > 3, "this run was to fail"
    assert np.asarray(found.round_trips).min() == 0
    assert abs(found.log_evidence - exact) < 3 * found.log_evidence_error
    words = diagnostics.verdict(found)
    assert "drawn afresh reached the target" in words and "neither means much" in words


def test_print_summary_counts_clouds_by_their_evidence(smc, key, capsys):
    smc.run(key, y=jnp.asarray(0.3))
    values, weights = smc.get_weighted_samples()
    mean = float(jnp.sum(values["x"][..., 0] * weights))
    alike = float(smc.get_samples(group_by_chain=True)["x"].mean())
    assert abs(mean - alike) > 0.003, "the two means are too near to be told apart"
    smc.print_summary()
    row = next(
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("x[0]")
    )
    assert abs(float(row[1]) - mean) < 0.006  # of resampling, and of the digits printed
    exported = smc.to_arviz(predictive=False, log_likelihood=False)
    assert exported["posterior"].attrs["evidence_reservations"] == ""
    assert "alike" in exported["posterior"].attrs["chains"]


def test_clouds_that_count_by_their_evidence_have_no_bias_of_their_own(key):
    """The mean of a tilted normal law, by 400 replicates of 10 clouds of 6 particles.

    A ratio of sums over all clouds is biased as one over all their particles, a mean over clouds of
    ratios as one over the particles of one cloud.
    """
    tilted = nd.from_kernels(
        lambda key: jax.random.normal(key),
        lambda key, x, level: x + 0.3 * jax.random.normal(key),
        lambda x, new, level: new,
        jnp.zeros(2),
    )
    result = nd.run_smc(key, tilted, 6, num_chains=4000)
    x, log_weights = np.asarray(result.positions), np.asarray(result.log_weights)
    share = np.exp(log_weights - log_weights.max(1, keepdims=True))
    by_cloud = ((share * x).sum(1) / share.sum(1)).reshape(400, 10)
    z = np.exp(np.asarray(result.log_evidence)).reshape(400, 10)
    by_evidence, alike = (z * by_cloud).sum(1) / z.sum(1), by_cloud.mean(1)
    exact = 2.0 + 2 * 0.09 + 0.09  # x0 + e1 + e2 under exp(2 x0 + 2 e1 + e2)
    error = lambda means: means.std(ddof=1) / 20
    assert exact - alike.mean() > 10 * error(alike)
    assert exact - by_evidence.mean() < 0.6 * (exact - alike.mean())
    everything = float(np.sum(np.exp(pooled_log_weights(result)) * x))
    assert abs(everything - exact) < 4 * error(by_evidence) / 1.0 + 0.05
