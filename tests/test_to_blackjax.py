"""`to_blackjax`: densities of the user's model, exact draws of its prior, and BlackJAX's samplers on both."""

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from blackjax.ns.utils import finalise, log_weights
from closed_form import three_modes
from numpyro.infer.util import potential_energy

import numpyro_diffusion as nd

PROBLEM = three_modes()
ENERGY = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])


@pytest.fixture(scope="module")
def target():
    return nd.to_blackjax(PROBLEM.model, PROBLEM.operator, PROBLEM.data)


@pytest.fixture(scope="module")
def exact():
    return PROBLEM.exact()


def bounded(y=None):
    """No diffusion site, bounded supports, one of which depends on another site."""
    low = numpyro.sample("low", dist.Beta(2.0, 3.0))
    rate = numpyro.sample("rate", dist.Uniform(low, 3.0))
    numpyro.sample("y", dist.Poisson(rate).expand([4]).to_event(1), obs=y)


def alone():
    numpyro.sample("x", nd.DiffusionPrior(ENERGY))


def plates(y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(0.5))
    with numpyro.plate("rows", 3):
        x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
        numpyro.sample("y", dist.Normal(x[:, 0], scale), obs=y)
    numpyro.factor("soft", -jnp.abs(x).sum())


MODELS = {
    "mixture": (PROBLEM.model, (PROBLEM.operator, PROBLEM.data), 2),
    "bounded supports, counts": (bounded, (np.array([1, 0, 3, 2]),), 4),
    "only a diffusion site": (alone, (), 0),
    "a plate and a factor": (plates, (np.array([0.3, -0.2, 1.1]),), 4),
}


@pytest.mark.parametrize(("model", "args", "num_data"), MODELS.values(), ids=MODELS)
def test_densities_are_those_of_the_model(model, args, num_data):
    target = nd.to_blackjax(model, *args)
    z = target.initial_position(jax.random.key(3))
    expected = -float(potential_energy(model, args, {}, z))
    parts = target.logprior_fn(z), target.loglikelihood_fn(z)
    assert float(sum(parts)) == pytest.approx(expected, abs=1e-9)
    assert float(jax.jit(target.logdensity_fn)(z)) == pytest.approx(expected, abs=1e-9)
    assert target.num_data == num_data and target.exact_prior
    whole = target.partial_logposterior_factory(jnp.ones(num_data))(z)
    none = target.partial_logposterior_factory(jnp.zeros(num_data))(z)
    assert float(whole) == pytest.approx(expected, abs=1e-9)
    assert float(none) == pytest.approx(float(parts[0]), abs=1e-9)


def test_draws_of_the_prior_are_exact(target):
    z = target.sample_prior(jax.random.key(0), 20_000)
    noise = float(PROBLEM.prior.schedule.noise_level(jnp.asarray(PROBLEM.prior.t_min)))
    mean = PROBLEM.weights @ PROBLEM.means
    centred = PROBLEM.means - mean
    second = PROBLEM.covariances + np.einsum("ki,kj->kij", centred, centred)
    covariance = np.tensordot(PROBLEM.weights, second, 1) + noise**2 * np.eye(2)
    x = np.asarray(z["x"])
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    for values, truth in ((x, mean), (products, covariance), (z["offset"] ** 2, 1.0)):
        error = np.std(values, 0) / 20_000**0.5
        assert np.all(abs(np.mean(values, 0) - truth) < 4 * error)


PARAMETERS = {
    "step_size": jnp.array([0.35]),
    "inverse_mass_matrix": jnp.ones((1, 3)),
    "num_integration_steps": jnp.array([5]),
}
HMC = (blackjax.hmc.build_kernel(), blackjax.hmc.init)


def tempered(key, target, particles):
    smc = blackjax.tempered_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        *HMC,
        PARAMETERS,
        resampling.systematic,
        num_mcmc_steps=4,
    )
    powers = jnp.linspace(0.0, 1.0, 6)[1:] ** 2
    step = lambda state, pair: smc.step(*pair[:1], state, *pair[1:])
    pairs = jax.random.split(key, 5), powers
    state, info = jax.lax.scan(step, smc.init(particles), pairs)
    return state.particles, state.weights, info.log_likelihood_increment.sum()


def adaptive(key, target, particles):
    smc = blackjax.adaptive_tempered_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        *HMC,
        PARAMETERS,
        resampling.systematic,
        0.7,
        num_mcmc_steps=4,
    )

    def one(carry):
        key, state, total = carry
        key, now = jax.random.split(key)
        state, info = smc.step(now, state)
        return key, state, total + info.log_likelihood_increment

    unfinished = lambda carry: carry[1].tempering_param < 1
    start = key, smc.init(particles)._replace(tempering_param=jnp.zeros(())), jnp.zeros(())
    _, state, total = jax.lax.while_loop(unfinished, one, start)
    return state.particles, state.weights, total


def persistent(key, target, particles):
    smc = blackjax.persistent_sampling_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        5,
        *HMC,
        PARAMETERS,
        resampling.systematic,
        num_mcmc_steps=4,
    )
    powers = jnp.linspace(0.0, 1.0, 6)[1:] ** 2
    step = lambda state, pair: smc.step(*pair[:1], state, *pair[1:])
    pairs = jax.random.split(key, 5), powers
    state, _ = jax.lax.scan(step, smc.init(particles), pairs)
    count = jax.tree.leaves(particles)[0].shape[0]
    return state.particles, jnp.full(count, 1 / count), state.log_Z


def check(exact, particles, weights, evidences, most):
    """Evidences and means of independent runs against the exact ones."""
    count = len(evidences)
    ratio = np.exp(np.asarray(evidences) - exact.log_evidence)
    assert ratio.std() < most
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / count**0.5
    means = np.einsum("cn,cni->ci", weights, particles["x"])
    assert np.all(abs(means.mean(0) - exact.mean) < 4 * means.std(0) / count**0.5)
    offsets = np.einsum("cn,cn->c", weights, particles["offset"])
    assert abs(offsets.mean() - exact.offset_mean) < 4 * offsets.std() / count**0.5


@pytest.mark.parametrize(
    "sampler",
    [adaptive, persistent, pytest.param(tempered, marks=pytest.mark.long)],
    ids=lambda f: f.__name__,
)
def test_smc_of_blackjax_finds_the_evidence(sampler, target, exact):
    keys = jax.random.split(jax.random.key(1), 24)

    def run(key):
        key_prior, key = jax.random.split(key)
        return sampler(key, target, target.sample_prior(key_prior, 200))

    check(exact, *jax.jit(jax.vmap(run))(keys), 0.3)


def test_nested_slice_sampling_of_blackjax_finds_the_evidence(target, exact):
    nss = blackjax.nss(
        target.logprior_fn, target.loglikelihood_fn, num_inner_steps=15, num_delete=25
    )
    state = jax.jit(nss.init)(target.sample_prior(jax.random.key(2), 250))
    step, dead = jax.jit(nss.step), []
    while float(state.integrator.logZ_live - state.integrator.logZ) > -6:
        state, info = step(jax.random.fold_in(jax.random.key(3), len(dead)), state)
        dead.append(info)
    points = finalise(state, dead, update_info=False)
    evidences = jax.nn.logsumexp(log_weights(jax.random.key(4), points, shape=100), 0)
    error = float(evidences.std())
    assert abs(float(evidences.mean()) - exact.log_evidence) < 4 * error < 0.6


@pytest.mark.long
def test_nuts_of_blackjax_samples_the_posterior():
    """One Gaussian and one datum, whose posterior has one mode."""
    target = nd.to_blackjax(gaussian, 1.5)
    nuts = blackjax.nuts(target.logdensity_fn, 0.6, jnp.ones(2))
    starts = target.initial_position(jax.random.key(0), 64)

    def chain(key, z):
        state, _ = jax.lax.scan(
            lambda state, key: (nuts.step(key, state)[0], None),
            nuts.init(z),
            jax.random.split(key, 15),
        )
        draw = lambda state, key: (nuts.step(key, state)[0],) * 2
        return jax.lax.scan(draw, state, jax.random.split(key, 30))[1].position["x"]

    keys = jax.random.split(jax.random.key(1), 64)
    means = np.asarray(jax.jit(jax.vmap(chain))(keys, starts).mean(1))
    noise = float(ENERGY.schedule.noise_level(jnp.asarray(ENERGY.t_min))) ** 2
    expected = np.array([0.5, -1.0]) + np.array([1 + noise, 0.6]) / (1 + noise + 0.16)
    assert np.all(abs(means.mean(0) - expected) < 4 * means.std(0) / 8)
    assert np.all(means.std(0) < 0.4)


def gaussian(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    numpyro.sample("y", dist.Normal(x[0], 0.4), obs=y)


@pytest.mark.long
def test_partial_posteriors_of_blackjax(target, exact):
    smc = blackjax.partial_posteriors_smc(
        *HMC,
        PARAMETERS,
        resampling.systematic,
        num_mcmc_steps=4,
        partial_logposterior_factory=target.partial_logposterior_factory,
    )
    masks = jnp.array([[1.0, 0.0], [1.0, 1.0]])

    def run(key):
        key_prior, key = jax.random.split(key)
        start = smc.init(target.sample_prior(key_prior, 300), target.num_data)
        step = lambda state, pair: smc.step(pair[0], state, pair[1])
        state, info = jax.lax.scan(step, start, (jax.random.split(key, 2), masks))
        return state.particles, state.weights, info.log_likelihood_increment.sum()

    keys = jax.random.split(jax.random.key(1), 24)
    check(exact, *jax.jit(jax.vmap(run))(keys), 0.4)


class _Learned(nd.energies.AbstractEnergy):
    """An energy without exact draws and without a normaliser."""

    schedule: nd.schedules.AbstractSchedule = nd.schedules.VariancePreserving()
    t_min: float = 0.01
    t_max: float = 0.99
    log_normalizer: float | None = None
    log_normalizer_error: float = 0.0
    shape = (2,)

    def energy(self, x, t):
        alpha_t, sigma_t = self.schedule(t)
        return 0.5 * jnp.sum(x**2) / (alpha_t**2 + sigma_t**2)

    def moments(self, t):
        alpha_t, sigma_t = self.schedule(t)
        return jnp.zeros(2), (alpha_t**2 + sigma_t**2) * jnp.ones(2)


def test_a_learned_prior_is_not_drawn_but_its_noise_is():
    def model(y=None):
        x = numpyro.sample("x", nd.DiffusionPrior(_Learned()))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    target = nd.to_blackjax(model, jnp.ones(2))
    assert not target.exact_prior and target.log_normalizer_error is None
    with pytest.raises(ValueError, match=r"\['x'\] is learned.*NoiseReparam.*LikelihoodTempered"):
        target.sample_prior(jax.random.key(0))
    z = target.initial_position(jax.random.key(0), 5)
    assert z["x"].shape == (5, 2)
    in_noise = numpyro.handlers.reparam(model, config={"x": nd.NoiseReparam()})
    other = nd.to_blackjax(in_noise, jnp.ones(2))
    assert other.exact_prior
    draws = other.sample_prior(jax.random.key(0), 2)
    assert np.isfinite(jax.vmap(other.logdensity_fn)(draws)).all()


def discrete(y=None):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(1.0 * k, 1.0), obs=y)


def score_only(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(nd.ScoreFunction(lambda x, t: -x, (2,))))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def nothing(y=None):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (discrete, ValueError, "`k`"),
        (score_only, TypeError, "score-only prior"),
        (nothing, ValueError, "no latent site"),
    ],
)
def test_what_has_no_density_over_positions_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        nd.to_blackjax(model, 0.3)


def test_wrong_positions_and_masks_are_refused(target):
    z = target.initial_position(jax.random.key(0))
    with pytest.raises(ValueError, match=r"shapes .*'x': \(2,\).*jax.vmap"):
        target.logdensity_fn(target.initial_position(jax.random.key(0), 3))
    with pytest.raises(ValueError, match="a dictionary of the shapes"):
        target.loglikelihood_fn(jnp.zeros(3))
    with pytest.raises(TypeError, match="`offset` .*int"):
        target.logprior_fn({**z, "offset": 1})
    with pytest.raises(ValueError, match=r"each of the 2 entries .*got shape \(3,\)"):
        target.partial_logposterior_factory(jnp.ones(3))(z)
    with pytest.raises(ValueError, match="`num`"):
        target.sample_prior(jax.random.key(0), 0)


def test_a_likelihood_that_is_zero_somewhere_keeps_its_evidence():
    """P(x > 0) by BlackJAX's tempered SMC: half of the particles are impossible at first."""

    def model():
        x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian([0.0], [[1.0]])))
        numpyro.factor("edge", jnp.where(x[0] > 0, 0.0, -jnp.inf))

    target = nd.to_blackjax(model)
    parameters = {**PARAMETERS, "inverse_mass_matrix": jnp.ones((1, 1))}
    smc = blackjax.tempered_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        *HMC,
        parameters,
        resampling.systematic,
        num_mcmc_steps=2,
    )
    step = lambda state, pair: smc.step(*pair[:1], state, *pair[1:])

    def run(key):
        key_prior, key = jax.random.split(key)
        pairs = jax.random.split(key, 2), jnp.array([0.5, 1.0])
        state, info = jax.lax.scan(step, smc.init(target.sample_prior(key_prior, 200)), pairs)
        return state.weights @ state.particles["x"], info.log_likelihood_increment.sum()

    means, evidences = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 40))
    ratio = np.exp(np.asarray(evidences))
    assert abs(ratio.mean() - 0.5) < 4 * ratio.std() / 40**0.5 < 0.05
    noise = float(nd.Gaussian().schedule.noise_level(jnp.asarray(nd.Gaussian().t_min))) ** 2
    truth = (2 * (1 + noise) / np.pi) ** 0.5
    assert abs(means.mean() - truth) < 4 * means.std() / 40**0.5 < 0.1
