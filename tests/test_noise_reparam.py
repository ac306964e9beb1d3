"""`NoiseReparam`: the same law in standard normal coordinates, for every sampler that NumPyro knows."""

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from closed_form import Problem, two_dimensional
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_sample
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import log_density
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.density import from_noise

MIXTURE = nd.GaussianMixture()


def in_noise(model, **options):
    return handlers.reparam(model, config={"x": nd.NoiseReparam(**options)})


def score_only(prior):
    mean, variance = prior.moments(jnp.asarray(prior.t_min))
    score = lambda params, x, t: params.score(x, t)
    return nd.ScoreFunction(score, prior.shape, params=prior, mean=mean, variance=variance)


def model_of(problem: Problem, prior):
    """The problem's model with the prior as a bare score."""

    def model(operator, y=None):
        x = numpyro.sample("x", nd.DiffusionPrior(prior))
        sigma = problem.sigma
        if sigma is None:
            sigma = numpyro.sample("sigma", dist.HalfNormal(problem.sigma_scale))
        numpyro.sample("y", dist.Normal(operator @ x, sigma).to_event(1), obs=y)

    return model


# --- The density of the model -----------------------------------------------------------------------


def plated():
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3):
        x = numpyro.sample("x", nd.DiffusionPrior(MIXTURE))
        numpyro.sample("y", dist.Normal(x.sum(-1), 0.3), obs=jnp.arange(6.0).reshape(2, 3))


def in_event():
    x = numpyro.sample("x", nd.DiffusionPrior(MIXTURE).expand([2, 3]).to_event(1))
    numpyro.sample("y", dist.Normal(x.sum(-1), 0.3), obs=jnp.arange(6.0).reshape(2, 3))


def masked():
    with handlers.mask(mask=jnp.array([True, False, True])), numpyro.plate("columns", 3):
        x = numpyro.sample("x", nd.DiffusionPrior(MIXTURE).expand([2, 3]))
        numpyro.sample("y", dist.Normal(x.sum(-1), 0.3), obs=jnp.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("model", [plated, in_event, masked], ids=lambda model: model.__name__)
def test_density_in_noise(model, key):
    z = jax.random.normal(key, (2, 3, 2))
    found, trace = jax.jit(
        lambda z: (lambda value, sites: (value, sites["x"]["value"]))(
            *log_density(in_noise(model, num_steps=4), (), {}, {"x_noise": z})
        )
    )(z)
    x = jax.vmap(jax.vmap(lambda z: from_noise(MIXTURE, z, num_steps=4)))(z)
    np.testing.assert_allclose(trace, x, rtol=1e-10)
    counts = np.array([1.0, 0.0, 1.0]) if model is masked else np.ones(3)
    prior = norm.logpdf(z).sum(-1) * counts
    likelihood = norm.logpdf(np.arange(6.0).reshape(2, 3), x.sum(-1), 0.3) * counts
    np.testing.assert_allclose(found, (prior + likelihood).sum(), rtol=1e-10)


def test_sample_shape_is_kept():
    def model():
        return numpyro.sample("x", nd.DiffusionPrior(MIXTURE), sample_shape=(3,))

    reparametrised = in_noise(model, num_steps=2, sample_shape=(3,))
    assert handlers.seed(reparametrised, 0)().shape == (3, 2)


def test_the_prior_may_depend_on_other_sites():
    """Normalised whatever the energy: the posterior of a shift of the prior has a closed form."""
    prior = nd.Gaussian([0.0], [[1.0]])

    def model():
        shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
        moved = eqx.tree_at(lambda prior: prior.mean, prior, shift[None])
        x = numpyro.sample("x", nd.DiffusionPrior(moved))
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=2.0)

    z = {"shift": jnp.asarray(0.7), "x_noise": jnp.array([0.4])}
    slope = jax.grad(lambda z: log_density(in_noise(model, num_steps=2), (), {}, z)[0])(z)
    gap = (2.0 - 0.7 - 0.4 * np.sqrt(1 + prior.schedule.noise_level(prior.t_min) ** 2)) / 0.25
    np.testing.assert_allclose(slope["shift"], -0.7 / 4 + gap, rtol=1e-5)


def test_refusals():
    def observed():
        numpyro.sample("x", nd.DiffusionPrior(MIXTURE), obs=jnp.zeros(2))

    def normal():
        numpyro.sample("x", dist.Normal())

    with pytest.raises(ValueError, match="is observed"):
        handlers.seed(in_noise(observed), 0)()
    with pytest.raises(ValueError, match="has a Normal"):
        handlers.seed(in_noise(normal), 0)()
    with pytest.raises(ValueError, match="num_steps"):
        nd.NoiseReparam(0)


# --- Posteriors -------------------------------------------------------------------------------------


def nuts(model, problem, num_samples, key, num_chains=4):
    """Draws by chains of NUTS in turn, compiled once."""
    kernel = NUTS(model, init_strategy=init_to_sample)
    mcmc = MCMC(
        kernel,
        num_warmup=num_samples // 2,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, problem.operator, y=problem.data)
    return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}


def assert_moments(draws, exact, floor):
    """Means and variances, to a share of the posterior's own."""
    sd = np.sqrt(exact.variance)
    assert (np.abs(draws["x"].mean(0) - exact.mean) < floor * sd).all()
    assert (np.abs(draws["x"].var(0) / exact.variance - 1) < 2 * floor).all()
    if exact.sigma_sd > 0:
        assert abs(draws["sigma"].mean() - exact.sigma_mean) < floor * exact.sigma_sd


@pytest.mark.long
def test_nuts_from_a_score_alone(key):
    problem = two_dimensional(sigma=0.5)
    model = in_noise(model_of(problem, score_only(problem.prior)), num_steps=8)
    draws = nuts(model, problem, 1000, key)
    assert_moments(draws, problem.exact(), 0.15)
    modes = problem.component(draws["x"])
    np.testing.assert_allclose(np.mean(modes == 0), problem.exact().modes[0], atol=0.06)


@pytest.mark.long
def test_nuts_with_unknown_noise(key):
    """As many data as pin the noise level down: a funnel is as hard in noise as it is in `x`."""
    rng = np.random.default_rng(4)
    operator = rng.normal(size=(6, 2))
    data = operator @ np.array([-0.3, 0.1]) + 0.6 * rng.normal(size=6)
    problem = two_dimensional()._replace(operator=operator, data=data)
    model = in_noise(model_of(problem, problem.prior), num_steps=8)
    assert_moments(nuts(model, problem, 1000, key), problem.exact(), 0.2)


@pytest.mark.long
def test_elliptical_slices(key):
    """The prior is standard normal, which is what elliptical slice sampling asks for."""
    problem = two_dimensional(sigma=0.5)
    model = in_noise(problem.model, num_steps=8)

    def log_likelihood(z):
        trace = handlers.trace(handlers.substitute(model, {"x_noise": z})).get_trace(
            problem.operator, problem.data
        )
        return trace["y"]["fn"].log_prob(trace["y"]["value"])

    algorithm = blackjax.elliptical_slice(log_likelihood, mean=jnp.zeros(2), cov=jnp.eye(2))

    def step(state, key):
        state, _ = algorithm.step(key, state)
        return state, state.position

    chain = lambda key: jax.lax.scan(
        step, algorithm.init(jnp.zeros(2)), jax.random.split(key, 2000)
    )[1]
    z = jax.jit(jax.vmap(chain))(jax.random.split(key, 8))[:, 200:].reshape(-1, 2)
    x = jax.vmap(lambda z: from_noise(problem.prior, z, num_steps=8))(z)
    assert_moments({"x": np.asarray(x)}, problem.exact(), 0.15)


@pytest.mark.long
def test_variational_inference_bounds_the_evidence(key):
    """A Gaussian guide in noise; its bound is below the evidence, and not far for one mode."""
    problem = two_dimensional(sigma=1.0)._replace(data=np.array([1.5]))
    model = in_noise(problem.model, num_steps=8)
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(0.02), Trace_ELBO(8))
    found = svi.run(key, 1500, problem.operator, problem.data, progress_bar=False)
    loss = Trace_ELBO(2000).loss
    bound = -loss(jax.random.key(1), found.params, model, guide, problem.operator, problem.data)
    exact = problem.exact().log_evidence
    assert exact - 0.3 < bound < exact + 0.02
