"""Tempered, reverse and twisted samplers hit closed-form evidences and posteriors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import Shifted, assert_near, assert_posterior, assert_unbiased, by_cloud, modes
from closed_form import ambiguous, eight_dimensional, three_modes, two_dimensional
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd
from numpyro_diffusion.schemes.covariance import Line
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.schemes.proposals import Reverse as ReverseProposal

SMALL = two_dimensional()
SCHEMES = {
    "tempered": nd.LikelihoodTempered(),
    "tempered from noise": nd.LikelihoodTempered(exact_draws=False),
    "reverse": nd.ReverseDiffusion(),
    "reverse without moves": nd.ReverseDiffusion(moves=0),
    "reverse, score reused": nd.ReverseDiffusion(),
    "reverse without moves, score reused": nd.ReverseDiffusion(moves=0),
    "pilot's number of moves": nd.Annealed(moves="pilot"),
    "probability flow": nd.Annealed(transport=nd.schemes.ProbabilityFlow()),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEMES)
def test_evidence_of_small_clouds_is_unbiased_and_its_error_honest(name):
    twist = nd.Tweedie(reuse_score=True) if "reused" in name else None
    if name == "reverse without moves":
        twist = nd.Widened()  # even weights: the mean of 600 clouds means something
    # Skewed weights: without moves, or levels chosen for others, it takes more clouds to know the mean.
    many = "without" in name or "from noise" in name
    sizes = {"num_particles": 64, "num_chains": 600 if many else 200}
    smc = nd.SMC(SMALL.model, SCHEMES[name], twist=twist, progress_bar=False, **sizes)
    smc.run(jax.random.key(1), SMALL.operator, y=SMALL.data)
    log_evidence, truth = np.asarray(smc.result.log_evidence), SMALL.exact().log_evidence
    assert_unbiased(log_evidence, truth)
    own = np.sqrt(np.mean(np.asarray(smc.result.log_evidence_error) ** 2))
    assert 0.6 < own / log_evidence.std(ddof=1) < 1.6
    assert_near(by_cloud(smc, lambda s: modes(SMALL, s["x"])), SMALL.exact().modes, 0.02)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tempered", "reverse"])
def test_posterior_by_default(name):
    problem = {"tempered": eight_dimensional(), "reverse": ambiguous()}[name]
    # The four far modes have skewed weights: four clouds say too little of their own spread.
    sizes = {"num_particles": 1000, "num_chains": 16 if name == "reverse" else 4}
    smc = nd.SMC(problem.model, SCHEMES[name], progress_bar=False, **sizes)
    smc.run(jax.random.key(0), problem.operator, y=problem.data)
    error = abs(smc.log_evidence - problem.exact().log_evidence)
    assert error < 3 * smc.log_evidence_error and error < 0.15
    assert_posterior(smc, problem, 0.08)


MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
OPERATOR, DATUM, SIGMA = np.array([1.0, 0.4]), 1.5, 0.4


def log_likelihood(x):
    return jax.scipy.stats.norm.logpdf(DATUM, jnp.asarray(OPERATOR) @ x, SIGMA)


def gaussian_bridge(prior, twist=None, bridge_type=nd.bridge.DensityBridge):
    return nd.from_energy(prior, log_likelihood, twist=twist, bridge_type=bridge_type)


def log_evidence_under(mean, covariance) -> float:
    variance = OPERATOR @ covariance @ OPERATOR + SIGMA**2
    return float(norm.logpdf(DATUM, OPERATOR @ mean, variance**0.5))


def sampler_law(bridge, kernels):
    """Mean and covariance of the reverse sampler of a Gaussian prior: its steps are linear."""
    prior, transport = nd.Gaussian(MEAN, COVARIANCE), kernels.transport
    alpha, _ = prior.schedule(jnp.asarray(prior.t_max))
    mean, variance = map(np.asarray, prior.moments(jnp.asarray(prior.t_max)))
    mean, covariance = mean / float(alpha), np.diag(variance / float(alpha) ** 2)
    clocks = [*np.asarray(transport.clocks), 0.0]
    noises = jax.jit(jax.vmap(bridge.noise))(jnp.asarray(clocks))["x"]
    noises = np.asarray(noises).reshape(-1) ** 2
    curvature = np.asarray(transport.curvature["x"])
    for noisy, clean, h in zip(noises[:-1], noises[1:], curvature, strict=True):
        step = noisy - clean
        gain = np.eye(2) - step * np.linalg.inv(COVARIANCE + noisy * np.eye(2))
        sharp = np.maximum(-noisy * h, 1)
        share = np.where(sharp > 1, clean / (clean + step * sharp), np.minimum(1 + step * h, 4))
        spread = step * share
        mean = gain @ mean + (np.eye(2) - gain) @ MEAN
        covariance = gain @ covariance @ gain.T + np.diag(spread)
    return mean, covariance


@pytest.mark.parametrize("inflation", [1.0, 1.3])
def test_twisted_has_the_evidence_of_its_own_sampler(inflation):
    """Six coarse steps, whose law is far from the prior: the evidence is that of the steps."""
    scheme = nd.Twisted(levels=6, inflation=inflation)
    bridge = gaussian_bridge(nd.Gaussian(MEAN, COVARIANCE), bridge_type=nd.bridge.PathBridge)
    model = scheme(bridge, jax.random.key(0))
    truth = log_evidence_under(*sampler_law(bridge, scheme.kernels(bridge)))
    assert abs(truth - log_evidence_under(MEAN, COVARIANCE)) > 0.02
    result = nd.run_smc(jax.random.key(1), model, 200, num_chains=100)
    assert_unbiased(result.log_evidence, truth)
    assert "reverse sampler" in result.target and "6 steps" in result.target


def test_twisted_needs_a_score_alone():
    """A score without energy gives the very numbers that its energy gives."""
    problem = two_dimensional()

    def run(prior):
        def model(y=None):
            x = numpyro.sample("x", nd.DiffusionPrior(prior))
            sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
            numpyro.sample("y", dist.Normal(jnp.asarray(problem.operator) @ x, sigma), obs=y)

        scheme = nd.Twisted(levels=12, pilot=32)
        smc = nd.SMC(model, scheme, num_particles=50, num_chains=2, progress_bar=False)
        return smc.run(jax.random.key(0), y=problem.data)

    mixture = problem.prior
    mean, variance = mixture.moments(jnp.asarray(0.0))
    score = nd.ScoreFunction(
        lambda mixture, x, t: mixture.score(x, t),
        mixture.shape,
        params=mixture,
        schedule=mixture.schedule,
        t_min=mixture.t_min,
        t_max=mixture.t_max,
        mean=mean,
        variance=variance,
    )
    first, second = run(mixture), run(score)
    assert second.evidence_is_normalized
    np.testing.assert_allclose(first.log_evidence, second.log_evidence, rtol=1e-2)


def test_tempered_evidence_needs_no_normalizer():
    """An arbitrary constant in the energy changes nothing, and the result says so."""
    evidences = []
    for constant in (0.0, 3.0):
        prior = Shifted(nd.Gaussian(MEAN, COVARIANCE), jnp.asarray(constant))
        scheme = nd.LikelihoodTempered(pilot=64)
        bridge = gaussian_bridge(prior, scheme.twist)
        model = scheme(bridge, jax.random.key(0))
        assert bridge.log_normalizer_error is None and model.evidence_from > 0
        result = nd.run_smc(jax.random.key(1), model, 200, num_chains=20)
        assert result.normalized
        evidences.append(np.asarray(result.log_evidence))
    np.testing.assert_allclose(*evidences, atol=1e-6)
    noise = nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))
    truth = log_evidence_under(MEAN, COVARIANCE + float(noise) ** 2 * np.eye(2))
    assert abs(np.log(np.mean(np.exp(evidences[0]))) - truth) < 0.05


def test_a_choice_among_draws_is_weighed_by_their_mean():
    """Weighted moments of what is chosen are those of prior times likelihood, less noisy than of one."""
    bridge = gaussian_bridge(nd.Gaussian(MEAN, COVARIANCE), nd.twists.Identity())
    power, errors = 0.6, {}
    floor = nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))
    covariance = COVARIANCE + float(floor) ** 2 * np.eye(2)
    variance, total = SIGMA**2 / power, OPERATOR @ covariance @ OPERATOR + SIGMA**2 / power
    # N(y; ., s^2)^p = N(y; ., s^2 / p) times the ratio of their norms
    ratio = 0.5 * np.log(2 * np.pi * variance) - 0.5 * power * np.log(2 * np.pi * SIGMA**2)
    truth = norm.logpdf(DATUM, OPERATOR @ MEAN, total**0.5) + ratio
    mean = MEAN + covariance @ OPERATOR / total * (DATUM - OPERATOR @ MEAN)
    for num_draws in (1, 16):
        kernels = nd.LikelihoodTempered(num_draws=num_draws).kernels(bridge)
        zeros = jnp.zeros(())
        level = Level(
            *(zeros,) * 3, zeros + power, *(zeros + 0.5,) * 2, zeros.astype(int), None, None
        )

        def one(key, kernels=kernels, level=level):
            key_draw, key_step = jax.random.split(key)
            particle, first, _ = kernels.init(key_draw)
            new, log_weight, _ = kernels.advance(key_step, particle, level)
            return new.position["x"], first + log_weight

        x, log_weights = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 40_000))
        weights = np.exp(np.asarray(log_weights))
        errors[num_draws] = weights.std() / weights.mean()
        error = errors[num_draws] / len(weights) ** 0.5
        assert abs(np.log(weights.mean()) - truth) < 3 * error
        np.testing.assert_allclose(weights @ np.asarray(x) / weights.sum(), mean, atol=0.04)
    assert errors[16] < 0.3 * errors[1]


class Bad(eqx.Module):
    """A log-likelihood that is NaN above a limit and infinite below -1/2."""

    limit: jax.Array

    def __call__(self, x):
        infinite = jnp.where(x[0] < -0.5, -jnp.inf, -(x[1] ** 2))
        return jnp.where(x[0] > self.limit, jnp.nan, infinite)


@pytest.mark.filterwarnings("ignore:log density NaN")
def test_draws_without_a_finite_likelihood_are_passed_over():
    """NaN, zeros, and a cloud in which nothing counts; +inf is refused (tests/test_finite.py)."""
    prior = nd.Gaussian(MEAN, COVARIANCE)
    scheme = nd.LikelihoodTempered(pilot=64)
    bridge = nd.from_energy(prior, Bad(jnp.asarray(1.0)), twist=scheme.twist)
    result = nd.run_smc(jax.random.key(1), scheme(bridge, jax.random.key(0)), 500, num_chains=8)
    x = np.asarray(result.positions["x"])
    assert np.all((x[..., 0] <= 1) & (x[..., 0] >= -0.5))
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(MEAN, COVARIANCE, 1_000_000)
    inside = (draws[:, 0] <= 1) & (draws[:, 0] >= -0.5)
    truth = np.log(np.mean(inside * np.exp(-(draws[:, 1] ** 2))))
    np.testing.assert_allclose(np.mean(result.log_evidence), truth, atol=0.03)
    nothing = nd.from_energy(prior, Bad(jnp.asarray(-jnp.inf)), twist=scheme.twist)
    with pytest.raises(nd.schemes.pilot.PilotError, match="weight 0"):
        scheme(nothing, jax.random.key(0))


@pytest.mark.long
def test_reverse_draws_have_light_tails():
    """Steep twisted likelihoods once threw rare particles into the bulk: sd .25, clouds at 5 times Z."""
    problem = three_modes()
    scheme = nd.ReverseDiffusion()
    bridge = nd.from_model(problem.model, problem.operator, y=problem.data, twist=scheme.twist)
    model = scheme(bridge, jax.random.key(0))
    result = nd.run_smc(jax.random.key(1), model, 250, num_chains=600)
    ratio = np.exp(np.asarray(result.log_evidence) - problem.exact().log_evidence)
    assert abs(ratio.mean() - 1) < 2.5 * ratio.std() / len(ratio) ** 0.5
    assert ratio.std() < 0.15


def test_an_interrupted_tempered_run_goes_on_to_the_same_numbers(monkeypatch):
    scheme = nd.LikelihoodTempered(exact_draws=False, pilot=64)
    bridge = gaussian_bridge(nd.Gaussian(MEAN, COVARIANCE), scheme.twist)
    model = scheme(bridge, jax.random.key(0))
    whole = nd.run_smc(jax.random.key(1), model, 100, levels_per_chunk=1)
    real, calls = nd.smc.engine.run_chunk, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == len(model.levels.clock):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(nd.smc.engine, "run_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        nd.run_smc(jax.random.key(1), model, 100, levels_per_chunk=1)
    half = caught.value.result
    assert not half.completed and half.num_levels_run >= model.evidence_from
    rest = nd.run_smc(jax.random.key(1), model, 100, levels_per_chunk=1, state=half)
    np.testing.assert_array_equal(rest.log_evidence, whole.log_evidence)
    np.testing.assert_array_equal(rest.log_evidence_error, whole.log_evidence_error)


def test_what_schemes_refuse():
    prior = nd.Gaussian(MEAN, COVARIANCE)
    bridge = gaussian_bridge(prior)
    with pytest.raises(ValueError, match="needs a `PathBridge`.*bridge_type=scheme.bridge_type"):
        nd.Twisted()(bridge)
    # Without this, the prior would silently be left out of the posterior.
    for scheme in (nd.Annealed(), nd.ReverseDiffusion(), nd.LikelihoodTempered()):
        with pytest.raises(ValueError, match="needs a `DensityBridge`; got a `PathBridge`"):
            scheme(gaussian_bridge(prior, bridge_type=nd.bridge.PathBridge))
    other = nd.Annealed(pilot=32)(bridge, jax.random.key(0)).levels
    with pytest.raises(ValueError, match="hold no curvature.*of another scheme"):
        nd.ReverseDiffusion(levels=other)(bridge)
    with pytest.raises(ValueError, match="at least 1.*rare huge weights"):
        nd.ReverseDiffusion(inflation=0.5)
    with pytest.raises(TypeError, match="keeps no gradient; use `mala"):
        nd.ReverseDiffusion(moves=nd.schemes.Moves(joint=nd.moves.random_walk()), pilot=8)(bridge)
    with pytest.raises(TypeError, match="even grid"):
        nd.LikelihoodTempered(levels=10)
    levels = nd.LikelihoodTempered(pilot=32)(bridge, jax.random.key(0)).levels
    with pytest.raises(ValueError, match="Set `exact_draws`"):
        nd.LikelihoodTempered(levels=levels, exact_draws=False)(bridge)
    with pytest.raises(ValueError, match="must begin at clock 1"):
        nd.Annealed(levels=levels)

    def no_diffusion():
        numpyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="needs a diffusion site"):
        nd.ReverseDiffusion()(nd.from_model(no_diffusion))


@pytest.mark.parametrize(
    "scheme", [nd.Annealed(), nd.ReverseDiffusion()], ids=["annealed", "reverse"]
)
def test_any_initial_law_is_corrected_by_its_weight(scheme):
    """Start off centre and with heavy tails: the evidence does not move."""
    prior = nd.Gaussian(MEAN, COVARIANCE, t_max=0.5)
    noise = float(prior.schedule.noise_level(jnp.asarray(prior.t_max)))
    law = dist.StudentT(5.0, jnp.array([1.0, -0.5]), 1.2 * noise).to_event(1)
    bridge = nd.from_energy(prior, log_likelihood, initial=law)
    draws = jax.jit(jax.vmap(bridge.sample_base))(jax.random.split(jax.random.key(0), 500))["x"]
    assert abs(np.mean(draws[:, 0]) - 1.0) < 5 * noise / 500**0.5
    result = nd.run_smc(jax.random.key(1), scheme(bridge, jax.random.key(2)), 100, num_chains=100)
    floor = float(prior.schedule.noise_level(jnp.asarray(prior.t_min))) ** 2
    assert_unbiased(result.log_evidence, log_evidence_under(MEAN, COVARIANCE + floor * np.eye(2)))


def test_initial_laws_that_are_refused():
    prior = nd.Gaussian(MEAN, COVARIANCE)
    with pytest.raises(ValueError, match=r"shape \(3,\).*one example has shape \(2,\)"):
        nd.from_energy(prior, initial=dist.Normal(jnp.zeros(3), 1.0).to_event(1))

    def model():
        numpyro.sample("x", nd.DiffusionPrior(prior))

    law = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"names \['z'\].*\['x'\]"):
        nd.from_model(model, initial={"z": law})
    bridge = nd.from_model(model, initial={"x": law})
    np.testing.assert_allclose(bridge.log_base({"x": jnp.ones(2)}), law.log_prob(jnp.ones(2)))


def test_reusing_the_score_changes_drifts_and_not_densities():
    prior = nd.Gaussian(MEAN, np.diag([1.0, 0.3]))
    exact = gaussian_bridge(prior)
    cheap = gaussian_bridge(prior, nd.Tweedie(reuse_score=True))

    @eqx.filter_jit
    def value_and_gradient(bridge, clock):
        density = lambda u: nd.bridge.log_density(bridge, {"x": u}, clock, jnp.ones(()))[0]
        return jax.value_and_grad(density)(jnp.array([0.3, -0.7]))

    def both(bridge, clock):
        return map(np.asarray, value_and_gradient(bridge, jnp.asarray(clock)))

    # For a Gaussian with independent coordinates the stand-in is the truth.
    for clock in (0.0, 0.4, 0.8):
        for a, b in zip(both(exact, clock), both(cheap, clock), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    mixture = nd.GaussianMixture()
    exact, cheap = (
        gaussian_bridge(mixture),
        gaussian_bridge(mixture, nd.Tweedie(reuse_score=True)),
    )
    (value, gradient), (same, other) = both(exact, 0.5), both(cheap, 0.5)
    np.testing.assert_allclose(value, same, rtol=1e-12)
    assert np.abs(gradient - other).max() > 1e-3

    # Only the second derivative in u is replaced: time and parameters keep their gradients.
    u, t, cheap = jnp.array([0.3, -0.7]), jnp.asarray(0.3), nd.Tweedie(reuse_score=True)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(args, twist):
        log_density, x_hat = twist(args[0], u, args[1])
        return log_density + jnp.sum(x_hat**2)

    exact, same = (gradients((mixture, t), twist) for twist in (nd.Tweedie(), cheap))
    np.testing.assert_allclose(exact[1], same[1], rtol=1e-8)
    np.testing.assert_allclose(exact[0].means, same[0].means, rtol=1e-8)


@pytest.mark.long
@pytest.mark.parametrize(
    "scheme", [nd.ReverseDiffusion(), nd.Twisted()], ids=["reverse", "twisted"]
)
def test_several_sites_and_a_plate_have_their_joint_evidence(scheme):
    """y_k = a[0] + b_k[1] + noise, with one Gaussian site and one in a plate of three."""
    first, second = nd.Gaussian(MEAN, COVARIANCE), nd.Gaussian([0.2, 0.9], [[0.7, 0.3], [0.3, 1.1]])
    data = jnp.array([0.3, 2.4, 1.0])

    def model(y=None):
        a = numpyro.sample("a", nd.DiffusionPrior(first))
        with numpyro.plate("cases", 3):
            b = numpyro.sample("b", nd.DiffusionPrior(second))
        numpyro.sample("y", dist.Normal(a[0] + b[:, 1], SIGMA).to_event(1), obs=y)

    smc = nd.SMC(model, scheme, num_particles=250, num_chains=32, progress_bar=False)
    smc.run(jax.random.key(0), y=data)
    covariance = COVARIANCE[0, 0] + (1.1 + SIGMA**2) * np.eye(3)
    truth = multivariate_normal.logpdf(data, np.full(3, 0.5 + 0.9), covariance)
    # The law of a hundred steps is not quite the prior's: 0.02 nats are granted to it.
    spread = np.asarray(smc.result.log_evidence).std(ddof=1) / 32**0.5
    assert spread < 0.04
    assert abs(smc.log_evidence - float(truth)) < 3 * spread + 0.02 * (
        scheme.bridge_type is nd.bridge.PathBridge
    )


def test_a_gradient_that_is_not_a_number_loses_no_particle():
    """The density is in order at 0 while its gradient is NaN: the proposal goes without a drift."""
    transport = ReverseProposal()
    bridge = gaussian_bridge(nd.Gaussian(MEAN, COVARIANCE))
    half, less = jnp.asarray(0.5), jnp.asarray(0.45)
    zeros = {"x": jnp.zeros(2)}
    levels = Level.by_hand(jnp.stack([half, less]), jnp.ones(2), {"x": jnp.ones((1, 2))})
    level = jax.tree.map(lambda leaf: leaf[0], levels)._replace(
        curvature={"x": Line(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()))}
    )
    gradient = {"x": jnp.array([jnp.nan, 1.0])}
    step = eqx.filter_jit(transport)
    new, log_ratio = step(jax.random.key(0), bridge, zeros, gradient, {}, level)
    assert np.isfinite(new["x"]).all() and np.isfinite(log_ratio)


def test_a_flow_that_folds_over_loses_the_particle_and_says_so():
    fold = nd.EnergyFunction(lambda x, t: 50.0 * jnp.sum(x**2), (2,))  # sharper than any noised law
    bridge = nd.from_energy(fold)
    levels = Level.by_hand(jnp.array([0.8, 0.4]), jnp.ones(2), {"x": jnp.ones((1, 2))})
    level = jax.tree.map(lambda leaf: leaf[0], levels)
    flow = eqx.filter_jit(nd.schemes.ProbabilityFlow())
    _, log_ratio = flow(jax.random.key(0), bridge, {"x": jnp.ones(2)}, None, {}, level)
    assert np.isnan(log_ratio)
    # Where it does not fold it is the map whose determinant it says.
    prior = nd.from_energy(nd.GaussianMixture())
    u = jnp.array([0.4, -1.1])

    def mapped(u):
        new, log_ratio = flow(jax.random.key(0), prior, {"x": u}, None, {}, level)
        return new["x"], log_ratio

    jacobian, log_ratio = jax.jit(jax.jacobian(mapped, has_aux=True))(u)
    determinant = np.linalg.slogdet(jacobian)
    np.testing.assert_allclose(log_ratio, determinant[1], rtol=1e-9)
    assert determinant[0] == 1
