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
truth, label = jnp.asarray(images[13]), labels[13]
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
# ## Two runs, two evidences
#
# Now with half of the image hidden. Image and noise level are integrated out, by a run for each label:


# %%
def given(label, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(digits.given(label)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(x[:4], sigma).to_event(2), obs=y)


runs = {}
for candidate in (3, 8):
    runs[candidate] = nd.SMC(given, num_particles=256, num_chains=2)
    runs[candidate].run(jax.random.key(3), jnp.asarray(candidate), y=y)
    run = runs[candidate]
    print(f"log p(y | {candidate}) = {run.log_evidence:.2f} +- {run.log_evidence_error:.2f}")
factor = runs[3].log_evidence - runs[8].log_evidence
error = np.hypot(runs[3].log_evidence_error, runs[8].log_evidence_error)
print(f"log Bayes factor of 3 against 8: {factor:.2f} +- {error:.2f} nats")

# %% [markdown]
# A factor means something beside its error only: one of half a nat with an error of half a nat says
# nothing.
#
# ## The label as a site
#
# In a probabilistic program the label can be a site as well. `nd.SMC` sums discrete sites out: each
# particle carries all labels at once, and draws its own in the end.

# %%
candidates = jnp.array([2, 3, 8, 9])


def unknown(y=None):
    which = numpyro.sample("which", dist.Categorical(jnp.full(4, 0.25)))
    given(candidates[which], y)


smc = nd.SMC(unknown, num_particles=128, num_chains=2)
smc.run(jax.random.key(4), y=y)
for digit, p in zip(candidates, smc.discrete_probabilities()["which"], strict=True):
    print(f"p({digit} | y) = {p:.2f}")

# %% alt="The four rows that were seen, the true digit, and six draws, each titled by its label"
draws = smc.get_samples()
some = np.linspace(0, len(draws["which"]) - 1, 6).round().astype(int)
shown = [jnp.full((8, 8), jnp.nan).at[:4].set(y), truth, *np.asarray(draws["x"])[some]]
titles = ["seen", f"truth: {label}", *(f"a {candidates[draws['which'][i]]}" for i in some)]
plots.plot_images(shown, titles, limits=(-1, 1))
plt.show()

# %% [markdown]
# The two ways agree as far as their errors go. Runs compare any models, with other sites and other noise;
# a site is for alternatives within one model, and its probabilities average everything else.
#
# ## Exercises
#
# 1. From the two evidences, what is the probability of a 3 if only 3 and 8 are possible? Does the site
#    agree?
# 2. Show five rows instead of four. How much does the answer sharpen?
# 3. Compare a model that knows `sigma = 0.3` with the one above. Which evidence is larger, and why?
#
# Next: [8. Priors that are put together](08-composing.md). More: [Classifying and
# comparing](../classifying-and-comparing.md), [Discrete sites](../discrete-sites.md).
