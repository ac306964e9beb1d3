# %% [markdown]
# # 7. Which one is it?
#
# The evidence $p(y \mid M)$ says how well a model $M$ predicted the data, before it saw them. Ratios of
# evidences turn prior odds into posterior odds. Here the models are labels: of a noisy digit only the top
# is seen. Which digit is it?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

digits = nd.load_pretrained("digits-8x8-labels")
images, labels = nd.pretrained.load_digits("test")
truth, label = jnp.asarray(images[1]), labels[1]
y = (truth + 0.3 * jax.random.normal(jax.random.key(1), (8, 8)))[:4]

# %% [markdown]
# `digits.given(label)` is the prior of one digit. Comparing labels needs normalised densities, since a
# network may add any constant to any label; this prior knows its ten normalisers.
#
# ## A clean image first
#
# With the whole image seen, the evidence of a label is the density of the image, and no sampler is
# needed.

# %%
noise = digits.schedule.noise_level(jnp.asarray(digits.t_min))
whole = truth + noise * jax.random.normal(jax.random.key(2), (8, 8))
found = nd.density.classify(
    digits, whole[None], jnp.arange(10), estimator=nd.density.NormalizedEnergy()
)
print("p(label | image):", np.exp(found.log_probs[0]).round(3), "and it is a", label)

# %% [markdown]
# ## Half an image: an evidence a label
#
# Now with half of the image hidden. Image and noise level are integrated out, by a run for each label
# that comes into question:


# %%
def given(label, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(digits.given(label)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(x[:4], sigma).to_event(2), obs=y)


candidates = [2, 3, 8, 9]
log_evidence, errors, restored = [], [], []
smc = nd.SMC(given, num_particles=256, num_chains=2)
for candidate in candidates:
    smc.run(jax.random.key(3), jnp.asarray(candidate), y=y)
    log_evidence.append(smc.log_evidence)
    errors.append(smc.log_evidence_error)
    restored.append(smc.get_samples()["x"].mean(0))
    print(f"log p(y | {candidate}) = {log_evidence[-1]:.2f} +- {errors[-1]:.2f}")
for candidate, p in zip(candidates, jax.nn.softmax(jnp.array(log_evidence)), strict=True):
    print(f"p({candidate} | y) = {p:.3f}")

# %% alt="The four rows that were seen, the true digit, and the mean image if it were a 2, 3, 8 or 9"
seen = jnp.full((8, 8), jnp.nan).at[:4].set(y)
titles = ["seen", f"truth: {label}", *(f"if a {candidate}" for candidate in candidates)]
plots.plot_images([seen, truth, *restored], titles, limits=(-1, 1))
plt.show()

# %% [markdown]
# A difference of log evidences means something beside its error only: half a nat with an error of half a
# nat says nothing. `nd.ppl.choice_evidences` makes these runs in one call.
#
# ## A choice as a site
#
# Where a choice does not change the prior it can be a site of the model, and costs no runs of its own.
# Two numbers with a prior like that of lesson 2 are measured by an instrument that may be wired the wrong
# way round. `nd.SMC` sums discrete sites out: each particle carries both answers, and draws its own in
# the end.

# %%
weights = np.array([0.3, 0.7])
means = np.array([[-2.0, 0.5], [1.0, -0.5]])
covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]])
prior = nd.GaussianMixture(weights, means, covariances)


def wired(z=None):
    reversed_ = numpyro.sample("reversed", dist.Bernoulli(0.3))
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    numpyro.sample("z", dist.Normal(jnp.where(reversed_, -x, x), 0.3).to_event(1), obs=z)


z = jnp.array([1.6, -0.6])
smc = nd.SMC(wired, num_particles=512, num_chains=4)
smc.run(jax.random.key(4), z=z)

spread = covariances + (
    0.3**2 + prior.schedule.noise_level(jnp.asarray(prior.t_min)) ** 2
) * np.eye(2)
likelihood = [
    weights @ np.exp(dist.MultivariateNormal(sign * means, spread).log_prob(z)) for sign in (1, -1)
]
exact = 0.3 * likelihood[1] / (0.7 * likelihood[0] + 0.3 * likelihood[1])
print(f"p(reversed) = {smc.discrete_probabilities()['reversed'][1]:.3f} exactly {exact:.3f}")

# %% [markdown]
# The two agree to a few hundredths, which four clouds of 512 particles leave open. Runs compare any
# models, with other sites and other noise. A site is for alternatives within one model, and its
# probabilities average over everything else that is unknown.
#
# ## Exercises
#
# 1. Show five rows instead of four. How much does the answer sharpen?
# 2. For which `z` is nothing learned about the wiring? Check it with a run.
# 3. Compare a model that knows `sigma = 0.3` with the one above. Which evidence is larger, and why?
#
# Next: [8. Priors that are put together](08-composing.md). More: [Classifying and
# comparing](../classifying-and-comparing.md), [Discrete sites](../discrete-sites.md).
