# %% [markdown]
# # 3. What else is unknown
#
# Methods of image restoration often want the noise level as an argument. In a probabilistic program it is
# a site like any other: what is unknown gets a prior and is inferred with the rest. Here an instrument
# has an unknown noise level *and* an unknown offset.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

weights = np.array([0.3, 0.7])
means = np.array([[-2.0, 0.5], [1.0, -0.5]])
covariances = np.array([[[0.05, 0.02], [0.02, 0.03]], [[0.02, -0.01], [-0.01, 0.06]]])
prior = nd.GaussianMixture(weights, means, covariances)

rng = np.random.default_rng(0)
design = rng.normal(size=(12, 2))
truth, true_sigma, true_offset = np.array([0.9, -0.4]), 0.5, 0.8
y = design @ truth + true_offset + true_sigma * rng.normal(size=12)


def model(design, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(design)):
        numpyro.sample("y", dist.Normal(design @ x + offset, sigma), obs=y)


smc = nd.SMC(model, num_particles=512, num_chains=4)
smc.run(jax.random.key(0), design, y=y)
smc.print_summary()

# %% [markdown]
# Nothing about the call has changed. The diffusion runs over `x`; `sigma` and `offset` stand beside it,
# and are moved with it.
#
# ## Against quadrature
#
# Given `sigma`, everything is Gaussian but for the component, so that $p(y \mid \sigma)$ is a sum of two
# Gaussians. The posterior of `sigma` follows on a grid, and with it the evidence.

# %%
grid = np.linspace(0.05, 2.5, 800)


def log_likelihood(sigma):
    terms = []
    for weight, mean, cov in zip(weights, means, covariances, strict=True):
        spread = design @ cov @ design.T + np.ones((12, 12)) + sigma**2 * np.eye(12)
        terms.append(np.log(weight) + dist.MultivariateNormal(design @ mean, spread).log_prob(y))
    return jax.nn.logsumexp(jnp.stack(terms))


log_joint = jax.vmap(log_likelihood)(grid) + dist.HalfNormal(1.0).log_prob(grid)
width = grid[1] - grid[0]
exact_evidence = jax.nn.logsumexp(log_joint) + np.log(width)
exact = np.exp(log_joint - exact_evidence)
exact_mean = (grid * exact).sum() * width
samples = smc.get_samples(group_by_chain=True)
print(f"sigma        {samples['sigma'].mean():.3f} exactly {exact_mean:.3f}")
print(
    f"log evidence {smc.log_evidence:.2f} +- {smc.log_evidence_error:.2f} exactly {exact_evidence:.2f}"
)

# %% alt="Posterior of the noise level: histogram and clouds follow the exact density"
figure, ax = plt.subplots(figsize=(4.5, 2.6))
plots.plot_density(ax, samples["sigma"], "noise level", true_sigma)
shown = grid < 1.0
ax.plot(grid[shown], exact[shown], "k--", lw=1)
plt.show()

# %% [markdown]
# The dashed line is exact. The truth lies in the upper tail: these twelve data happen to be closer to
# their means than the noise of 0.5 would have them, and twelve do not say much about a noise level. The
# posterior of everything else is averaged over what is left open, which a fixed guess of `sigma` would
# hide.
#
# ## Predictions
#
# NumPyro's `Predictive` takes these draws as it takes those of NUTS. Where would three new data be?

# %%
new = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
predicted = numpyro.infer.Predictive(model, smc.get_samples())(jax.random.key(1), new)["y"]
print("mean", predicted.mean(0).round(2), "sd", predicted.std(0).round(2))

# %% [markdown]
# ## Exercises
#
# 1. Use the first three data only. What does the posterior of `sigma` look like, and what does it do to
#    that of `x`?
# 2. Replace the `Normal` of the data by `StudentT(3, ...)` and spoil one datum by 10 units. How far does
#    `x` move, with either?
# 3. Make the prior of `offset` ten times wider. Why does the evidence fall by about two nats, while the
#    posterior stays?
#
# Next: [4. When to believe a run](04-diagnostics.md). A longer model of this kind: [Unknown noise
# level](../howto-unknown-noise.md).
