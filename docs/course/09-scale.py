# %% [markdown]
# # 9. More data, more objects, more time
#
# Real analyses grow: data come in batches, the clock of the batch system runs, there are a thousand
# objects instead of one. Four tools, all on a small model so that they can be checked.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

prior = nd.GaussianMixture([0.3, 0.7], [[-1.5], [0.8]], [[[0.09]], [[0.25]]])


def model(y, seen):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.8))
    numpyro.sample("y", dist.Normal(x[0], sigma).mask(seen).to_event(1), obs=y)


y = jnp.array([0.9, 0.4, 1.1, 0.7, 1.3, 0.8, 0.2, 1.0])


def until(n):
    """All data, of which the first `n` have come in."""
    return y, jnp.arange(8) < n


# %% [markdown]
# ## A budget
#
# `max_evaluations` (or `max_seconds`) stops a run at a level. What is there then is a valid cloud of a
# distribution on the way, which is no posterior, and it says so. `resume` goes on.

# %%
smc = nd.SMC(model, num_particles=256, num_chains=4, max_evaluations=50_000)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    smc.run(jax.random.key(0), *until(4))
for warning in told:
    print(warning.message)
while not smc.result.completed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smc.resume()
print(f"then: log evidence {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f}")

# %% [markdown]
# With `checkpoint="run.safetensors"` the run is written to a file as it goes. If the process is killed,
# the same script goes on from there and ends with the same bits.
#
# ## More data
#
# The other four data come in. `update` takes the cloud from the old posterior to the new one, and says
# how well the old one had predicted the batch.

# %%
smc.update(*until(8))
(step,) = smc.increments
print(f"log p(new | old) = {step.log_evidence:.3f} +- {step.error:.3f}")
print(f"log p(all)       = {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f}")

# %% [markdown]
# A sum over `sigma` on a grid, with a formula for `x`, says what it ought to be:

# %%
noise2 = float(prior.schedule.noise_level(jnp.asarray(prior.t_min))) ** 2
grid = jnp.linspace(0.01, 6.0, 3000)
law = dist.LogNormal(-1.0, 0.8)


def exact(data):
    def given(sigma):
        terms = []
        for w, mean, variance in zip([0.3, 0.7], [-1.5, 0.8], [0.09, 0.25], strict=True):
            cov = variance + noise2 + sigma**2 * jnp.eye(len(data))
            normal = dist.MultivariateNormal(jnp.full(len(data), mean), cov)
            terms.append(jnp.log(w) + normal.log_prob(data))
        return jax.nn.logsumexp(jnp.stack(terms))

    log_joint = jax.lax.map(given, grid) + law.log_prob(grid)
    return jax.nn.logsumexp(log_joint) + jnp.log(grid[1] - grid[0])


print(f"exactly {exact(y) - exact(y[:4]):.3f} and {exact(y):.3f}")

# %% [markdown]
# ## More objects
#
# Sixteen objects, each with a diffusion variable of its own, measured twice by one instrument of unknown
# noise. One cloud over all of them needs a weight that is a product of sixteen; with hundreds nearly
# every particle dies. `nd.ppl.PlateSMC` samples each object alone and puts them together under what they
# share, at a cost linear in their number. The model has a plate, and `split` names the arguments that it
# runs over.


# %%
def survey(pairs):
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.8))
    with numpyro.plate("objects", len(pairs)):
        x = numpyro.sample("x", nd.DiffusionPrior(prior))
        numpyro.sample("pairs", dist.Normal(x, sigma).to_event(1), obs=pairs)


rng = np.random.default_rng(1)
truth = np.where(rng.random(16) < 0.3, -1.5, 0.8) + rng.normal(size=16) * 0.4
pairs = jnp.asarray(truth[:, None] + 0.35 * rng.normal(size=(16, 2)))
plates = nd.ppl.PlateSMC(survey, nd.Annealed(levels=12), split=("pairs",), num_particles=256)
plates.run(jax.random.key(1), pairs)
plates.print_summary(max_rows=3)

# %% alt="Sixteen objects: 90 percent intervals of the posterior with the true values, most of them inside"
draws = np.asarray(plates.get_samples()["x"])[..., 0]
low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
order = np.argsort(truth)
figure, ax = plt.subplots(figsize=(5, 2.6))
ax.vlines(range(16), low[order], high[order], color="0.6")
ax.plot(range(16), middle[order], "o", ms=4, label="median")
ax.plot(range(16), truth[order], "kx", ms=5, label="truth")
ax.set(xlabel="object, in order of its true value", ylabel="x")
ax.legend()
plt.show()
print("noise level", plates.get_samples()["sigma"].mean().round(3), "true 0.35")

# %% [markdown]
# ## Many data sets, many devices
#
# `nd.ppl.Sampler(smc)` is a finished run as a pure function of key and data, to be mapped over data sets
# in one program; `devices=jax.devices()` spreads the particles over GPUs. Both are in [Large and long
# runs](../scale.md).
#
# ## Exercises
#
# 1. Call `smc.plan(jax.random.key(0), *until(4))` on a new `nd.SMC`: what would the run cost?
# 2. Update with the four data one by one. Do the four increments add up to the one above?
# 3. Sample the sixteen objects with `nd.SMC(survey, num_particles=512)`. How many families are left, and
#    which of the two evidences has the smaller error?
#
# Next: [10. Galaxies](10-galaxies.md). More: [New data](../new-data.md), [Plates](../plates.md).
