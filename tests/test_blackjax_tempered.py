"""BlackJAX's tempered SMC as a scheme: exact evidence and moments, frozen powers, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_form import three_modes
from scipy.special import gammaln
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.schemes import BlackJAXTempered

PROBLEM = three_modes()


@pytest.fixture(scope="module")
def smc():
    move = nd.moves.sequence(nd.moves.random_walk(), nd.moves.hmc(3))
    scheme = BlackJAXTempered(moves=move, pilot=nd.schemes.Pilot(256, 0.6))
    smc = nd.SMC(PROBLEM.model, scheme, num_particles=300, num_chains=32, progress_bar=False)
    return smc.run(jax.random.key(0), PROBLEM.operator, PROBLEM.data)


def test_evidence_and_moments(smc):
    exact = PROBLEM.exact()
    ratio = np.exp(np.asarray(smc.result.log_evidence) - exact.log_evidence)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 32**0.5 < 0.15
    weights = jax.nn.softmax(smc.result.log_weights, -1)
    means = np.einsum("cn,cni->ci", weights, smc.result.positions["x"])
    assert np.all(abs(means.mean(0) - exact.mean) < 4 * means.std(0) / 32**0.5)
    offsets = np.einsum("cn,cn->c", weights, smc.result.positions["offset"])
    assert abs(offsets.mean() - exact.offset_mean) < 4 * offsets.std() / 32**0.5 < 0.1
    assert smc.evidence_is_normalized and smc.result.exact


def test_powers_keep_what_they_are_asked_to(smc):
    levels = smc.result.levels
    assert levels.power[0] == 0 and levels.next_power[-1] == 1 and levels.power[-1] == 1
    # The driver looks at a cloud before it is resampled and moved, which is wider than the one that is
    # weighed: the first power leaves the asked share, on average over clouds that did not choose it, later
    # ones more.
    share = np.asarray(smc.result.trace.conditional_ess)[:, :-2].mean(0)
    assert abs(share[0] - 0.6) < 0.1 and np.all(share > 0.5)
    assert levels.step_size.shape == (len(levels.power), 2)


def test_frozen_levels_and_waste_free_clouds(smc):
    scheme = BlackJAXTempered(levels=smc.result.levels, moves=smc.scheme.moves)
    options = {"num_particles": 300, "num_chains": 32, "chain_length": 10, "progress_bar": False}
    again = nd.SMC(PROBLEM.model, scheme, **options)
    again.run(jax.random.key(1), PROBLEM.operator, PROBLEM.data)
    np.testing.assert_array_equal(again.result.levels.power, smc.result.levels.power)
    ratio = np.exp(np.asarray(again.result.log_evidence) - PROBLEM.exact().log_evidence)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 32**0.5 < 0.2
    # A start, the random walk, a gradient that it leaves unknown and three leapfrog steps, five times.
    assert smc.scheme.evaluations_per_level(smc.bridge) == 1 + 5 * 5


def counts(y):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_a_model_without_diffusion_site():
    y = np.array([1, 0, 4])
    smc = nd.SMC(counts, BlackJAXTempered(pilot=128), num_chains=16, progress_bar=False)
    smc.run(jax.random.key(0), y)
    exact = 3 * np.log(2) - gammaln(3) + gammaln(8) - 8 * np.log(5) - gammaln(y + 1).sum()
    assert abs(smc.log_evidence - exact) < 4 * smc.log_evidence_error < 0.2
    assert smc.network_evaluations == 0
    rate = np.asarray(smc.get_samples(group_by_chain=True)["rate"]).mean(1)
    assert abs(rate.mean() - 8 / 5) < 4 * rate.std() / 4 < 0.2


def test_a_likelihood_that_is_zero_for_most_of_the_prior():
    def hard():
        x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian([0.0], [[1.0]])))
        numpyro.factor("edge", jnp.where(x[0] > 1.5, 0.0, -jnp.inf))

    smc = nd.SMC(hard, BlackJAXTempered(), num_particles=1000, num_chains=16, progress_bar=False)
    smc.run(jax.random.key(0))
    noise = float(nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))) ** 2
    truth = norm.sf(1.5 / (1 + noise) ** 0.5)
    ratio = np.exp(np.asarray(smc.result.log_evidence)) / truth
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 4 < 0.15
    assert smc.get_samples()["x"].min() > 1.5


def test_an_impossible_model_is_said_to_be():
    def impossible():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("edge", jnp.where(x > 50.0, 0.0, -jnp.inf))

    with pytest.raises(nd.schemes.pilot.PilotError, match="every pilot particle has weight 0"):
        nd.SMC(impossible, BlackJAXTempered(), progress_bar=False).run(jax.random.key(0))


def test_refusals(smc):
    score = nd.ScoreFunction(lambda x, t: -x, (2,))
    bridge = nd.from_energy(score, bridge_type=nd.bridge.PathBridge)
    with pytest.raises(ValueError, match=r"exact draws.*\['x'\].*LikelihoodTempered"):
        BlackJAXTempered()(bridge)
    for options, error, message in (
        ({"moves": 0}, ValueError, "`num` of `moves`"),
        ({"moves": nd.schemes.Moves(rank=2)}, ValueError, "one inner kernel.*got rank too"),
        ({"moves": nd.schemes.Moves(num="pilot")}, ValueError, "a number of moves that is given"),
        ({"levels": 12}, TypeError, "earlier run of its own"),
        (
            {"levels": smc.result.levels._replace(power=smc.result.levels.power[::-1])},
            ValueError,
            "must rise without gaps from 0",
        ),
    ):
        with pytest.raises(error, match=message):
            BlackJAXTempered(**options)
    scheme = BlackJAXTempered(levels=smc.result.levels)
    with pytest.raises(ValueError, match="scales of 3 coordinates, but .* has 1"):
        scheme(nd.from_model(counts, np.array([1, 0, 4])))
