"""Likelihoods that are 0 or not a number somewhere, as users write them: evidence and mean by quadrature.

One program for all: which likelihood it is, is an argument.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from scipy import stats

import numpyro_diffusion as nd

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.2])
PRIOR = nd.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])
X = np.linspace(-8, 6, 200_001)
NEVER = -np.inf

# The log likelihood as a model has it, and its value where it is not 0, with where that is.
CASES = {
    "Pareto": (
        lambda x: jnp.where(jnp.exp(x) <= 3, jnp.log(2.0) + 2 * x - 3 * jnp.log(3.0), NEVER),
        lambda x: np.log(2) + 2 * x - 3 * np.log(3),
        lambda x: np.exp(x) <= 3,
    ),
    "truncated at x": (
        lambda x: jnp.where(x < 0.6, norm.logpdf(0.6) - norm.logsf(x), NEVER),
        lambda x: stats.norm.logpdf(0.6) - stats.norm.logsf(x),
        lambda x: x < 0.6,
    ),
    "uniform up to x": (
        lambda x: jnp.where(x > 0.5, -jnp.log(x), NEVER),
        lambda x: -np.log(x),
        lambda x: x > 0.5,
    ),
    "noise of one sign": (
        lambda x: jnp.where(x < 0.6, jnp.log(2.0) - 2 * (0.6 - x), NEVER),
        lambda x: np.log(2) - 2 * (0.6 - x),
        lambda x: x < 0.6,
    ),
    "clipped probability": (
        lambda x: jnp.log(jnp.clip(x, 0, 1)),
        lambda x: np.log(np.minimum(x, 1)),
        lambda x: x > 0,
    ),
    "rate cut off at 0": (
        lambda x: dist.Poisson(jax.nn.relu(x)).log_prob(2),
        lambda x: stats.poisson.logpmf(2, x),
        lambda x: x > 0,
    ),
    "probability beyond 1": (
        lambda x: dist.Binomial(5, probs=x).log_prob(2),
        lambda x: stats.binom.logpmf(2, 5, x),
        lambda x: (x > 0) & (x < 1),
    ),
    "two pieces": (
        lambda x: jnp.where(jnp.abs(x) > 1, 0.0, NEVER),
        np.zeros_like,
        lambda x: np.abs(x) > 1,
    ),
    "rounded": (
        lambda x: jnp.where(jnp.floor(4 * x) == 3, 0.0, NEVER),
        np.zeros_like,
        lambda x: (x >= 0.75) & (x < 1),
    ),
    "rounded after noise": (
        lambda x: jnp.log(norm.cdf((0.75 - x) / 0.1) - norm.cdf((0.5 - x) / 0.1)),
        lambda x: np.log(stats.norm.cdf(7.5 - 10 * x) - stats.norm.cdf(5 - 10 * x)),
        lambda x: np.abs(x - 0.6) < 0.7,
    ),
    "logarithm of x": (
        lambda x: norm.logpdf(0.2, jnp.log(x), 0.3),
        lambda x: stats.norm.logpdf(0.2, np.log(x), 0.3),
        lambda x: x > 0,
    ),
    "lowest float for never": (
        lambda x: jnp.where(x > 0.5, jnp.finfo(x.dtype).min / 4, norm.logpdf(0.6, x, 0.5)),
        lambda x: stats.norm.logpdf(0.6, x, 0.5),
        lambda x: x <= 0.5,
    ),
    "gradient that is not a number": (
        lambda x: -3 * jnp.sqrt(jnp.maximum(x, 0.0)),
        lambda x: -3 * np.sqrt(np.maximum(x, 0)),
        lambda x: x < 9,
    ),
    "root of x": (
        lambda x: dist.LogNormal(jnp.sqrt(x), 0.3).log_prob(2.0),
        lambda x: stats.lognorm.logpdf(2.0, 0.3, scale=np.exp(np.sqrt(x))),
        lambda x: x > 0,
    ),
}


def model(which):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))[0]
    numpyro.factor("y", jax.lax.switch(which, [case[0] for case in CASES.values()], x))


def exact(log_likelihood, allowed):
    """Log evidence and posterior mean, the noise of `t_min` included."""
    x = X[allowed(X)]
    sd = np.sqrt(VARIANCES + 0.004**2)
    p = (WEIGHTS * stats.norm.pdf(x[:, None], MEANS, sd)).sum(1) * np.exp(log_likelihood(x))
    total = p.sum() * (X[1] - X[0])
    return np.log(total), p @ x / p.sum()


def assert_right(smc, log_evidence, mean):
    samples, weights = smc.get_weighted_samples()
    x, weights = np.asarray(samples["x"])[..., 0], np.asarray(weights)
    clouds = (x * weights).sum(1) / weights.sum(1)
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error
    assert smc.log_evidence_error < 0.3
    error = clouds.std(ddof=1) / len(clouds) ** 0.5
    assert abs((x * weights).sum() / weights.sum() - mean) < 5 * error + 0.03


@pytest.fixture(scope="module")
def smc():
    return nd.SMC(model, num_particles=1000, num_chains=4, progress_bar=False)


@pytest.mark.filterwarnings("ignore:.*NaN")
@pytest.mark.parametrize("case", CASES)
def test_evidence_and_mean(case, smc, key):
    smc.run(key, jnp.asarray(list(CASES).index(case)))
    assert_right(smc, *exact(*CASES[case][1:]))


@pytest.mark.parametrize("case", ["logarithm of x", "root of x"])
def test_not_a_number_is_named(case, smc, key):
    """Weight 0, as above, and a warning."""
    with pytest.warns(UserWarning, match="log density NaN at site `y`: .*weight 0"):
        smc.run(key, jnp.asarray(list(CASES).index(case)))
