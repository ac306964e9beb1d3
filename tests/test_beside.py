"""A diffusion site among NumPyro's other words, all Gaussian: evidence and posterior in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd

PRIOR = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
RNG = np.random.default_rng(0)
FIRST, SECOND, COVARIATES = (RNG.normal(size=(3, 2)) for _ in range(3))
Y1, Y2, SEEN = RNG.normal(size=3), RNG.normal(size=3), np.array([True, False, True])


def likelihoods(first, second, covariates, y1=None, y2=None):
    """Two data sets with operators of their own: one beside a regression, one masked and scaled."""
    affine = dist.transforms.AffineTransform(jnp.array([0.3, 0.0]), jnp.array([1.5, 0.7]))
    x = numpyro.sample("x", dist.TransformedDistribution(nd.DiffusionPrior(PRIOR), affine))
    many = numpyro.sample("many", nd.DiffusionPrior(PRIOR).expand([2]))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    shift = numpyro.param("shift", 0.0)
    mean = numpyro.deterministic("mean", first @ x + covariates @ beta + shift)
    numpyro.sample("y1", dist.Normal(mean, 0.5).to_event(1), obs=y1)
    with handlers.scale(scale=2.0), handlers.mask(mask=SEEN):
        numpyro.sample("y2", dist.Normal(second @ (x + many[0] - many[1]), 0.5), obs=y2)


lifted = handlers.lift(likelihoods, prior={"shift": dist.Normal(0.0, 2.0)})


def exact():
    """Mean and covariance of (x, many, beta, shift), and the log evidence."""
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2
    base = np.array([[1.0, 0.6], [0.6, 0.8]]) + noise * np.eye(2)
    scale = np.diag([1.5, 0.7])
    mean = np.concatenate([[0.3, 0.0] + scale @ [0.5, -1.0], [0.5, -1.0] * 2, np.zeros(3)])
    covariance = np.zeros((9, 9))
    covariance[:2, :2] = scale @ base @ scale
    covariance[2:4, 2:4] = covariance[4:6, 4:6] = base
    covariance[6:, 6:] = np.diag([1.0, 1.0, 4.0])
    top = np.concatenate([FIRST, np.zeros((3, 4)), COVARIATES, np.ones((3, 1))], 1)
    below = np.concatenate([SECOND, SECOND, -SECOND, np.zeros((3, 3))], 1)[SEEN]
    rows, y = np.concatenate([top, below]), np.array([*Y1, *Y2[SEEN]])
    total = rows @ covariance @ rows.T + np.diag([0.25] * 3 + [0.125] * 2)
    gain = np.linalg.solve(total, rows @ covariance).T
    # A normal density of variance v, squared, is that of v / 2 times 1 / sqrt(4 pi v).
    constant = -0.5 * 2 * np.log(4 * np.pi * 0.25)
    log_evidence = multivariate_normal.logpdf(y, rows @ mean, total) + constant
    return mean + gain @ (y - rows @ mean), covariance - gain @ rows @ covariance, log_evidence


@pytest.fixture(scope="module")
def smc():
    scheme = nd.Annealed(moves=3, pilot=nd.schemes.Pilot(128, conditional_ess=0.9))
    run = nd.SMC(lifted, scheme, num_particles=1000, progress_bar=False)
    return run.run(jax.random.key(0), FIRST, SECOND, COVARIATES, Y1, Y2)


def test_operators_covariates_transform_expand_mask_scale_and_lift(smc):
    mean, covariance, log_evidence = exact()
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error
    assert smc.log_evidence_error < 0.1
    s = {n: np.asarray(v) for n, v in smc.get_samples().items()}
    many = s["many"].reshape(len(s["shift"]), -1)
    found = np.concatenate([s["x"], many, s["beta"], s["shift"][:, None]], 1)
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(found.mean(0) - mean) < 0.15 * sd).all()
    np.testing.assert_allclose(found.std(0), sd, rtol=0.1)


def test_predictive_takes_new_inputs(smc):
    """Draws of the first data set at other operators and covariates, by NumPyro's `Predictive`."""
    latent = {n: v for n, v in smc.get_samples().items() if n != "mean"}
    first, covariates = np.array([[1.0, 2.0]]), np.array([[0.5, -1.0]])
    # Beside it the second data set stays as it was.
    predictive = Predictive(lifted, latent, return_sites=["y1"])
    drawn = predictive(jax.random.key(1), first, SECOND, covariates)["y1"]
    mean, covariance, _ = exact()
    row = np.array([1.0, 2.0, 0, 0, 0, 0, 0.5, -1.0, 1.0])
    variance = row @ covariance @ row + 0.25
    assert drawn.shape == (4000, 1)
    assert abs(drawn.mean() - row @ mean) < 0.15 * variance**0.5
    assert abs(drawn.var() / variance - 1) < 0.15


def in_time(y=None, z=None):
    """A hidden walk by `scan`, and a plate of objects whose means share a hyper-prior."""
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))

    def step(state, value):
        state = numpyro.sample("state", dist.Normal(0.8 * state, 0.6))
        numpyro.sample("y", dist.Normal(state + x[0], 0.5), obs=value)
        return state, None

    scan(step, jnp.zeros(()), y, length=4)
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("objects", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, 0.7))
        numpyro.sample("z", dist.Normal(theta + x[1], 0.5), obs=z)


def test_a_scan_and_a_hyper_prior_beside_a_diffusion_site():
    y, z = np.array([0.4, 1.3, 0.2, 1.9]), np.array([-0.5, 0.8, 0.1])
    scheme = nd.Annealed(moves=3, pilot=nd.schemes.Pilot(128, conditional_ess=0.9))
    smc = nd.SMC(in_time, scheme, num_particles=1000, progress_bar=False)
    smc.run(jax.random.key(0), y, z)
    # All as linear functions of (x, four steps of the walk, mu, three deviations), independent but for x.
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2
    covariance = np.diag([1.0 + noise, 0.8 + noise, *[0.36] * 4, 4.0, *[0.49] * 3])
    covariance[0, 1] = covariance[1, 0] = 0.6
    mean = np.array([0.5, -1.0, *[0.0] * 8])
    walk = np.tril(0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    states, thetas = np.zeros((4, 10)), np.zeros((3, 10))
    states[:, 2:6], thetas[:, 6], thetas[:, 7:] = walk, 1.0, np.eye(3)
    rows = np.concatenate([states + np.eye(10)[0], thetas + np.eye(10)[1]])
    total, data = rows @ covariance @ rows.T + 0.25 * np.eye(7), np.concatenate([y, z])
    log_evidence = multivariate_normal.logpdf(data, rows @ mean, total)
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error
    assert smc.log_evidence_error < 0.1
    gain = np.linalg.solve(total, rows @ covariance).T
    latents = np.concatenate([np.eye(10)[:2], states, np.eye(10)[6:7], thetas])
    expected = latents @ (mean + gain @ (data - rows @ mean))
    sd = np.sqrt(np.diag(latents @ (covariance - gain @ rows @ covariance) @ latents.T))
    s = {n: np.asarray(v) for n, v in smc.get_samples().items()}
    found = np.concatenate([s["x"], s["state"], s["mu"][:, None], s["theta"]], 1)
    assert (np.abs(found.mean(0) - expected) < 0.15 * sd).all()
    np.testing.assert_allclose(found.std(0), sd, rtol=0.1)
