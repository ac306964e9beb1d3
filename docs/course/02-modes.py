# %% [markdown]
# # 2. Two modes
#
# In lesson 1 NUTS would have done. It stops doing where the posterior has modes with nothing in between:
# a chain stays where it began, and no diagnostic of a single chain knows of the other mode. A diffusion
# has a way around: at high noise the modes are one.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

weights = np.array([0.3, 0.7])
means = np.array([[-2.0, 0.5], [1.0, -0.5]])
covariances = np.array([[[0.05, 0.02], [0.02, 0.03]], [[0.02, -0.01], [-0.01, 0.06]]])
prior = nd.GaussianMixture(weights, means, covariances)


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    numpyro.sample("y", dist.Normal(x[1], 0.5), obs=y)


y = 0.1

# %% [markdown]
# The second coordinate is measured, badly. The measurement lies between the two components, and both can
# explain it.
#
# ## Eight chains of NUTS

# %%
mcmc = MCMC(
    NUTS(model),
    num_warmup=300,
    num_samples=300,
    num_chains=8,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(0), y=y)
left = (mcmc.get_samples(group_by_chain=True)["x"][..., 0] < -0.5).mean(1)
print("share of the left mode, chain by chain:", left.round(2))

# %% [markdown]
# Each share is 0 or 1. How many chains end up on the left tells where they *started*, and nothing about
# the posterior.
#
# ## Particles

# %%
smc = nd.SMC(model, num_particles=512, num_chains=4)
smc.run(jax.random.key(1), y=y)
left = (smc.get_samples(group_by_chain=True)["x"][..., 0] < -0.5).mean(1)
print("share of the left mode, cloud by cloud:", left.round(2))

# %% [markdown]
# Each *cloud* of 512 particles holds both modes. How much each ought to have is known: given its
# component the model is that of lesson 1, so component $k$ has the weight $w_k\, p(y \mid k)$, and the
# sum of these is the evidence.

# %%
spread = np.sqrt(
    covariances[:, 1, 1] + prior.schedule.noise_level(jnp.asarray(prior.t_min)) ** 2 + 0.5**2
)
joint = weights * np.exp(dist.Normal(means[:, 1], spread).log_prob(y))
print(f"left         {left.mean():.3f} exactly {joint[0] / joint.sum():.3f}")
print(
    f"log evidence {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f} exactly {np.log(joint.sum()):.3f}"
)

# %% [markdown]
# ## How
#
# The picture shows the prior's density along the line through both means, at four noise levels. From the
# top: one hill, which particles cross with ease; then two that part; and in the end two that no particle
# crosses any more, and none needs to, because the shares were settled above.

# %% alt="Log density through both means: one hill at noise 3, two separate peaks at noise 0.004"
figure, ax = plt.subplots(figsize=(5, 2.8))
share = jnp.linspace(-0.7, 1.7, 300)[:, None]
line = means[0] + share * (means[1] - means[0])
for s in (3.0, 1.0, 0.3, 0.004):
    t = prior.schedule.time(-2 * jnp.log(s))
    log_density = jax.vmap(prior.log_density, (0, None))(line, t)
    ax.plot(line[:, 0], log_density - log_density.max(), label=f"noise {s}")
ax.set(ylim=(-25, 1), xlabel="first coordinate", ylabel="log density, from its top")
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# In the picture the *prior* has the two modes. Where the prior has one and the likelihood makes the
# modes, the sampler lets the likelihood in step by step, and the same happens.
#
# ## Exercises
#
# 1. Set `num_chains=64` in NUTS. Does the share of chains on the left approach the exact one?
# 2. Let the data choose: for which `y` do both components weigh the same? Check it with a run.
# 3. Give the left component a weight of 0.001. With how many particles do all four clouds still hold it?
#
# Next: [3. What else is unknown](03-unknowns.md). More on which sampler for what: [Choosing a
# sampler](../choosing-a-sampler.md).
