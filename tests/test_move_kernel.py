"""`MoveKernel`: any move as a kernel of NumPyro's `MCMC`, against quadrature."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Gibbs
from scipy.stats import norm

import numpyro_diffusion as nd

PRIOR = nd.Gaussian([0.3, -0.5], [[1.0, 0.6], [0.6, 0.8]])
GAINS, SHARES = np.array([0.5, 2.0]), np.array([0.3, 0.7])


def model(y, marked=True):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    infer = {"enumerate": "parallel"} if marked else {}
    gain = numpyro.sample("gain", dist.Categorical(jnp.asarray(SHARES)), infer=infer)
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.4))
    numpyro.deterministic("total", x.sum())
    numpyro.sample("y", dist.Normal(jnp.asarray(GAINS)[gain] * x[0], sigma), obs=y)


def by_quadrature(y):
    """Means of x0, x0^2, sigma, sigma^2, the discrete site summed out."""
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min)))
    x, log_sigma = np.linspace(-6, 7, 1301)[:, None], np.linspace(-2.6, 1.6, 401)
    sigma = np.exp(log_sigma)
    p = norm.pdf(x, 0.3, (1 + noise**2) ** 0.5) * norm.pdf(log_sigma, -0.5, 0.4)
    p = p * sum(w * norm.pdf(y, a * x, sigma) for w, a in zip(SHARES, GAINS, strict=True))
    return np.array([(p * value).sum() / p.sum() for value in (x, x**2, sigma, sigma**2)])


def chains(kernel, key, *args, method="vectorized", num=16, size=600, warmup=300):
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=size,
        num_chains=num,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(key, *args, extra_fields=("adapt_state.step_size",))
    return mcmc


def assert_posterior(mcmc, y):
    samples = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    x, sigma = samples["x"][..., 0], samples["sigma"]
    means = np.stack([x, x**2, sigma, sigma**2], -1).mean(1)
    error = means.std(0, ddof=1) / len(means) ** 0.5
    exact = by_quadrature(y)
    assert (error < 0.1).all(), error
    assert (np.abs(means.mean(0) - exact) < 4 * error).all(), (means.mean(0), exact, error)
    return samples


@pytest.mark.long
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_hmc_with_a_site_summed_out(dense, key):
    """Vectorized chains, enumeration by NumPyro; warm-up ends, and a run goes on from it."""
    mcmc = chains(nd.MoveKernel(model, nd.moves.hmc(4), dense=dense), key, 1.1)
    samples = assert_posterior(mcmc, 1.1)
    np.testing.assert_allclose(samples["total"], samples["x"].sum(-1), rtol=1e-12)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    steps = np.asarray(fields["adapt_state.step_size"])
    assert (steps == steps[:, :1]).all() and len(np.unique(steps)) == 16  # frozen, chain by chain
    assert 0.6 < np.mean(fields["accept_prob"]) < 0.97
    found = az.from_numpyro(mcmc, log_likelihood=False)
    assert found.posterior["x"].shape == (16, 600, 2)
    assert found.sample_stats["acceptance_rate"].shape == (16, 600)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jax.random.key(1), 1.1, extra_fields=("adapt_state.step_size",))
    again = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["adapt_state.step_size"])
    np.testing.assert_array_equal(again, steps)
    assert_posterior(mcmc, 1.1)


def test_two_blocks_of_a_walk(key):
    """A kernel without gradients for each site, in `Gibbs`: each block sees what the other has done."""

    def normal(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(a, b), obs=y)

    walk = nd.MoveKernel(normal, nd.moves.random_walk())
    kernel = Gibbs([(walk, ["a"]), (walk, None)])
    mcmc = MCMC(
        kernel,
        num_warmup=200,
        num_samples=1000,
        num_chains=32,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(key, jnp.asarray(1.5))
    samples = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    a, log_b = np.linspace(-5, 6, 1101)[:, None], np.linspace(-3, 3, 601)
    p = norm.pdf(a) * norm.pdf(log_b, 0, 0.5) * norm.pdf(1.5, a, np.exp(log_b))
    for name, values in (("a", a), ("b", np.exp(log_b))):
        for power in (1, 2):
            means = (samples[name] ** power).mean(1)
            error = means.std(ddof=1) / len(means) ** 0.5
            exact = (p * values**power).sum() / p.sum()
            assert abs(means.mean() - exact) < 4 * error, (name, power, means.mean(), exact, error)


def test_nothing_to_move(key):
    def observed():
        numpyro.sample("a", dist.Normal(), obs=0.0)

    with pytest.raises(ValueError, match="no continuous site"):
        nd.MoveKernel(observed).init(key, 1, None, (), {})
