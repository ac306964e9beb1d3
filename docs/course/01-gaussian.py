# %% [markdown]
# # 1. A Gaussian, in closed form
#
# A *diffusion prior* is a probability distribution that is known at every noise level. The simplest one
# is a Gaussian: add noise to it and it is a Gaussian again. Here everything has a closed form, so the
# sampler can be held against the truth before it is trusted with anything else.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

prior = nd.Gaussian(mean=[0.5, -1.0], covariance=[[2.0, 0.6], [0.6, 0.5]])
prior

# %% [markdown]
# ## The clock
#
# A diffusion adds noise to an example $x_0$ as its time $t$ runs from 0 (data) to 1 (noise):
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I).$$
#
# In the units of the data, $x_t / \alpha_t = x_0 + s_t \epsilon$ with the *noise level* $s_t = \sigma_t /
# \alpha_t$. Levels grow by orders of magnitude, and a sampler goes through them the other way: from
# nothing but noise at $t_\mathrm{max}$ to the data at $t_\mathrm{min}$.

# %% alt="Draws of the Gaussian at four noise levels: a round cloud at noise 10, the tilted ellipse at 0.004"
times = [prior.schedule.time(-2 * jnp.log(s)) for s in (10.0, 2.0, 0.5)] + [prior.t_min]
figure, axes = plt.subplots(1, 4, figsize=(9, 2.4))
keys = jax.random.split(jax.random.key(0), 500)
for ax, t in zip(axes, times, strict=True):
    alpha, _ = prior.schedule(jnp.asarray(t))
    draws = jax.vmap(prior.draw, (0, None))(keys, jnp.asarray(t)) / alpha
    level = prior.schedule.noise_level(jnp.asarray(t))
    ax.plot(*draws.T, ".", ms=2)
    ax.set_title(f"t = {t:.3f}, noise {level:.3g}")
    ax.axis("equal")
plt.show()

# %% [markdown]
# A prior also knows its *score*, the gradient of its log density at each level. That is what a network
# learns when a diffusion model is trained, and what moves the particles below. For a Gaussian it is a
# straight line.
#
# ## A model
#
# `nd.DiffusionPrior` turns the prior into a NumPyro distribution. The rest of the model is ordinary
# NumPyro: here the sum of both coordinates is measured, with noise of 0.3.


# %%
def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    numpyro.sample("y", dist.Normal(x.sum(), 0.3), obs=y)


y = 1.2
smc = nd.SMC(model, num_particles=512, num_chains=4)
smc.run(jax.random.key(0), y=y)
smc.print_summary()

# %% [markdown]
# `nd.SMC` (sequential Monte Carlo) has the interface of NumPyro's `MCMC`. It starts with particles at the
# noisy end, and takes them down the noise levels: at each they are *weighed* (those that explain the data
# better count more), *resampled* (light ones give way to heavy ones) and *moved* (a few steps of
# Hamiltonian Monte Carlo). A small pilot cloud chooses levels and step sizes beforehand. The table is
# that of NumPyro; lesson 4 reads the lines below it.
#
# ## Is it right?
#
# A linear measurement of a Gaussian: the posterior is a Gaussian, and so is the distribution of the data.

# %%
noise = float(prior.schedule.noise_level(jnp.asarray(prior.t_min)))
mean, cov = np.array([0.5, -1.0]), np.array([[2.0, 0.6], [0.6, 0.5]]) + noise**2 * np.eye(2)
h = np.ones(2)
variance_y = h @ cov @ h + 0.3**2
gain = cov @ h / variance_y
exact_mean = mean + gain * (y - h @ mean)
exact_cov = cov - np.outer(gain, h @ cov)
exact_evidence = dist.Normal(h @ mean, np.sqrt(variance_y)).log_prob(y)

draws = np.asarray(smc.get_samples()["x"], float)
print("mean      ", draws.mean(0).round(2), "exactly", exact_mean.round(2))
print("sd        ", draws.std(0).round(2), "exactly", np.sqrt(np.diag(exact_cov)).round(2))
print("corr      ", np.corrcoef(draws.T)[0, 1].round(3), "exactly", end=" ")
print((exact_cov[0, 1] / np.sqrt(exact_cov[0, 0] * exact_cov[1, 1])).round(3))
print(
    f"log p(y)   {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f} exactly {exact_evidence:.3f}"
)

# %% [markdown]
# The last line is the *evidence*, $p(y) = \int p(x)\, p(y \mid x)\, dx$, which chains of MCMC do not
# have. It comes with an error bar, and lessons 2 and 7 put it to use.

# %% alt="Prior draws as a wide ellipse, posterior draws in a narrow band along the line where the sum is 1.2"
figure, ax = plt.subplots(figsize=(4, 3))
prior_draws = jax.vmap(prior.draw, (0, None))(keys, jnp.asarray(prior.t_min))
ax.plot(*prior_draws.T, ".", ms=3, color="0.7", label="prior")
ax.plot(*draws[::4].T, ".", ms=3, label="posterior")
ax.legend()
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Lower the noise of the measurement from 0.3 to 0.03. How do the number of levels and the evidence
#    change?
# 2. Measure the difference of the coordinates instead of the sum. Which coordinate is now known better,
#    and why?
# 3. For one Gaussian NUTS is all you need: `numpyro.infer.MCMC(NUTS(model), ...)` runs on the same
#    `model`. Do the means agree?
#
# Next: [2. Two modes](02-modes.md). The mathematics of this lesson is in [Concepts](../concepts.md).
