"""Schemes of resampling by name, and what `nd.SMC` makes of them and of the threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.smc.resampling import scheme_of

NAMES = ["systematic", "stratified", "multinomial", "residual"]
WEIGHTS = np.array([0.05, 0.4, 0.12, 0.0, 0.33, 0.1])


@pytest.mark.parametrize("name", NAMES)
def test_expected_numbers_of_offspring(name):
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = lambda key: scheme_of(name)(key, jnp.asarray(WEIGHTS), 10)
    counts = np.asarray(jax.jit(jax.vmap(lambda key: jnp.bincount(draw(key), length=6)))(keys))
    assert np.all(counts.sum(1) == 10) and np.all(counts[:, 3] == 0)
    error = counts.std(0) / 4000**0.5
    assert np.all(abs(counts.mean(0) - 10 * WEIGHTS) <= 4 * error + 1e-12)
    if name in ("systematic", "residual"):  # no fewer than the whole part
        assert np.all(counts >= np.floor(10 * WEIGHTS - 1e-9))
    if name == "multinomial":
        variance = 10 * WEIGHTS * (1 - WEIGHTS)
        np.testing.assert_allclose(counts.var(0), variance, atol=0.15)


def model(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 0.3), obs=y)


@pytest.mark.parametrize(
    ("options", "resampled"),
    [
        ({"resampling": "stratified", "threshold": 1.0}, "always"),
        ({"resampling": lambda key, w, n: jax.random.choice(key, len(w), (n,), p=w)}, "sometimes"),
        ({"threshold": 0}, "never"),
    ],
    ids=["stratified", "own", "never"],
)
def test_they_reach_the_sampler(options, resampled):
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(64, 0.9))
    smc = nd.SMC(model, scheme, num_particles=200, num_chains=24, progress_bar=False, **options)
    smc.run(jax.random.key(0), 0.8)
    ratio = np.exp(np.asarray(smc.result.log_evidence) - norm.logpdf(0.8, 0.0, 1.09**0.5))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 24**0.5 < 0.2
    share = np.asarray(smc.result.trace.resampled)[:, 1:].mean()  # equal weights at first
    assert {"always": share == 1, "sometimes": 0 < share < 0.9, "never": share == 0}[resampled]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resampling": "stratfied"}, ValueError, r"one of \['multinomial', .*got 'stratfied'"),
        ({"resampling": 3}, TypeError, "or a function .*got int"),
        ({"threshold": 50}, ValueError, r"share of the particles in \[0, 1\]; got 50"),
        ({"threshold": float("nan")}, ValueError, "got nan"),
        ({"threshold": "half"}, TypeError, "got 'half'"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        nd.SMC(model, **options)
