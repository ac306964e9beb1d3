"""A plate with a closed form given its shared sites: two measurements an object, an offset, a noise level.

Object $i$ has a point $x_i$ of an asymmetric mixture and an effect $c_i \\sim N(\\mu, 0.6^2)$, and is seen as
$y_i = (x_i + c_i, x_i - c_i) + \\sigma \\epsilon$. Given $(\\mu, \\sigma)$ it is a mixture of Gaussians;
these two are integrated on a grid.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp

import numpyro_diffusion as nd

WEIGHTS, MEANS, VARIANCES = (
    np.array([0.3, 0.7]),
    np.array([-1.5, 0.8]),
    np.array([0.3, 0.5]) ** 2,
)
PRIOR = nd.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])
TAU = 0.6
SIGNS = np.array([1.0, -1.0])


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.8))
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        c = numpyro.sample("c", dist.Normal(mu, TAU))
        mean = numpyro.deterministic("mean", x + c[:, None] * SIGNS)
        numpyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)


def data(num, seed=0, mu=0.7, sigma=0.4):
    rng = np.random.default_rng(seed)
    k = rng.choice(2, num, p=WEIGHTS)
    x = MEANS[k] + VARIANCES[k] ** 0.5 * rng.standard_normal(num)
    c = mu + TAU * rng.standard_normal(num)
    return x[:, None] + c[:, None] * SIGNS + sigma * rng.standard_normal((num, 2))


def exact(y, size=201):
    """Log evidence, and means and standard deviations of all latent sites."""
    t = jnp.asarray(PRIOR.t_min)
    alpha, noise = PRIOR.schedule(t)
    variances = VARIANCES + float((noise / alpha) ** 2)
    mu, log_sigma = np.linspace(-4, 4, 4 * size), np.linspace(-4.5, 2.0, size)
    mu, log_sigma = (g.ravel() for g in np.meshgrid(mu, log_sigma, indexing="ij"))
    area = (mu.max() - mu.min()) / (4 * size - 1) * (log_sigma.max() - log_sigma.min()) / (size - 1)
    log_prior = -0.5 * (mu / 2) ** 2 - np.log(2) - 0.5 * ((log_sigma + 1) / 0.8) ** 2
    log_prior = log_prior - np.log(0.8) - np.log(2 * np.pi)
    s2 = np.exp(2 * log_sigma)
    total, moments = log_prior + np.log(area), []
    for one in np.asarray(y, float):
        # Sum and difference are independent given the component.
        up, down = one.mean(), (one * SIGNS).mean()
        v_down = TAU**2 + s2 / 2
        parts, x_means, x_seconds = [], [], []
        for w, m, v in zip(WEIGHTS, MEANS, variances, strict=True):
            spread = v + s2 / 2
            parts.append(np.log(w) - 0.5 * (up - m) ** 2 / spread - 0.5 * np.log(spread))
            gain = v / spread
            x_means.append(m + gain * (up - m))
            x_seconds.append(x_means[-1] ** 2 + v * (1 - gain))
        by_mode = np.stack(parts)
        z = logsumexp(by_mode, axis=0) - 0.5 * (down - mu) ** 2 / v_down - 0.5 * np.log(v_down)
        total = total + z - np.log(2 * np.pi) - np.log(2)
        p = np.exp(by_mode - logsumexp(by_mode, axis=0))
        gain = TAU**2 / v_down
        c = mu + gain * (down - mu)
        moments.append(
            ((p * x_means).sum(0), (p * x_seconds).sum(0), c, c**2 + TAU**2 * (1 - gain), p[0])
        )
    log_evidence = logsumexp(total)
    weights = np.exp(total - log_evidence)
    mean = lambda values: float(weights @ values)
    sd = lambda first, second: (mean(second) - mean(first) ** 2) ** 0.5
    shared = {"mu": mu, "sigma": np.exp(log_sigma)}
    out = {n: (mean(v), sd(v, v**2)) for n, v in shared.items()}
    out["x"] = np.array([(mean(m[0]), sd(m[0], m[1])) for m in moments])
    out["c"] = np.array([(mean(m[2]), sd(m[2], m[3])) for m in moments])
    out["low mode"] = np.array([mean(m[4]) for m in moments])
    # What the joint posterior has beyond its margins: the effect moves with the offset.
    out["mu c"] = np.array([mean(mu * m[2]) - mean(mu) * mean(m[2]) for m in moments])
    return float(log_evidence), out
