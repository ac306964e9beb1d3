"""Waste-free clouds: unbiased evidence, an honest error, the right posterior, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_near, assert_unbiased, by_cloud, modes
from closed_form import two_dimensional
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import plots

SMALL = two_dimensional()
SCHEME = nd.Annealed(moves=1, pilot=nd.schemes.Pilot(128, conditional_ess=0.9))


@pytest.fixture(scope="module")
def smc():
    smc = nd.SMC(
        SMALL.model,
        SCHEME,
        num_particles=128,
        num_chains=150,
        chain_length=8,
        keep_genealogy=True,
        progress_bar=False,
    )
    return smc.run(jax.random.key(0), SMALL.operator, y=SMALL.data)


@pytest.mark.slow
def test_evidence_is_unbiased_and_its_error_honest(smc):
    log_evidence = np.asarray(smc.result.log_evidence)
    assert_unbiased(log_evidence, SMALL.exact().log_evidence)
    own = np.sqrt(np.mean(np.asarray(smc.result.log_evidence_error) ** 2))
    assert 0.5 < own / log_evidence.std(ddof=1) < 1.6


@pytest.mark.long
def test_all_states_are_draws_of_the_posterior(smc):
    exact = SMALL.exact()
    assert_near(by_cloud(smc, lambda s: modes(SMALL, s["x"])), exact.modes, 0.02)
    assert_near(by_cloud(smc, lambda s: s["sigma"]), exact.sigma_mean, 0.03 * exact.sigma_sd)
    distinct = [len(np.unique(np.asarray(x)[:, 0])) for x in smc.result.positions["x"]]
    assert min(distinct) > 3 * 16  # sixteen chains, and they move


@pytest.mark.long
def test_a_genealogy_tells_who_descends_from_whom(smc):
    parents = np.asarray(smc.result.trace.parents)
    assert parents.shape == (150, smc.result.num_levels_run, 128)
    back = np.arange(128)
    for level in parents[3][::-1]:
        back = level[back]
    np.testing.assert_array_equal(back, smc.result.state.ancestors[3])
    figure = plots.plot_genealogy(smc.result, cloud=3)
    title = figure.axes[0].get_title(loc="left")
    shown = np.linspace(0, 127, 60).round().astype(int)
    assert title.endswith(f"{len(np.unique(back[shown]))} ancestors at the start")


BRIDGE = nd.from_energy(nd.GaussianMixture(), lambda x: -jnp.sum((x - 1.0) ** 2))
GRID = nd.Annealed(levels=6, moves=1, pilot=32)


def test_an_evidence_of_chains_that_do_not_move_is_still_unbiased():
    """Steps of next to nothing: every chain is copies of one particle."""
    gaussian = nd.Gaussian([0.5], [[1.0]])
    bridge = nd.from_energy(gaussian, lambda x: jax.scipy.stats.norm.logpdf(1.5, x[0], 0.4))
    model = nd.Annealed(levels=12, moves=1, pilot=64)(bridge, jax.random.key(0))
    still = model._replace(levels=model.levels._replace(step_size=1e-9 * jnp.ones(13)))
    floor = float(bridge.noise(jnp.zeros(()))["x"]) ** 2
    truth = norm.logpdf(1.5, 0.5, (1.0 + floor + 0.16) ** 0.5)
    for one in (model, still):
        result = nd.run_smc(jax.random.key(1), one, 400, num_chains=150, chain_length=4)
        assert_unbiased(result.log_evidence, truth)


@functools.cache
def tuned():
    return GRID(BRIDGE, jax.random.key(0))


@functools.cache
def result(batch_size=None):
    return nd.run_smc(jax.random.key(1), tuned(), 40, chain_length=4, batch_size=batch_size)


def test_batches_change_nothing():
    np.testing.assert_allclose(result().log_weights, result(12).log_weights, atol=1e-9)


def test_evaluations_are_counted_chain_by_chain():
    """A weight for every state, one move of two evaluations for three of four."""
    assert GRID.evaluations_per_level(BRIDGE) == 1 + 2
    assert GRID.evaluations_per_level(BRIDGE, chain_length=4) == 1 + 2 * 0.75


def test_what_is_refused():
    model = tuned()
    with pytest.raises(
        ValueError, match="divide `num_particles`.*chain_length=3, num_particles=40"
    ):
        nd.run_smc(jax.random.key(1), model, 40, chain_length=3)
    with pytest.raises(ValueError, match="chain_length` must be at least 2; got 1"):
        nd.run_smc(jax.random.key(1), model, 40, chain_length=1)
    without = nd.ReverseDiffusion(levels=6, moves=0, pilot=32)(BRIDGE, jax.random.key(0))
    with pytest.raises(ValueError, match="no moves that leave its levels"):
        nd.run_smc(jax.random.key(1), without, 40, chain_length=4)
    with pytest.raises(ValueError, match="kept no genealogy.*keep_genealogy=True"):
        plots.plot_genealogy(result())
