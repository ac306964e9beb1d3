"""Many latents in one model against exact answers: a plate of images, two images in one datum, an operator.

Given noise level and operator, mixture priors and linear data leave a mixture of Gaussians; the rest is a
sum over a grid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_near, by_cloud
from scipy.linalg import block_diag
from scipy.special import logsumexp
from scipy.stats import lognorm

import numpyro_diffusion as nd

LAW = nd.GaussianMixture()
PLANE = (
    np.array([0.3, 0.7]),
    np.array([[-2.0, 0.5], [1.0, -0.5]]),
    np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]]),
)
SPACE = (
    np.array([0.6, 0.4]),
    np.array([[-1.0, 1.5, -0.5], [1.0, -0.8, 1.2]]),
    np.array([np.diag([0.3, 0.2, 0.4]) + 0.1, np.diag([0.2, 0.5, 0.3]) - 0.05]),
)
NOISE = float(LAW.schedule.noise_level(jnp.asarray(LAW.t_min)))


class Exact(NamedTuple):
    log_evidence: float
    x: np.ndarray  # mean and variance
    parts: np.ndarray  # probability of each component
    grid: np.ndarray  # mean and standard deviation of each coordinate of the grid


def together(laws):
    """The product of mixtures as one mixture."""
    weights, means, covariances = laws[0]
    for w, m, s in laws[1:]:
        weights = np.outer(weights, w).ravel()
        means = np.array([[*a, *b] for a in means for b in m])
        covariances = np.array([block_diag(a, b) for a in covariances for b in s])
    return weights, means, covariances


def exact(law, operators, sigmas, log_prior, grid, y) -> Exact:
    """Posterior of a mixture under each operator and noise level of a grid."""
    weights, means, covariances = law
    s = covariances + NOISE**2 * np.eye(means.shape[1])
    hs = np.einsum("gnd,kde->gkne", operators, s)
    v = np.einsum("gkne,gme->gknm", hs, operators)
    v = v + sigmas[:, None, None, None] ** 2 * np.eye(len(y))
    residual = y - np.einsum("gnd,kd->gkn", operators, means)
    gain = np.swapaxes(np.linalg.solve(v, hs), -1, -2)
    solved = np.linalg.solve(v, residual[..., None])[..., 0]
    log_det = np.linalg.slogdet(2 * np.pi * v)[1]
    log_joint = np.log(weights) - 0.5 * ((residual * solved).sum(-1) + log_det) + log_prior[:, None]
    p = np.exp(log_joint - logsumexp(log_joint))
    centres = means + np.einsum("gkdn,gkn->gkd", gain, residual)
    spreads = np.einsum("kdd->kd", s) - np.einsum("gkdn,gknd->gkd", gain, hs)
    mean = np.einsum("gk,gkd->d", p, centres)
    variance = np.einsum("gk,gkd->d", p, spreads + (centres - mean) ** 2)
    each = p.sum(1) @ grid
    spread = np.sqrt(p.sum(1) @ (grid - each) ** 2)
    return Exact(
        logsumexp(log_joint), np.stack([mean, variance]), p.sum(0), np.stack([each, spread])
    )


def lognormal_grid(location, scale, num):
    """Points evenly spread in the logarithm, with the log of their prior probabilities."""
    z = np.linspace(-4.5, 4.5, num)
    values = np.exp(location + scale * z)
    log_p = lognorm.logpdf(values, scale, scale=np.exp(location)) + np.log(scale * values)
    return values, log_p + np.log(z[1] - z[0])


def run(model, y, num_particles=256):
    smc = nd.SMC(model, num_particles=num_particles, num_chains=4, progress_bar=False)
    return smc.run(jax.random.key(0), jnp.asarray(y))


def assert_agrees(smc, truth: Exact, images, names=()):
    """Evidence, moments of the images (flat, in one row) and means of the other sites."""
    assert smc.log_evidence_error < 0.2
    assert abs(smc.log_evidence - truth.log_evidence) < 3 * smc.log_evidence_error + 0.02
    mean, variance = truth.x
    sd = np.sqrt(variance)
    assert_near(by_cloud(smc, images), mean, 0.06 * sd)
    assert_near(by_cloud(smc, lambda s: (images(s) - mean) ** 2), variance, 0.12 * variance)
    for name, value, scale in zip(names, *truth.grid, strict=True):
        assert_near(by_cloud(smc, lambda s, name=name: s[name]), value, 0.08 * scale)


@pytest.mark.long
def test_two_images_in_one_datum_may_change_places():
    """Nothing tells which of two images under one prior is which: both answers, in equal shares."""
    y = PLANE[1].sum(0) + np.array([0.2, -0.3])

    def model(y):
        first = numpyro.sample("first", nd.DiffusionPrior(LAW))
        second = numpyro.sample("second", nd.DiffusionPrior(LAW))
        numpyro.sample("y", dist.Normal(first + second, 0.1).to_event(1), obs=y)

    operator, one = np.hstack([np.eye(2), np.eye(2)])[None], np.ones(1)
    truth = exact(together(2 * [PLANE]), operator, 0.1 * one, np.log(one), np.zeros((1, 0)), y)
    np.testing.assert_allclose(truth.parts[1], truth.parts[2])  # left and right, right and left
    assert truth.parts[1] > 0.4
    smc = run(model, y, 1000)
    assert_agrees(smc, truth, lambda s: np.concatenate([s["first"], s["second"]], -1))
    left = by_cloud(smc, lambda s: s["first"][..., 0] < s["second"][..., 0])
    assert_near(left, 0.5, 0.02)


def blur(width, xp=jnp):
    """A Gaussian blur of three pixels; rows sum to 1."""
    weights = xp.exp(-0.5 * ((np.arange(3)[:, None] - np.arange(3)) / width) ** 2)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.long
def test_a_plate_of_images_shares_an_unknown_blur_and_noise_level():
    law, num = nd.GaussianMixture(*SPACE), 3

    def model(y):
        width = numpyro.sample("width", dist.LogNormal(-0.3, 0.5))
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.5, 0.5))
        with numpyro.plate("images", num):
            x = numpyro.sample("x", nd.DiffusionPrior(law))
            numpyro.sample("y", dist.Normal(x @ blur(width).T, sigma).to_event(1), obs=y)

    images = SPACE[1][[0, 1, 0]] + np.array([[-0.2, 0.4, 0.1], [0.6, -0.3, 0.0], [0.5, -0.6, 0.3]])
    y = images @ blur(1.1, np).T + np.array([[0.05, 0.2, -0.1], [0.1, -0.3, 0.0], [-0.2, 0.1, 0.2]])
    widths, log_width = lognormal_grid(-0.3, 0.5, 40)
    sigmas, log_sigma = lognormal_grid(-1.5, 0.5, 40)
    grid = np.array([(w, s) for w in widths for s in sigmas])
    operators = np.array([block_diag(*num * [blur(w, np)]) for w, _ in grid])
    log_prior = np.add.outer(log_width, log_sigma).ravel()
    truth = exact(together(num * [SPACE]), operators, grid[:, 1], log_prior, grid, y.ravel())
    smc = run(model, y)
    flat = lambda s: s["x"].reshape(*s["x"].shape[:-2], 3 * num)
    assert_agrees(smc, truth, flat, ["width", "sigma"])
