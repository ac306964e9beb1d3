"""Proposals learned from simulations: posterior and evidence are the model's own, however good they are."""

import dataclasses
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_posterior, assert_unbiased, counting_programs
from closed_form import three_modes
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics
from numpyro_diffusion.bridge import Proposal, proposed
from numpyro_diffusion.energies import StudentMixture
from numpyro_diffusion.ppl.simulate import Observations, Simulator
from numpyro_diffusion.ppl.start import check_start
from numpyro_diffusion.train import MixtureDensityNetwork, fit_mixture_density

PROBLEM = three_modes()
model, SMALL = PROBLEM.model, {"components": 4, "width": 32, "progress_bar": False}


@pytest.fixture(scope="module")
def proposal():
    sizes = {"simulations": 2000, "steps": 500, **SMALL}
    return nd.ppl.fit_proposal(jax.random.key(0), model, PROBLEM.operator, PROBLEM.data, **sizes)


def new(proposal, problem=PROBLEM, seed=0):
    smc = nd.SMC(model, initial=proposal, num_particles=1000, progress_bar=False)
    return smc.run(jax.random.key(seed), problem.operator, problem.data)


def evidence_z(smc, problem=PROBLEM):
    return (smc.log_evidence - problem.exact().log_evidence) / smc.log_evidence_error


def test_a_posterior_of_several_modes_and_its_evidence(proposal, capsys):
    smc = new(proposal)
    found = smc.proposal_diagnostics
    assert found.pareto_k < 0.7 and found.ess > 0.7 and found.num_levels == 1
    assert abs(evidence_z(smc)) < 3.5 and smc.log_evidence_error < 0.02
    assert_posterior(smc, PROBLEM, 0.03)
    assert smc.result.exact and smc.evidence_is_normalized
    assert smc.result.target == nd.SMC(model)._made(smc._arguments).target
    # One at the start; one for the weight, and one after the moves of the offset.
    assert smc.network_evaluations == 4 * 1000 * 3
    smc.print_summary()
    assert f"{found}\n4 clouds" in capsys.readouterr().out
    attributes = smc.to_arviz(predictive=False, log_likelihood=False)["posterior"].attrs
    assert attributes["proposal_pareto_k"] == found.pareto_k
    assert attributes["proposal_ess"] == found.ess
    assert proposal.fit.learned and "given `y` of shape (2,)" in repr(proposal)


def test_other_data_compile_nothing_and_are_updated_to(proposal):
    other = PROBLEM._replace(data=np.array([-0.9, -1.6]))
    new(proposal)
    with counting_programs() as found:
        smc = new(proposal, other, seed=1)
    assert found[0] <= 2, found
    assert abs(evidence_z(smc, other)) < 3.5 and smc.proposal_diagnostics.num_levels == 1
    assert_posterior(smc, other, 0.03)
    smc = pickle.loads(pickle.dumps(smc))
    assert smc.bridge.proposal is not None
    smc.update(PROBLEM.operator, PROBLEM.data)
    assert smc.bridge.proposal is None and abs(evidence_z(smc)) < 4


def wrong(proposal):
    """Elsewhere, and three times too narrow."""
    network = proposal.network
    network = eqx.tree_at(lambda n: n.offset, network, network.offset + jnp.array([0.9, -1.2, 0.7]))
    network = eqx.tree_at(lambda n: n.root, network, 3.0 * network.root)
    return dataclasses.replace(proposal, network=network)


def test_a_wrong_proposal_is_seen_and_made_up_for(proposal):
    smc = new(wrong(proposal))
    found = smc.proposal_diagnostics
    assert found.pareto_k > 0.7 and found.ess < 0.1 and found.num_levels > 2
    assert "levels from there to the posterior" in str(found)
    assert abs(evidence_z(smc)) < 3.5 and smc.log_evidence_error < 0.2
    assert_posterior(smc, PROBLEM, 0.1)


@pytest.mark.long
@pytest.mark.parametrize("guarded", [True, False])
def test_evidence_is_unbiased_from_a_wrong_proposal(proposal, guarded):
    bridge = nd.from_model(model, PROBLEM.operator, PROBLEM.data)
    observations = Observations.of(model, (PROBLEM.operator, PROBLEM.data), {})
    bridge = wrong(proposal).bridge(bridge, observations)
    if not guarded:
        density = wrong(proposal).network(observations.vector()).beside(proposal.wide, 0.05)
        bridge = proposed(bridge, Proposal(density))
    scheme = nd.schemes.DataTempered(pilot=nd.schemes.Pilot(conditional_ess=0.8))
    result = nd.run_smc(jax.random.key(1), scheme(bridge, jax.random.key(2)), 400, num_chains=100)
    assert_unbiased(result.log_evidence, PROBLEM.exact().log_evidence)


def test_a_student_mixture_has_its_density():
    roots = jnp.array([[[2.0, 0.0], [0.6, 1.5]], [[1.0, 0.0], [-0.4, 0.8]]])
    means, log_weights = jnp.array([[0.5, -1.0], [-1.0, 2.0]]), jnp.log(jnp.array([0.3, 0.7]))
    mixture = StudentMixture(log_weights, means, roots, jnp.array([0.1, 0.0]))
    wide = StudentMixture(jnp.zeros(1), jnp.zeros((1, 2)), jnp.eye(2)[None] / 2, jnp.ones(1))
    whole = mixture.beside(wide, 0.2)
    log_prob = jax.jit(jax.vmap(lambda m, u: m.log_prob(u), (None, 0)))
    side = np.linspace(-60.0, 60.0, 1201)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(log_prob(whole, grid))) * (side[1] - side[0]) ** 2
    assert abs(mass.sum() - 1) < 1e-3
    draws = jax.jit(jax.vmap(whole.sample))(jax.random.split(jax.random.key(0), 20_000))
    for inside in (
        lambda u: u[:, 0] > 0.7,
        lambda u: u[:, 0] * u[:, 1] > 9,
        lambda u: u[:, 1] < -4,
    ):
        p = mass[inside(grid)].sum()
        assert abs(np.mean(inside(np.asarray(draws))) - p) < 4 * np.sqrt(p / 20_000)
    # Without tails, and of one component: the Gaussian.
    normal = StudentMixture(jnp.zeros(1), means[1:], roots[1:], jnp.zeros(1))
    precision = np.asarray(roots[1].T @ roots[1])
    exact = multivariate_normal.logpdf(draws[:50], means[1], np.linalg.inv(precision))
    np.testing.assert_allclose(log_prob(normal, draws[:50]), exact, rtol=1e-10)


def test_the_regression_is_the_posterior_of_a_linear_gaussian_model(rng):
    slope = np.array([[1.0, 0.4], [-0.3, 0.8], [0.2, 0.1]])
    z = rng.normal(size=(40_000, 2)) * [1.0, 2.0] + [0.3, -0.5]
    y = z @ slope.T + 0.5 * rng.normal(size=(40_000, 3))
    network = MixtureDensityNetwork.of(jax.random.key(0), y, z, 1, 4)
    mixture = eqx.filter_jit(network)(jnp.asarray(y[0]))
    precision = np.diag([1.0, 0.25]) + slope.T @ slope / 0.25
    mean = np.linalg.solve(precision, [0.3, -0.5 / 4] + slope.T @ y[0] / 0.25)
    root = np.asarray(mixture.roots[0])
    np.testing.assert_allclose(root.T @ root, precision, rtol=0.04, atol=0.02)
    # One component starts a little off, by a standard normal over the root of the dimension.
    shift = np.asarray(network.layers[-1].bias[1:3])
    off = np.asarray(mixture.means[0]) - np.linalg.solve(np.asarray(network.root), shift)
    np.testing.assert_allclose(off, mean, atol=0.03)
    u = jnp.array([0.2, -0.4])
    same = eqx.filter_jit(lambda n, y, u: (n(y).log_prob(u), n.log_prob(y, u)))
    np.testing.assert_allclose(*same(network, jnp.asarray(y[0]), u), rtol=1e-9)


def labelled(seen, y=None):
    """A discrete site on which another one and the data depend."""
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.3, 0.7])))
    theta = numpyro.sample("theta", dist.LogNormal(jnp.where(k, 2.0, -2.0), 0.1))
    numpyro.factor("free", 0.0)
    numpyro.sample("y", dist.Normal(theta + 10.0 * k, 0.1).expand([3]).mask(seen), obs=y)


def test_simulations_are_of_the_joint_law():
    seen = jnp.array([True, False, True])
    arguments = (seen, jnp.array([1.0, jnp.nan, 2.0]))
    bridge = nd.from_model(labelled, *arguments)
    simulator = Simulator.of(labelled, arguments, {}, bridge)
    np.testing.assert_array_equal(simulator.observations.vector(), [1.0, 0.0, 2.0])
    assert list(simulator.observations.values) == ["y"]

    def one(key):
        key_latent, key_data = jax.random.split(key)
        z, values = simulator.latent(key_latent)
        return z["theta"], values["k"], simulator.data(key_data, values)

    log_theta, k, y = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    assert abs(np.mean(k) - 0.7) < 4 * np.sqrt(0.21 / 2000)
    np.testing.assert_allclose(log_theta, np.where(k, 2.0, -2.0), atol=0.5)
    noise = y - (np.exp(log_theta) + 10 * k)[:, None]
    assert (y[:, 1] == 0).all() and abs(np.std(noise[:, [0, 2]]) - 0.1) < 0.01


def test_what_is_refused(proposal):
    run = lambda *arguments: nd.SMC(model, initial=proposal).run(jax.random.key(0), *arguments)
    with pytest.raises(
        ValueError, match=r"data `y` of shape \(2,\); got `y` of shape \(3,\).*Fit one"
    ):
        run(np.ones((3, 2)), np.ones(3))

    def another(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PROBLEM.prior))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"latent sites `offset` of shape \(\).*got `x` of shape"):
        nd.SMC(another, initial=proposal).run(jax.random.key(0), PROBLEM.data)
    with pytest.raises(ValueError, match="the model has no observed site at these arguments"):
        nd.ppl.fit_proposal(jax.random.key(0), lambda: numpyro.sample("x", dist.Normal()))
    with pytest.raises(ValueError, match="`simulations` must be at least 400; got 10"):
        nd.ppl.fit_proposal(jax.random.key(0), another, PROBLEM.data, simulations=10)
    for scheme, twist in ((nd.Annealed(), None), (nd.Twisted(), None), (None, nd.Tweedie())):
        name = type(scheme or twist).__name__
        with pytest.raises(ValueError, match=f"noise levels play no part.*got `{name}`"):
            nd.SMC(model, scheme, twist=twist, initial=proposal)
    chosen = nd.schemes.DataTempered(moves=2)
    assert check_start(chosen, None) is chosen
    with pytest.raises(TypeError, match="`initial` is a dictionary.*got AmortisedProposal"):
        nd.from_model(model, PROBLEM.operator, PROBLEM.data, initial=proposal)
    observations = Observations.of(model, (PROBLEM.operator, PROBLEM.data), {})
    bridge = proposal.bridge(nd.from_model(model, PROBLEM.operator, PROBLEM.data), observations)
    for scheme in (nd.Annealed(), nd.LikelihoodTempered(), nd.schemes.BlackJAXTempered()):
        with pytest.raises(ValueError, match="from a proposal.*`nd.schemes.DataTempered"):
            scheme(bridge)
    with pytest.raises(ValueError, match="at most 512 coordinates; got 600"):
        fit_mixture_density(jax.random.key(0), np.zeros((20, 1)), np.zeros((20, 600)))
    with pytest.raises(ValueError, match="expected at least 20 pairs"):
        fit_mixture_density(jax.random.key(0), np.zeros((20, 1)), np.zeros((19, 2)))


def test_most_simulations_must_be_finite():
    def wild(y):
        scale = numpyro.sample("scale", dist.LogNormal(200.0, 100.0))
        numpyro.sample("y", dist.Normal(0.0, scale**2), obs=y)

    with pytest.raises(
        ValueError, match="simulations of the model are finite.*scales of its priors"
    ):
        nd.ppl.fit_proposal(jax.random.key(0), wild, jnp.asarray(0.3), simulations=400)


def test_the_tail_of_weights_is_that_of_arviz(rng):
    heavy = 1.5 * rng.exponential(size=4000)  # weights of Pareto shape 1.5
    assert abs(diagnostics.tail_shape(heavy) - 1.5) < 0.3
    assert np.isnan(diagnostics.tail_shape(np.zeros(100)))
