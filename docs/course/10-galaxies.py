# %% [markdown]
# # 10. Galaxies
#
# The last lesson puts everything together. Two galaxies overlap on the sky: how bright is each? The prior
# is learned from images of single galaxies, the noise and the brightness of the sky are unknown, and the
# answer is a report that others can read.
#
# The galaxies are simulated, as discs of random size, shape and brightness, on stamps of 8 by 8 pixels,
# so that the lesson takes minutes and the truth is known. [Weights of others](../foreign-weights.md) has
# a network of real galaxies.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

rows, columns = jnp.mgrid[:8, :8] - 3.5


def galaxy(key):
    """A disc whose light falls off exponentially; its brightest pixel is about 1."""
    keys = jax.random.split(key, 5)
    size = jnp.exp(0.2 + 0.25 * jax.random.normal(keys[0]))
    angle = jnp.pi * jax.random.uniform(keys[1])
    ratio = jax.random.uniform(keys[2], minval=0.4, maxval=1.0)
    shift = 0.3 * jax.random.normal(keys[3], (2,))
    u, v = columns - shift[0], rows - shift[1]
    along = u * jnp.cos(angle) + v * jnp.sin(angle)
    across = (v * jnp.cos(angle) - u * jnp.sin(angle)) / ratio
    bright = 1.6 * jnp.exp(0.4 * jax.random.normal(keys[4]))
    return bright * jnp.exp(-jnp.sqrt(along**2 + across**2 + 0.3) / size)


train = np.asarray(jax.vmap(galaxy)(jax.random.split(jax.random.key(0), 4000)))

# %% alt="Eight simulated galaxies: bright and faint discs of different size and tilt"
plots.plot_images(train[:8], limits=(0, 1))
plt.show()

# %% [markdown]
# ## The prior

# %%
net = nd.nets.ResidualMLP(jax.random.key(1), (8, 8), width=128)
start = nd.ProperEnergy.from_data(net, train, noise_min=0.03, noise_max=10.0)
result = nd.fit(jax.random.key(2), start, train, steps=2000)
print(result.verdict)

# %% [markdown]
# ## The scene
#
# The second galaxy lies four columns to the right of the first. What is seen is the sum of both, the sky,
# and noise.

# %%
prior = result.energy
truth = jax.vmap(galaxy)(jax.random.split(jax.random.key(7), 2))
true_sky, true_sigma = 0.1, 0.05


def scene(left, right):
    return jnp.zeros((8, 12)).at[:, :8].add(left).at[:, 4:].add(right)


noise = true_sigma * jax.random.normal(jax.random.key(4), (8, 12))
image = scene(*truth) + true_sky + noise


def model(image=None):
    left = numpyro.sample("left", nd.DiffusionPrior(prior))
    right = numpyro.sample("right", nd.DiffusionPrior(prior))
    sky = numpyro.sample("sky", dist.Normal(0.0, 0.2))
    sigma = numpyro.sample("sigma", dist.LogNormal(-3.0, 1.0))
    numpyro.deterministic("flux", jnp.stack([left.sum(), right.sum()]))
    noisy = dist.Normal(scene(left, right) + sky, sigma).to_event(2)
    numpyro.sample("image", noisy, obs=image)


smc = nd.SMC(model, num_particles=512, num_chains=2)
smc.run(jax.random.key(5), image=image)
smc.print_summary(max_rows=2)

# %% [markdown]
# The verdict has one reservation, which lesson 4 has taught to read: for so many levels the clouds are
# small, and the evidence is more likely too low than too high. For fluxes it will do; to compare models,
# take more particles.
#
# ## Pictures

# %% alt="The scene, both true galaxies and, beside each, its posterior mean and two draws that look like it"
samples = smc.get_samples()
shown, titles = [image], ["seen"]
for name, true in zip(("left", "right"), truth, strict=True):
    draws = np.asarray(samples[name])
    shown += [true, draws.mean(0), draws[0], draws[len(draws) // 2]]
    titles += [f"{name}: truth", "mean", "a draw", "another"]
plots.plot_images(shown[1:], titles[1:], columns=4, limits=(0, 1))
plots.plot_images(shown[:1], titles[:1], limits=(0, 1.2))
plt.show()

# %% [markdown]
# ## A report
#
# `to_arviz` puts everything into the container that the rest of the field reads: posterior, evidence,
# sample statistics, predictions. From here on it is ArviZ.

# %%
data = smc.to_arviz()
az.summary(data, var_names=["flux", "sky", "sigma"], round_to=3)

# %%
fluxes, sky = np.asarray(samples["flux"], float), np.asarray(samples["sky"], float)
print("true fluxes", np.asarray(truth.sum((1, 2))).round(2), "sky", true_sky, "sigma", true_sigma)
print("correlations of left flux, right flux and sky:")
print(np.corrcoef([*fluxes.T, sky]).round(2))

# %% alt="Posterior of both fluxes as a cloud of points, with the true pair inside"
figure, ax = plt.subplots(figsize=(3.6, 3))
ax.plot(*fluxes.T, ".", ms=2)
ax.plot(*np.asarray(truth.sum((1, 2))), "k+", ms=12, mew=2)
ax.set(xlabel="flux of the left galaxy", ylabel="flux of the right galaxy")
plt.show()

# %% [markdown]
# Each flux is known to about half a unit, and the errors are not independent: what is sky is not galaxy,
# so both fluxes rise where the sky is taken to be darker. A single best image would not have told that,
# and an error bar for each flux alone would have hidden it.
#
# ## Save the report, and cite

# %%
data.to_netcdf("galaxies.nc")
print(nd.diagnostics.citation(smc)[:300], "...")

# %% [markdown]
# ## Exercises
#
# 1. Audit the prior as in lesson 5 before you believe any of this. Which of its findings would matter for
#    a flux?
# 2. Move the second galaxy to two columns from the first. What happens to the correlation?
# 3. Is there a second galaxy at all? Compare the evidence with that of a model of one (lesson 7).
#
# That was the course. Where to now: the [gallery](../gallery.md) has every example with its picture,
# [Choosing a sampler](../choosing-a-sampler.md) and [Methods](../methods.md) all there is, [Weights of
# others](../foreign-weights.md) brings your own network.
