# %% [markdown]
# # 4. When to believe a run
#
# A sampler always returns numbers. This lesson breaks a run on purpose, reads what it says, mends it, and
# ends with what no diagnostic can see.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

prior = nd.GaussianMixture(
    weights=[0.1, 0.9],
    means=[[-2.0, 0.5, 0.0], [1.0, -0.5, 0.0]],
    covariances=[0.05 * np.eye(3), 0.05 * np.eye(3)],
)


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
    numpyro.sample("y", dist.Normal(jnp.abs(x), sigma).to_event(1), obs=y)


y = jnp.array([1.9, 0.52, 0.01])

# %% [markdown]
# Only sizes are measured, not signs. The component on the left, with a tenth of the prior's mass, fits
# the data where `sigma` is small; the one on the right can do with a larger `sigma`. The posterior has
# some of both.
#
# ## Too few

# %%
poor = nd.SMC(model, nd.Annealed(levels=6, moves=1), num_particles=24, num_chains=3)
poor.run(jax.random.key(0), y=y)
poor.print_summary()

# %% [markdown]
# The sentences below the table are the *verdict*: what went wrong, how badly, what to try, and where it
# is explained. This is where they come from.

# %% alt="The poor run by level: the effective sample size falls steeply, few families are left"
plots.plot_levels(poor.result)
plt.show()

# %% [markdown]
# * **Effective sample size.** As a share of the particles, after each weighing. It falls where a level
#   asks for more than the particles can give, and rises to 1 where the cloud is resampled.
# * **Families.** Resampling copies heavy particles. *Starting particles with offspring* counts how many
#   of those that started are ancestors of what is there in the end. A handful of families agree with each
#   other more than with the truth.
# * **Clouds.** Three clouds that never met are three answers. If they differ by more than their errors,
#   errors are too small.
#
# ## Enough
#
# The remedies are those that the verdict names: let the pilot choose the levels, and take more particles.

# %%
good = nd.SMC(model, num_particles=512, num_chains=4)
good.run(jax.random.key(0), y=y)
good.print_summary()

# %% alt="The good run by level: shares stay high and many families are left in each cloud"
plots.plot_levels(good.result)
plt.show()

# %%
for name, run in {"poor": poor, "good": good}.items():
    left = np.asarray(run.get_samples(group_by_chain=True)["x"][..., 0] < 0).mean(1)
    print(f"{name}, cloud by cloud")
    print("  share of the left mode ", left.round(2))
    print("  log evidence           ", np.asarray(run.result.log_evidence, float).round(2))
    print("  families at the end    ", run.result.trace.unique_ancestors[:, -1])

# %% [markdown]
# ## What a verdict cannot see
#
# "Nothing to worry about" is a statement about *what the particles have seen*. It promises nothing about
#
# * a mode that no particle reached. The poor run has nobody on the left. Its complaints are of levels and
#   of tails, and none of them says that; only another run could tell;
# * a rare mode that few particles reached. In the good run the share of the left differs by several times
#   from cloud to cloud, while the evidence, of which it is a few per cent, hardly does. Where the answer
#   hangs on a rare mode, look at it cloud by cloud, as here, and take more particles;
# * a prior that is wrong. The posterior is then wrong in peace. The [audit](../audit.md), lesson 5, asks
#   the prior itself;
# * a model that is wrong. Predictions against data are the test, as in any Bayesian analysis.
#
# Last, every result says what it is a result *of*. Samplers that are not exact say so here:

# %%
print(good.result.exact, "-", good.result.target)

# %% [markdown]
# ## Exercises
#
# 1. Find the smallest `num_particles` at which the verdict has no complaint. How does the time grow with
#    it?
# 2. Keep six levels but take 2,000 particles. Does the verdict change its mind, and is the evidence
#    right?
# 3. Run the good sampler with ten keys. Is `log_evidence_error` about the spread of the ten evidences?
#
# Next: [5. A prior of your own](05-training.md). Every sentence of a verdict: [Messages and
# verdicts](../faq.md).
