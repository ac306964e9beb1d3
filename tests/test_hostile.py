"""Models that break samplers: a right answer by default, or an error that names the cause."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import by_cloud
from scipy import stats
from scipy.special import logsumexp

import numpyro_diffusion as nd

PRIOR = nd.GaussianMixture()  # the data see its first coordinate: 0.3 N(-2, 0.5) + 0.7 N(1, 0.2)
FLOOR = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2


def heavy_tail(y=6.0):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.StudentT(2.0, x[0], 0.3), obs=y)


def spike(y=-1.7):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[0], 1e-3), obs=y)


def asymmetric(y=0.4):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Gumbel(x[0], 0.5), obs=y)


def bounded(y=1.2):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    gain = numpyro.sample("theta", dist.Uniform(0.2, 1.0))
    numpyro.sample("y", dist.Normal(gain * x[0], 0.2), obs=y)


def funnel(y=(0.7, 1.4, 1.1)):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    v = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(x[0], jnp.exp(v / 2)).to_event(0), obs=jnp.asarray(y))


X = np.linspace(-7, 7, 4001)[:, None]
UNIT, V = np.linspace(0.2, 1.0, 401), np.linspace(-14, 12, 1201)
ONE = np.zeros(1)  # no other site
CASES = {  # model, other site, its log prior weights on a grid, log likelihood over (x, theta)
    "heavy tail": (heavy_tail, ONE, ONE, lambda x, _: stats.t.logpdf(6.0, 2.0, x, 0.3)),
    "asymmetric": (asymmetric, ONE, ONE, lambda x, _: stats.gumbel_r.logpdf(0.4, x, 0.5)),
    "bounded": (
        bounded,
        UNIT,
        np.log(np.full(401, 1 / 401)),
        lambda x, gain: stats.norm.logpdf(1.2, gain * x, 0.2),
    ),
    "funnel": (
        funnel,
        V,
        stats.norm.logpdf(V, 0.0, 2.0) + np.log(V[1] - V[0]),
        lambda x, v: sum(stats.norm.logpdf(y, x, np.exp(v / 2)) for y in (0.7, 1.4, 1.1)),
    ),
}


def log_prior(x):
    sds = np.sqrt(np.array([0.5, 0.2]) + FLOOR)
    parts = [
        np.log(w) + stats.norm.logpdf(x, m, s)
        for w, m, s in zip((0.3, 0.7), (-2, 1), sds, strict=True)
    ]
    return np.logaddexp(*parts)


def check(model, log_truth, mean, sd, **options):
    smc = nd.SMC(model, num_particles=1000, progress_bar=False, **options).run(jax.random.key(0))
    error = abs(smc.log_evidence - log_truth)
    assert error < 3.5 * smc.log_evidence_error and error < 0.15
    means = by_cloud(smc, lambda s: s["x"][..., 0])
    assert abs(means.mean() - mean) < 4 * means.std(ddof=1) / 2 + 0.03 * sd


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_hostile_models_are_right_by_default(name):
    model, theta, weights, log_likelihood = CASES[name]
    terms = log_prior(X) + np.log(X[1, 0] - X[0, 0]) + weights + log_likelihood(X, theta)
    log_truth = logsumexp(terms)
    p = np.exp(terms - log_truth).sum(1)
    mean = p @ X[:, 0]
    check(model, log_truth, mean, np.sqrt(p @ (X[:, 0] - mean) ** 2))


@pytest.mark.long
def test_a_spike_a_thousand_times_sharper_than_the_prior():
    check(spike, float(log_prior(np.array(-1.7))), -1.7, 1e-3)


@pytest.mark.long
def test_nan_on_a_part_of_the_space_is_weight_0_and_said():
    """NaN for x > 1.9, in some 2% of the prior's draws: the law without that part, and a warning."""

    def model(y=0.8):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.factor("cut", jnp.where(x[0] > 1.9, jnp.nan, 0.0))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    x = X[X[:, 0] <= 1.9, 0]
    terms = log_prior(x) + np.log(x[1] - x[0]) + stats.norm.logpdf(0.8, x, 1.0)
    log_truth = logsumexp(terms)
    p = np.exp(terms - log_truth)
    with pytest.warns(UserWarning, match="log density NaN at .*`?cut`?"):
        check(model, log_truth, p @ x, 1.0)


@pytest.mark.long
def test_a_hard_set_without_the_priors_mean():
    """The default scheme sees nothing but the mean at the start, which is ruled out."""

    def model(y=0.6):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.factor("hard", jnp.where(x[0] < 0.4, -jnp.inf, 0.0))
        numpyro.sample("y", dist.Normal(x[0], 0.4), obs=y)

    x = X[X[:, 0] >= 0.4, 0]
    terms = log_prior(x) + np.log(x[1] - x[0]) + stats.norm.logpdf(0.6, x, 0.4)
    log_truth = logsumexp(terms)
    p = np.exp(terms - log_truth)
    for scheme in (nd.Annealed(), nd.LikelihoodTempered()):
        check(model, log_truth, p @ x, np.sqrt(p @ (x - p @ x) ** 2), scheme=scheme)
