"""Likelihoods that are 0 somewhere: evidence and mean by quadrature, in every scheme."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics
from numpyro_diffusion.bridge import floored
from numpyro_diffusion.bridge.widening import around, averaged

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.2])
PRIOR = nd.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])
X = np.linspace(-8, 6, 400_001)
NEVER = -jnp.inf
# From where to where, log factor there and elsewhere, datum and its standard deviation.
CASES = {
    "above": (1.0, jnp.inf, NEVER, 0.0, 0.7, 0.5),
    "below, no data": (-jnp.inf, 0.0, NEVER, 0.0, 0.0, 1e3),
    "gap at the prior's mean": (-0.1, 0.7, NEVER, 0.0, 0.7, 0.5),
    "all but an interval": (1.8, 2.1, 0.0, NEVER, 0.7, 0.5),
    "steep step": (1.0, jnp.inf, -30.0, 0.0, 0.7, 0.5),
    "not a number": (1.0, jnp.inf, jnp.nan, 0.0, 0.7, 0.5),
    "with a large constant": (1.0, jnp.inf, NEVER, 1e4, 0.7, 0.5),
    "step below a large constant": (1.0, jnp.inf, -2e4, -1e4, 0.7, 0.5),
}


def model(low, high, within, elsewhere, y, sd, prior=PRIOR):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("hard", jnp.where((x > low) & (x < high), within, elsewhere))
    numpyro.sample("y", dist.Normal(x, sd), obs=y)


def arguments(case):
    return tuple(jnp.asarray(value, float) for value in CASES[case])


def by_quadrature(log_likelihood):
    """Log evidence and posterior mean of a likelihood, the noise of `t_min` included."""
    sd = np.sqrt(VARIANCES + 0.004**2)
    prior = (WEIGHTS * stats.norm.pdf(X[:, None], MEANS, sd)).sum(1)
    largest = np.max(log_likelihood)
    terms = prior * np.exp(log_likelihood - largest)
    total = np.trapezoid(terms, X)
    return largest + np.log(total), np.trapezoid(terms * X, X) / total


def exact(case):
    low, high, within, elsewhere, y, sd = map(float, CASES[case])
    factor = np.where((low < X) & (high > X), within, elsewhere)
    return by_quadrature(np.nan_to_num(factor, nan=-np.inf) + stats.norm.logpdf(y, X, sd))


def assert_right(name, got, error, mean, clouds, floor=0.0):
    log_evidence, expected = exact(name) if isinstance(name, str) else name
    assert abs(got - log_evidence) < 4 * error + floor, (
        f"log evidence, {name}: expected {log_evidence:.3f}, got {got:.3f} +- {error:.3f}"
    )
    spread = clouds.std(ddof=1) / len(clouds) ** 0.5
    assert abs(mean - expected) < 5 * spread + 0.02, (
        f"mean of x, {name}: expected {expected:.3f}, got {mean:.3f} +- {spread:.3f}"
    )


def assert_smc_is_right(name, smc, floor=0.0):
    samples, weights = smc.get_weighted_samples()
    x, weights = np.asarray(samples["x"])[..., 0], np.asarray(weights)
    mean = (x * weights).sum() / weights.sum()
    clouds = (x * weights).sum(1) / weights.sum(1)
    assert_right(name, smc.log_evidence, smc.log_evidence_error, mean, clouds, floor)


def sampler(scheme, of=model):
    return nd.SMC(of, scheme, num_particles=1000, num_chains=4, progress_bar=False)


@pytest.fixture(scope="module")
def annealed():
    return sampler(nd.Annealed())


@pytest.mark.filterwarnings("ignore:.*NaN")
@pytest.mark.parametrize("case", CASES)
def test_annealed(case, annealed, key):
    annealed.run(key, *arguments(case))
    assert_smc_is_right(case, annealed)
    assert "The density is 0" not in diagnostics.verdict(annealed.result)


def test_twisted(key):
    """Its own law of the prior is a tenth of a nat off at most with 100 steps."""
    smc = sampler(nd.Twisted())
    smc.run(key, *arguments("gap at the prior's mean"))
    assert_smc_is_right("gap at the prior's mean", smc, floor=0.1)


def test_replica_exchange(key):
    case = "gap at the prior's mean"
    found = nd.replica_exchange(key, nd.from_model(model, *arguments(case)))
    x = np.asarray(found.positions["x"])[..., 0]
    assert_right(case, found.log_evidence, found.log_evidence_error, x.mean(), x.mean(1))


def test_particle_gibbs(key):
    """The kept path is made anew by noising, through values that the likelihood rules out."""
    kernel = nd.ParticleGibbs(model, num_particles=16)
    run = {"num_warmup": 50, "num_samples": 400, "num_chains": 4, "chain_method": "vectorized"}
    mcmc = MCMC(kernel, **run, progress_bar=False)
    mcmc.run(key, *arguments("above"))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0]
    assert (x <= 1).all()
    error = x.std() / float(arviz.ess(x)) ** 0.5
    _, expected = exact("above")
    assert abs(x.mean() - expected) < 4 * error, (
        f"{x.mean():.3f} +- {error:.3f}, not {expected:.3f}"
    )


def two_latents(which, case, y, half_width):
    """Which factor, and data that bound `x`, are arguments: one program a scheme."""
    low, high, within, elsewhere, _, _ = case
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))[0]
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    factors = [
        lambda x, z: jnp.where((x > low) & (x < high), within, elsewhere),
        lambda x, z: jnp.where(x < z, 0.0, -jnp.inf),
        lambda x, z: jnp.where(x < z, jnp.sqrt(z - x), -jnp.inf),  # its gradient is NaN where x > z
    ]
    numpyro.factor("hard", jax.lax.switch(which, factors, x, z))
    numpyro.sample("bounded", dist.Uniform(x - half_width, x + half_width), obs=FOUR)
    numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def under_a_root(y):
    z, at = np.linspace(-6, 6, 1201)[:, None], np.linspace(-8, 6, 8001)
    joint = stats.norm.logpdf(z) + stats.norm.logpdf(y, z, 0.5)
    root = np.exp(np.sqrt(np.maximum(z - at, 0)) + joint) * (z > at)
    with np.errstate(divide="ignore"):
        return np.log(np.interp(X, at, np.trapezoid(root, z, axis=0)))


FOUR = np.array([0.6, 0.3, 0.9, 0.55])
# Which factor, datum of z, half width of the four data's noise, and log likelihood of x beside that of these.
WITH_ANOTHER = {
    f"order, y = {y}": (  # x < z by the normal distribution of z given y
        *(1, y, 4.0),
        lambda y=y: (
            stats.norm.logsf(X, 0.8 * y, np.sqrt(0.2)) + stats.norm.logpdf(y, 0, np.sqrt(1.25))
        ),
    )
    for y in (1.0, -0.4)
} | {
    "gradient that is not a number": (2, 0.7, 4.0, lambda: under_a_root(0.7)),
    "a floor for each datum": (0, 0.7, 0.5, lambda: of_factor("above")),
    "gap at the prior's mean": (0, 0.7, 4.0, lambda: of_factor("gap at the prior's mean")),
    "steep step": (0, 0.7, 4.0, lambda: of_factor("steep step")),
}


def of_factor(case):
    low, high, within, elsewhere, _, _ = map(float, CASES[case])
    factor = np.where((low < X) & (high > X), within, elsewhere)
    return factor + stats.norm.logpdf(0.7, 0, np.sqrt(1.25))


@pytest.fixture(scope="module")
def beside_another():
    schemes = {"annealed": nd.Annealed(), "reverse": nd.ReverseDiffusion()}
    return {name: sampler(scheme, two_latents) for name, scheme in schemes.items()}


@pytest.mark.parametrize("scheme", ["annealed", "reverse"])
@pytest.mark.parametrize("case", WITH_ANOTHER)
def test_beside_another_latent(case, scheme, beside_another, key):
    """A level's tempering depends on the other latent, and so does the gradient where the density is 0.

    Moves that stop there put evidences .05 to .1 nat off.
    """
    which, y, half_width, log_likelihood = WITH_ANOTHER[case]
    smc, among = beside_another[scheme], arguments(case if case in CASES else "above")
    smc.run(key, jnp.asarray(which), among, jnp.asarray(y), jnp.asarray(half_width))
    inside = np.all(np.abs(X[:, None] - FOUR) <= half_width, axis=1)
    expected = np.where(inside, log_likelihood() - len(FOUR) * np.log(2 * half_width), -np.inf)
    assert_smc_is_right(by_quadrature(expected), smc)


EIGHT = nd.Gaussian(np.zeros(8), np.eye(8))


def bounded_vector(y):
    x = numpyro.sample("x", nd.DiffusionPrior(EIGHT))
    numpyro.sample("y", dist.Uniform(x - 0.4, x + 0.4).to_event(1), obs=y)


def test_bounded_noise_of_eight_coordinates(rng, key):
    """Each coordinate has its own floor, in an event too: they hold a ten-thousandth of the prior."""
    y, sd = rng.normal(size=8), np.sqrt(1 + 0.004**2)
    smc = sampler(nd.Annealed(), bounded_vector)
    smc.run(key, jnp.asarray(y))
    mass = stats.norm.cdf((y + 0.4) / sd) - stats.norm.cdf((y - 0.4) / sd)
    expected, got, error = np.log(mass / 0.8).sum(), smc.log_evidence, smc.log_evidence_error
    assert abs(got - expected) < 4 * error < 2, (
        f"expected {expected:.3f}, got {got:.3f} +- {error:.3f}"
    )


def test_in_single_precision(float32, key):
    prior = nd.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])
    smc = sampler(nd.Annealed())
    smc.run(key, *(jnp.asarray(value, jnp.float32) for value in CASES["above"]), prior=prior)
    assert_smc_is_right("above", smc)


def test_likelihood_without_a_model(key):
    """`from_energy`, with a function that says no."""
    bridge = nd.from_energy(PRIOR, lambda x: jnp.where(x[0] > 0.0, -0.5 * x[0], -jnp.inf))
    result = nd.run_smc(key, nd.Annealed()(bridge), 1000, num_chains=4)
    log_evidence, _ = by_quadrature(np.where(X > 0, -0.5 * X, -np.inf))
    got = np.log(np.mean(np.exp(result.log_evidence)))
    error = result.log_evidence.std(ddof=1) / 2 + 0.01
    assert abs(got - log_evidence) < 4 * error, f"expected {log_evidence:.3f}, got {got:.3f}"


def test_only_what_can_be_zero_is_an_edge():
    """A smooth factor, however sharp, and counts with a positive rate are no edges; a cut far out is one."""

    def several(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))[0]
        numpyro.factor("smooth", -1e6 * (x - 0.3) ** 2)
        numpyro.factor("far", jnp.where(x > 5.0, -jnp.inf, 0.0))
        numpyro.factor("step", jnp.where(x > 1.0, -30.0, 0.0))
        numpyro.sample("root", dist.Normal(jnp.sqrt(x), 1.0), obs=y)
        numpyro.sample("counts", dist.Poisson(jnp.exp(x)), obs=3)
        numpyro.sample("y", dist.Normal(x, 1e-4), obs=y)

    rest = nd.from_model(several, jnp.asarray(0.5)).rest(*({"x": jnp.zeros(1)},) * 2)
    assert set(rest.edges) == {"far", "step"}


def test_floored():
    """log(e^r + delta), with gradients that are numbers; no floor is no change."""
    entries = jnp.array([0.0, -2.0, -jnp.inf, jnp.nan])
    got = floored(entries, jnp.asarray(np.log(0.1)))
    np.testing.assert_allclose(got, np.log([1.1, np.exp(-2) + 0.1, 0.1, 0.1]), rtol=1e-12)
    slopes = jax.grad(lambda r: floored(r, jnp.asarray(-1.0)).sum())(entries)
    assert np.isfinite(slopes).all()
    same = floored(entries, jnp.asarray(-jnp.inf))
    np.testing.assert_array_equal(same, entries)
    slopes = jax.grad(lambda r: floored(r, jnp.asarray(-jnp.inf)).sum())(entries[:3])
    np.testing.assert_array_equal(slopes, 1.0)


def test_average_over_points():
    """Of an indicator, its normal probability, near enough; at clock 0 the indicator itself."""

    @jax.jit
    def share(root):
        points = around({"x": jnp.array([0.2])}, {"x": jnp.array([root])})["x"]
        return averaged(jnp.where(points[:, 0] > 0, 0.0, -jnp.inf))

    assert abs(np.exp(share(0.5)) - stats.norm.cdf(0.4)) < 0.04
    assert share(0.0) == 0
    assert averaged(jnp.full(4, -jnp.inf)) == -jnp.inf
    assert np.isfinite(
        jax.grad(lambda r: jnp.maximum(averaged(r), -9.0))(jnp.full(4, -jnp.inf))
    ).all()
