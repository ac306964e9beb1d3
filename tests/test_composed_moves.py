"""Moves made of moves in samplers: exact posteriors, a step size for each part, refusals by name."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_form import three_modes
from numpyro.infer import MCMC
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import moves

PROBLEM = three_modes()
BY_SITE = moves.sequence(
    moves.on_sites(moves.hmc(), "x"),
    moves.on_sites(moves.random_walk(), ["offset"]),
    moves.barker(),
)


@pytest.fixture(scope="module")
def smc():
    # The offset has a standard normal prior, so that a slice on ellipses fits it.
    other = moves.mixture(moves.random_walk(), moves.elliptical_slice(), weights=[1.0, 2.0])
    scheme = nd.Annealed(
        moves=nd.schemes.Moves(joint=BY_SITE, other=other),
        pilot=nd.schemes.Pilot(conditional_ess=0.9),
    )
    smc = nd.SMC(PROBLEM.model, scheme, num_particles=300, num_chains=16, progress_bar=False)
    return smc.run(jax.random.key(0), PROBLEM.operator, PROBLEM.data)


def test_evidence_and_moments_with_moves_by_site(smc):
    exact = PROBLEM.exact()
    ratio = np.exp(np.asarray(smc.result.log_evidence) - exact.log_evidence)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 4 < 0.15
    weights = jax.nn.softmax(smc.result.log_weights, -1)
    means = np.einsum("cn,cni->ci", weights, smc.result.positions["x"])
    assert np.all(abs(means.mean(0) - exact.mean) < 4 * means.std(0) / 4)
    offsets = np.einsum("cn,cn->c", weights, smc.result.positions["offset"])
    assert abs(offsets.mean() - exact.offset_mean) < 4 * offsets.std() / 4 < 0.2


def test_each_part_is_tuned_to_its_own_target(smc):
    levels = smc.result.levels
    assert levels.step_size.shape == (len(levels.clock), 3)
    assert levels.other_step_size.shape == (len(levels.clock), 2)
    # One acceptance rate for all would drive all steps alike.
    hamiltonian, walk, barker = np.median(levels.step_size, 0)
    assert walk > 1.5 * barker and abs(np.log(hamiltonian / barker)) > 0.2
    # Steered by the mean of all, one would shrink from level to level and another grow.
    last = np.asarray(levels.step_size)[-5:]
    assert np.all((last > 0.25) & (last < 8)), last
    # What rejects nothing has no step size to learn.
    assert np.ptp(levels.other_step_size[:, 1]) < 1e-6
    mean = float(smc.result.trace.info.acceptance.mean())
    assert abs(mean - BY_SITE.target_acceptance) < 0.15


def test_network_evaluations_are_counted(smc):
    # on x: two leapfrog steps and a first gradient; on the offset: a value; Barker: one and a first gradient.
    assert BY_SITE.evaluations == 3 + 1 + 2
    per_level = smc.scheme.evaluations_per_level(smc.bridge, smc.result.levels)
    assert (
        per_level == 2 + 2 * BY_SITE.evaluations
    )  # the weight, and the start after the other sites
    assert moves.sequence(moves.hmc(3), moves.mala()).evaluations == 4
    assert moves.sequence(moves.hmc(3), moves.random_walk()).evaluations == 5
    assert moves.sequence(moves.nuts(), moves.mala()).evaluations is None
    unknown = nd.Annealed(moves=moves.nuts())
    assert unknown.evaluations_per_level(smc.bridge, smc.result.levels) is None


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])))
    b = numpyro.sample("b", dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(x[0] + b, 0.4), obs=y)


def test_a_chain_of_composed_moves():
    """As a kernel of NumPyro's MCMC, where all parts share a step size."""
    parts = moves.on_sites(moves.hmc(3), "x"), moves.on_sites(moves.slice_sampling(), "b")
    kernel = nd.MoveKernel(model, moves.sequence(*parts, moves.hmc(3)))
    options = {"num_chains": 24, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=200, num_samples=150, **options)
    mcmc.run(jax.random.key(0), 1.5)
    draws = mcmc.get_samples(group_by_chain=True)
    noise = float(nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))) ** 2
    total = 1.0 + noise + 0.25 + 0.16
    expected = np.array([0.5 + (1.0 + noise) / total, -1.0 + 0.6 / total, 0.25 / total])
    means = np.concatenate([draws["x"].mean(1), draws["b"].mean(1)[:, None]], 1)
    assert np.all(abs(means.mean(0) - expected) < 4 * means.std(0) / 24**0.5)
    assert np.all(means.std(0) < 0.3)


def test_an_elliptical_slice_needs_no_gradient_and_leaves_the_impossible_alone():
    """A model with standard normal priors and a hard edge: P(x > 1) and the mean beyond it."""

    def hard():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("edge", jnp.where(x > 1.0, 0.0, -jnp.inf))

    scheme = nd.Annealed(moves=moves.elliptical_slice(), pilot=512)
    smc = nd.SMC(hard, scheme, num_particles=500, num_chains=24, progress_bar=False)
    smc.run(jax.random.key(0))
    ratio = np.exp(np.asarray(smc.result.log_evidence)) / norm.sf(1.0)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 24**0.5 < 0.2
    x = np.asarray(smc.get_samples(group_by_chain=True)["x"])
    assert x.min() > 1.0
    truth = norm.pdf(1.0) / norm.sf(1.0)
    assert abs(x.mean() - truth) < 4 * x.mean(1).std() / 24**0.5 < 0.1


@pytest.mark.parametrize(
    ("algorithm", "reason", "remedy"),
    [
        (blackjax.mclmc, "accepts every step", "adjusted_mclmc"),
        (blackjax.sgld, "noisy gradients", r"mala\(\)"),
        (blackjax.sghmc, "noisy gradients", r"hmc\(n\)"),
        (blackjax.svgd, "no Markov chain", r"hmc\(n\)"),
        (blackjax.ghmc, "momentum is part of the state", r"hmc\(n\)"),
        (blackjax.orbital_hmc, "a weighted orbit", r"hmc\(n\)"),
        (blackjax.rmhmc, "do not preserve volume", r"moves.rmhmc\(mass_matrix\)"),
        (blackjax.elliptical_slice, "without its Gaussian factor", "moves.elliptical_slice"),
        (blackjax.laplace_hmc, "integrates a part", r"hmc\(n\)"),
        (blackjax.nss, r"begins with \(", "draws the rest anew"),
    ],
    ids=lambda v: "",
)
def test_what_is_no_move_is_refused_by_name(algorithm, reason, remedy):
    with pytest.raises(ValueError, match=f"`blackjax..*{reason}.*{remedy}"):
        moves.from_blackjax(algorithm, lambda step_size, z: {"step_size": step_size})


def test_wrong_compositions_are_refused():
    with pytest.raises(TypeError, match="`init` and `build_kernel`.*got function"):
        moves.from_blackjax(lambda: None, lambda step_size, z: {})
    with pytest.raises(ValueError, match="at least one move"):
        moves.sequence()
    with pytest.raises(TypeError, match="a part of `sequence"):
        moves.sequence(moves.hmc(), moves.mala)
    with pytest.raises(TypeError, match="expects moves"):
        moves.on_sites(None, "x")
    for weights in ([1.0], [1.0, 0.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="2 numbers above 0"):
            moves.mixture(moves.hmc(), moves.mala(), weights=weights)
    with pytest.raises(ValueError, match="each once"):
        moves.on_sites(moves.hmc(), ["a", "a"])
    with pytest.raises(ValueError, match="above 0 and finite; got -1"):
        moves.elliptical_slice(scale=-1.0)
    assert moves.sequence(moves.hmc(), moves.mala()) == moves.sequence(moves.hmc(), moves.mala())


def test_sites_that_are_not_there_are_named():
    scheme = nd.Annealed(moves=moves.on_sites(moves.hmc(), ["x", "c"]))
    with pytest.raises(ValueError, match=r"names \['c'\], but the sites .* are \['b', 'x'\]"):
        nd.SMC(model, scheme, progress_bar=False).run(jax.random.key(0), 1.5)
    scheme = nd.Annealed(moves=nd.schemes.Moves(other=moves.elliptical_slice(mean={"x": 0.0})))
    with pytest.raises(
        ValueError, match=r"given for the sites \['x'\], but the move moves \['b'\]"
    ):
        nd.SMC(model, scheme, progress_bar=False).run(jax.random.key(0), 1.5)


def test_adjusted_mclmc_takes_two_coordinates():
    def one(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    smc = nd.SMC(one, nd.Annealed(moves=moves.adjusted_mclmc()), progress_bar=False)
    with pytest.raises(ValueError, match="at least 2 coordinates; got 1"):
        smc.run(jax.random.key(0), 0.3)
