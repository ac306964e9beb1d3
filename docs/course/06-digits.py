# %% [markdown]
# # 6. A digit, restored
#
# From two numbers to 64: an image of a handwritten digit, of which every other row is seen, blurred and
# noisy. The prior ships with the package; it was trained on 1,297 scans of 8 by 8 pixels. The digit here
# is one that it never saw.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

energy = nd.load_pretrained("digits-8x8")
images, labels = nd.pretrained.load_digits("test")  # ink from -1 to 1
truth, true_sigma = jnp.asarray(images[6]), 0.1

gaps = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
weights = jnp.exp(-0.5 * (gaps / 0.6) ** 2)
blur = weights / weights.sum(1, keepdims=True)


def camera(x):
    """What would be seen without noise: a blur along both axes, and of that every other row."""
    return (blur @ x @ blur.T)[::2]


y = camera(truth) + true_sigma * jax.random.normal(jax.random.key(1), (4, 8))


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
    numpyro.sample("y", dist.Normal(camera(x), sigma).to_event(2), obs=y)


smc = nd.SMC(model, num_particles=512, num_chains=2)
smc.run(jax.random.key(0), y=y)
smc.print_summary(max_rows=2)

# %% [markdown]
# Compared with lesson 3 there is nothing new in the model but the shape. What takes longer is the
# network, and there are more levels: 64 coordinates that are tied together let a cloud go down in smaller
# steps only.
#
# ## Pictures of a posterior
#
# A posterior of images is not one image. Its mean is the best guess in squared error, its standard
# deviation says where the guess is unsure, and draws show what could have been.

# %% alt="The true digit, the rows that were seen, posterior mean, standard deviation and draws"
samples = smc.get_samples(group_by_chain=True)
seen = jnp.full((8, 8), jnp.nan).at[::2].set(y)
plots.plot_restoration(
    truth, seen, samples["x"], samples["sigma"], smc.result, true_noise=true_sigma
)
plt.show()

# %% [markdown]
# Is the standard deviation honest? Count how many pixels of the truth lie within the 90 % intervals of
# the draws. The prior's density has the noise of `t_min` on it, and so have its draws, so that the truth
# gets it too.

# %%
noise = energy.schedule.noise_level(jnp.asarray(energy.t_min))
noisy_truth = truth + noise * jax.random.normal(jax.random.key(2), (8, 8))
low, high = np.quantile(smc.get_samples()["x"], [0.05, 0.95], axis=0)
inside = (low < noisy_truth) & (noisy_truth < high)
print(f"resolution of the prior {noise:.3f}; pixels inside: {np.mean(inside):.0%}")

# %% [markdown]
# Somewhat fewer than nine in ten: the prior is a little surer of itself than it should be, as its
# [audit](../audit.md) says too. Intervals are as good as the prior.
#
# In a notebook an `SMC` shows itself: the summary, the verdict and the pictures of all sites.

# %%
smc

# %% [markdown]
# ## Exercises
#
# 1. Show the camera only the two top rows (`[:2]`). What do the draws agree on, and what not?
# 2. Put a contrast into the model, `dist.LogNormal(0.0, 0.5)`, that multiplies the ink `(x + 1) / 2`. Is
#    it identified?
# 3. Take a picture of your own, 8 by 8, of no digit at all. What does the posterior make of it, and does
#    the verdict object?
#
# Next: [7. Which one is it?](07-comparing.md). The same with a hidden block and an unknown contrast:
# `examples/restore_digit.py`.
