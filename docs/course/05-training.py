# %% [markdown]
# # 5. A prior of your own
#
# So far the prior was written down. Now it is learned from examples: points in the plane that lie on two
# half circles. Train, audit, save, load, use.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

rng = np.random.default_rng(0)


def moons(num):
    angle, upper = np.pi * rng.random(num), rng.random(num) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([x, y], 1) + 0.05 * rng.normal(size=(num, 2))


train, held_out = moons(2000), moons(500)

# %% [markdown]
# ## Train
#
# A network sees a point with noise on it, and the noise level, and learns an *energy*: minus the log
# density of what it sees, up to a constant. `noise_min` is the resolution at which the prior is a
# density, `noise_max` drowns the data. `nd.fit` holds some examples out and returns the weights that do
# best on them.

# %%
net = nd.nets.ResidualMLP(jax.random.key(0), (2,), width=64)
start = nd.ProperEnergy.from_data(net, train, noise_min=0.05, noise_max=20.0)
result = nd.fit(jax.random.key(1), start, train, steps=2000)
prior = result.energy
print(result.verdict)

# %% [markdown]
# ## Audit
#
# A prior that is wrong gives a posterior that is wrong, and no sampler can tell. `nd.audit` holds the
# prior against examples that it never saw: does it denoise, do its energies and its scores agree, do its
# draws look like data?

# %%
report = nd.audit(
    prior,
    train,
    held_out=held_out,
    key=jax.random.key(2),
    num_levels=3,
    num_examples=40,
    num_draws=300,
    num_steps=60,
)
print(*report.verdict, sep="\n")

# %% [markdown]
# Findings come first, each with its remedy, then what was fine, then remarks. That the denoiser's
# derivative is off at the highest noise level is a remark: there is nothing to be known there but where the
# data lie as a whole. A finding at a noise level like that of your data would be a reason to train again.
#
# ## Save and load
#
# Weights, schedule and units go into one file that no program is hidden in, with a card of your own
# words.

# %%
nd.save("moons.safetensors", prior, {"data": "two half circles", "examples": len(train)})
prior = nd.load("moons.safetensors")
print(nd.io.read_card("moons.safetensors"))

# %% [markdown]
# ## Use
#
# The model is that of the lessons before, with the learned prior in the place of a formula. The height of
# a point is measured; it is on one of the circles, but where?


# %%
def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.2))
    with numpyro.plate("data", 5):
        numpyro.sample("y", dist.Normal(x[1], sigma), obs=y)


y = jnp.array([0.02, 0.13, 0.07, 0.09, -0.01])
smc = nd.SMC(model, num_particles=256, num_chains=2)
smc.run(jax.random.key(3), y=y)
smc.print_summary()

# %% alt="Examples on two half circles, and posterior draws where these cross the measured height"
figure, ax = plt.subplots(figsize=(4.5, 3))
ax.plot(*train[:600].T, ".", ms=2, color="0.75", label="examples")
ax.plot(*smc.get_samples()["x"].T, ".", ms=3, label="posterior")
ax.legend(loc="lower left")
ax.axis("equal")
plt.show()

# %% [markdown]
# Four places, in one run: the two ends and flanks of both circles that lie at this height.
#
# ## Exercises
#
# 1. Train for 200 steps. Which question of the audit does the prior fail first?
# 2. Train on 50 points. What does the last line of the audit, that on memorising, say?
# 3. Raise `noise_min` to 0.3. What do the draws look like, and why does the posterior have fewer places?
#
# Next: [6. A digit, restored](06-digits.md). Losses, small tables, imperfect data:
# [Training](../training.md), [Your own table](../tables.md).
