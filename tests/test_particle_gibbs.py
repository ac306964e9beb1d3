"""Conditional SMC and particle Gibbs: chains from the posterior stay there, however few the particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import Shifted, counting_programs
from closed_form import two_dimensional
from numpyro.infer import MCMC, NUTS, DiscreteGibbs, Gibbs
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd
from numpyro_diffusion.ppl.kernels.gibbs import ParticleGibbsState
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.schemes.retrace import needed, noised_path, path_model
from numpyro_diffusion.smc.conditional import Path, PathModel, conditional_smc, systematic


@pytest.fixture(autouse=True)
def hurried():
    """Small programs: compiling them well takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def assert_close(values, exact, errors=4.0):
    """Means of independent chains, within so many standard errors."""
    values = np.asarray(values, float)
    error = values.std(0, ddof=1) / len(values) ** 0.5
    gap = np.abs(values.mean(0) - exact)
    assert (gap <= errors * error + 1e-12).all(), (values.mean(0), exact, error)


# --- The engine, on a hidden Markov chain whose smoother is known -----------------------------------

WEIGHTS = np.array([0.05, 0.4, 0.0, 0.3, 0.25])


def test_systematic_resampling_given_a_parent(key):
    """The parent drawn by weight and the others given it are together as without a parent."""
    weights = jnp.asarray(WEIGHTS)

    @jax.jit
    @jax.vmap
    def resample(key):
        key_parent, key_uniform = jax.random.split(key)
        parent = jax.random.choice(key_parent, 5, p=weights)
        return systematic(weights, jax.random.uniform(key_uniform), parent), parent

    index, parent = (np.asarray(a) for a in resample(jax.random.split(key, 20_000)))
    assert (index[:, 0] == parent).all()
    counts = (index[..., None] == np.arange(5)).sum(1)
    assert (np.abs(counts - 5 * WEIGHTS) < 1).all()  # as even as systematic resampling is
    assert_close(counts[:, [0, 1, 3, 4]], 5 * WEIGHTS[[0, 1, 3, 4]])


LENGTH, DECAY, JITTER, NOISE = 6, 0.9, 0.5, 0.7
DATA = np.array([0.3, 1.5, -0.4, 2.0, 0.1, -1.2, 0.8])


def smoother():
    """Mean and covariance of the path given the data, and the log evidence."""
    cov = np.zeros((LENGTH + 1, LENGTH + 1))
    cov[0, 0] = 1.0
    for k in range(LENGTH):
        cov[k + 1, : k + 1] = cov[: k + 1, k + 1] = DECAY * cov[k, : k + 1]
        cov[k + 1, k + 1] = DECAY**2 * cov[k, k] + JITTER**2
    total = cov + NOISE**2 * np.eye(LENGTH + 1)
    gain = cov @ np.linalg.inv(total)
    log_evidence = multivariate_normal.logpdf(DATA, np.zeros(LENGTH + 1), total)
    return gain @ DATA, cov - gain @ cov, log_evidence


def hidden_chain(link_power):
    """Blind proposals, so that the weights have all to say; `link_power` 0 spoils ancestor sampling."""
    log_normal = jax.scipy.stats.norm.logpdf
    datum = lambda x, y: log_normal(y, x, NOISE)
    propose = lambda key, x: 0.5 * x + jax.random.normal(key)

    def log_increment(x, new, y):
        return log_normal(new, DECAY * x, JITTER) - log_normal(new, 0.5 * x) + datum(new, y)

    def init(key):
        x = jax.random.normal(key)
        return x, datum(x, DATA[0])

    def advance(key, x, y):
        new = propose(key, x)
        return new, log_increment(x, new, y)

    def log_link(x, new, y):
        del y
        return link_power * log_normal(new, DECAY * x, JITTER)

    return PathModel(
        init,
        lambda key, x, y: x,
        advance,
        lambda x: datum(x, DATA[0]),
        log_increment,
        log_link,
        jnp.asarray(DATA[1:]),
        lambda x: x,
    )


def test_three_particles_keep_the_law_of_a_path(key):
    mean, cov, log_evidence = smoother()
    rng = np.random.default_rng(0)
    paths = jnp.asarray(rng.multivariate_normal(mean, cov, 20_000))
    unit = np.linalg.cholesky(cov)

    def sweep(power, threshold):
        model = hidden_chain(power)

        def one(x, key):
            path = Path(x[0], x[:-1], x[1:])
            return conditional_smc(key, model, 3, path, threshold=threshold).trail

        return jax.vmap(one)

    @jax.jit
    def run(key):
        key, key_free = jax.random.split(key)
        keys = jax.random.split(key, len(paths))
        free = lambda key: conditional_smc(key, hidden_chain(1.0), 3).log_evidence
        evidence = jax.vmap(free)(jax.random.split(key_free, len(paths)))
        return [sweep(*how)(paths, keys) for how in ((1.0, 1.0), (1.0, 0.5), (0.0, 1.0))], evidence

    (often, seldom, spoiled), evidence = run(key)
    for kept in (often, seldom):
        white = np.linalg.solve(unit, (np.asarray(kept) - mean).T).T
        assert_close(white, 0.0)
        assert_close(white**2, 1.0)
        assert_close(white[:, 1:] * white[:, :-1], 0.0)
    renewed = np.mean(np.asarray(often) != np.asarray(paths), 0)
    assert renewed.min() > 0.3, renewed  # three particles, seven steps: ancestors are sampled
    white = np.linalg.solve(unit, (np.asarray(spoiled) - mean).T).T
    with pytest.raises(AssertionError):
        assert_close(white**2, 1.0, errors=20.0)
    assert_close(np.exp(np.asarray(evidence) - log_evidence), 1.0)  # unbiased with three particles


# --- Diffusion sites --------------------------------------------------------------------------------

PROBLEM = two_dimensional(sigma=0.5)


def posterior_draws(problem, count, rng):
    """Exact draws at known noise level."""
    prior, exact, h = problem.prior, problem.exact(), problem.operator
    noise = float(prior.schedule.noise_level(jnp.asarray(prior.t_min)))
    modes = rng.choice(len(exact.modes), p=exact.modes, size=count)
    x = np.zeros((count, h.shape[1]))
    for k, (m, s) in enumerate(zip(problem.means, problem.covariances, strict=True)):
        s = s + noise**2 * np.eye(len(m))
        gain = s @ h.T @ np.linalg.inv(h @ s @ h.T + problem.sigma**2 * np.eye(len(h)))
        centre, cov = m + gain @ (problem.data - h @ m), s - gain @ h @ s
        x[modes == k] = rng.multivariate_normal(centre, cov, (modes == k).sum())
    return x


def log_likelihood(x):
    residual = PROBLEM.data - PROBLEM.operator @ x
    return -0.5 * jnp.sum(residual**2) / PROBLEM.sigma**2


def moments(x):
    """Features of draws: moments and the mode."""
    in_mode = PROBLEM.component(x) == 0
    return np.concatenate([x, x**2, x[:, :1] * x[:, 1:], in_mode[:, None]], 1)


def sweep_of(scheme):
    """`(keys, x) -> x`: a sweep of four particles; and one whose kept path forgets how it was proposed."""
    bridge = nd.from_energy(PROBLEM.prior, log_likelihood, twist=nd.Tweedie())
    levels, kernels = scheme(bridge, jax.random.key(3)).levels, scheme.kernels(bridge)

    def sweep(model, key, x):
        key_path, key_run = jax.random.split(key)
        path = noised_path(key_path, kernels, model, {"x": x})
        return conditional_smc(key_run, model, 4, path).particle.position["x"]

    right = path_model(kernels, needed(kernels, levels))
    forgetful = right._replace(
        log_increment=lambda particle, new, level: new.log_density - particle.log_density
    )
    return tuple(jax.vmap(lambda k, x, m=m: sweep(m, k, x)) for m in (right, forgetful))


@pytest.mark.long
@pytest.mark.parametrize(
    "scheme",
    [
        nd.ReverseDiffusion(levels=12, moves=0, pilot=64),
        nd.Annealed(levels=12, moves=nd.schemes.Moves(joint=nd.moves.mala(), num=1), pilot=64),
    ],
    ids=["ReverseDiffusion", "Annealed"],
)
def test_four_particles_keep_the_posterior(scheme, key, rng):
    """Chains from exact draws, a sweep or three: same law. Half of them change the mode in a few sweeps."""
    start = posterior_draws(PROBLEM, 12_000, rng)
    exact = moments(posterior_draws(PROBLEM, 400_000, rng)).mean(0)
    keys = jax.random.split(key, (3, len(start)))

    def three(sweep):
        sweep, x = jax.jit(sweep), jnp.asarray(start)
        for k in range(3):
            x = sweep(keys[k], x)
        return np.asarray(x)

    right, forgetful = sweep_of(scheme)
    x = three(right)
    assert_close(moments(x), exact)
    changed = np.mean(PROBLEM.component(x) != PROBLEM.component(start))
    assert changed > 0.3, changed  # 0.46 for independent draws
    if isinstance(scheme, nd.ReverseDiffusion):  # the test can fail
        with pytest.raises(AssertionError):
            assert_close(moments(three(forgetful)), exact, errors=5.0)


# --- Inside a model ---------------------------------------------------------------------------------

PRIOR = nd.Gaussian([0.3], [[1.0]])


def score_only(prior):
    mean, variance = prior.moments(jnp.asarray(prior.t_min))
    score = lambda params, x, t: params.score(x, t)
    return nd.ScoreFunction(score, prior.shape, params=prior, mean=mean, variance=variance)


def gain_and_noise(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    gain = numpyro.sample("gain", dist.Categorical(jnp.array([0.3, 0.7])))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.3))
    mean = numpyro.deterministic("mean", jnp.array([0.5, 2.0])[gain] * x[0])
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def by_quadrature(y, mean, variance, gains=((0.3, 0.5), (0.7, 2.0))):
    """Means of x, x^2, gain, sigma, sigma^2 with a Gaussian law of x."""
    x, log_sigma = np.linspace(-6, 7, 1501)[:, None], np.linspace(-2.6, 0.6, 301)
    sigma = np.exp(log_sigma)
    p = norm.pdf(x, mean, variance**0.5) * norm.pdf(log_sigma, -1.0, 0.3)
    both = np.array([w * p * norm.pdf(y, a * x, sigma) for w, a in gains])
    both /= both.sum()
    values = [x, x**2, np.arange(len(gains))[:, None, None], sigma, sigma**2]
    return np.array([(both * value).sum() for value in values])


def run_chains(kernel, key, *args):
    """Draws of many short chains, and their means of the moments of x and sigma."""
    mcmc = MCMC(
        kernel,
        num_warmup=50,
        num_samples=400,
        num_chains=16,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(key, *args)
    samples = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    x, sigma = samples["x"][..., 0], samples["sigma"]
    gain = samples.get("gain", np.zeros_like(sigma))
    return samples, np.stack([x, x**2, gain, sigma, sigma**2], -1).mean(1)


@pytest.mark.long
def test_beside_nuts_and_a_discrete_site(key):
    """Three blocks on one model; four particles, eight levels."""
    particles = nd.ParticleGibbs(
        gain_and_noise,
        nd.ReverseDiffusion(levels=8, moves=0, pilot=64),
        num_particles=4,
        twist=nd.Tweedie(),
    )
    kernel = Gibbs(
        [
            (DiscreteGibbs(gain_and_noise), ["gain"]),
            (particles, ["x"]),
            (NUTS(gain_and_noise), None),
        ]
    )
    samples, means = run_chains(kernel, key, 1.1)
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min)))
    assert_close(means, by_quadrature(1.1, 0.3, 1.0 + noise**2))
    gains = np.array([0.5, 2.0])[samples["gain"]]
    np.testing.assert_allclose(samples["mean"], gains * samples["x"][..., 0], rtol=1e-12)


def noise_alone(y, prior):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.3))
    numpyro.sample("y", dist.Normal(2.0 * x[0], sigma), obs=y)


@pytest.mark.slow
def test_a_score_alone(key):
    """With `Twisted` the prior is the law of a few reverse steps: exact, if the scores are a Gaussian's."""
    prior = score_only(PRIOR)
    particles = nd.ParticleGibbs(noise_alone, nd.Twisted(levels=6), num_particles=4)
    walk = nd.MoveKernel(noise_alone, nd.moves.random_walk())
    kernel = Gibbs([(particles, ["x"]), (walk, None)])
    _, means = run_chains(kernel, key, 1.1, prior)
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min)))
    assert_close(means, by_quadrature(1.1, 0.3, 1.0 + noise**2, ((1.0, 2.0),)))


def test_the_path_that_is_remembered_ends_at_the_value(key):
    """Whichever path is chosen is kept by the next step."""

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", nd.DiffusionPrior(PRIOR)), 0.5), obs=y)

    clock, power = jnp.array([1.0, 0.6, 0.3, 0.0, 0.0]), jnp.array([0.0, 0.3, 0.6, 1.0, 1.0])
    scheme = nd.Twisted(Level.by_hand(clock, power, {"x": jnp.ones((4, 1))}))
    kernel, data, moved = nd.ParticleGibbs(model, scheme, num_particles=4), (jnp.ones(1),), []
    kernel.make(data, {})
    zero, trail = jnp.zeros(()), {"x": jnp.zeros((4, 1))}
    z, met = (
        {"x": trail["x"][-1]},
        kernel.met(kernel.run(key, kernel.model_of(kernel.problem.kernels))),
    )
    start = zero, zero > 0, zero, key, met
    state = ParticleGibbsState(jnp.zeros((), int), z, trail, *start)
    sample = jax.jit(lambda state: kernel.sample(state, data, {}))
    for _ in range(6):
        state = sample(state)
        assert state.trail["x"].shape == (4, 1)
        np.testing.assert_array_equal(state.trail["x"][-1], state.z["x"])
        moved.append(bool(state.moved))
    assert any(moved)


def test_refusals_name_the_site(key):
    other = lambda: numpyro.sample("b", dist.Normal())

    def shifted(y):
        numpyro.sample(
            "y", dist.Normal(numpyro.sample("x", nd.DiffusionPrior(PRIOR)) + other()), obs=y
        )

    def of_unknown_normalizer(y):
        prior = nd.DiffusionPrior(Shifted(PRIOR, other()))
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior)), obs=y)

    def init(kernel):
        kernel.init(key, 1, None, (jnp.ones(1),), {})

    with pytest.raises(ValueError, match="`b` has another prior"):
        init(nd.ParticleGibbs(shifted, nd.ReverseDiffusion(levels=1, moves=0, pilot=2)))
    score = score_only(PRIOR)
    with pytest.raises(TypeError, match="site `x` has the score-only prior"):
        init(nd.ParticleMarginal(lambda y: noise_alone(y[0], score)))
    with pytest.raises(ValueError, match="energy of site `x` depends on other sites"):
        init(nd.ParticleMarginal(of_unknown_normalizer))
    with pytest.raises(ValueError, match="none among \\['b'\\]"):
        init(nd.ParticleGibbs(lambda y: other()))
    with pytest.raises(ValueError, match="`gain` is discrete"):
        init(nd.ParticleMarginal(lambda y: gain_and_noise(y[0])))
    with pytest.raises(TypeError, match="expects a `TunedScheme`; `AsPublished`"):
        nd.ParticleGibbs(shifted, nd.schemes.unweighted(nd.ReverseDiffusion()))  # type: ignore
    with pytest.raises(TypeError, match="cannot go back"):
        init(
            nd.ParticleGibbs(
                lambda y: two_dimensional(sigma=0.5).model(np.ones((1, 2)), y),
                nd.LikelihoodTempered(pilot=16),
            )
        )


def test_new_data_find_the_programs_of_old_ones():
    kernel, counts = nd.ParticleGibbs(noise_alone, nd.ReverseDiffusion(levels=2, pilot=8)), []
    for y in (1.1, 0.4, 0.7):
        with counting_programs() as found:
            kwargs = {GIBBS_SITES_KWARG: {"sigma": jnp.ones(())}}
            kernel.make((jnp.asarray(y), PRIOR), kwargs)
        counts.append(found[0])
    assert counts[1] == counts[2] == 0 < counts[0], counts
