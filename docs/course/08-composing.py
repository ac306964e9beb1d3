# %% [markdown]
# # 8. Priors that are put together
#
# Energies add, and their distributions multiply: *this and that*. Guided samplers of images add scores
# for that purpose, and hope. This lesson shows what goes wrong, in a case where everything is known, and
# what weights change.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.4, 0.0], [0.0, 0.3]]])
one = nd.GaussianMixture([0.3, 0.7], [[-2.0, 1.0], [1.0, 0.0]], covariances)
other = nd.GaussianMixture([0.6, 0.4], [[-1.0, 1.0], [2.0, 0.5]], covariances)
both = one + other
both

# %% [markdown]
# ## The truth
#
# The product of two mixtures is a mixture again: each pair of components gives one, with a weight that
# says how well the two overlap. The sum of these weights is the normaliser of the product.

# %%
noise2 = float(one.schedule.noise_level(jnp.asarray(one.t_min))) ** 2
log_weights, centres = [], []
for w, m, s in zip(one.weights, one.means, covariances + noise2 * np.eye(2), strict=True):
    for v, n, r in zip(other.weights, other.means, covariances + noise2 * np.eye(2), strict=True):
        overlap = dist.MultivariateNormal(n, s + r).log_prob(m)
        log_weights.append(jnp.log(w * v) + overlap)
        centres.append(m + s @ np.linalg.solve(s + r, n - m))
log_z = jax.nn.logsumexp(jnp.stack(log_weights))
shares = np.exp(np.array(log_weights) - log_z)
exact_mean = shares @ np.array(centres)
print(f"log normaliser {log_z:.3f}, mean {exact_mean.round(3)}")

# %% [markdown]
# ## Adding scores, without weights and with
#
# Noising and multiplying do not commute: the sum of two noised scores is not the score of the noised
# product. `nd.schemes.unweighted` runs the reverse diffusion with it all the same, as guidance does. The
# scheme inside, with its weights, corrects for it.

# %%
scheme = nd.ReverseDiffusion(levels=60)
bridge = nd.from_energy(both)
heuristic = nd.schemes.unweighted(nd.ReverseDiffusion(levels=60, moves=0))
runs = {
    "added scores": nd.run_smc(jax.random.key(0), heuristic(bridge), num_particles=1000),
    "weighted": nd.run_smc(jax.random.key(0), scheme(bridge), num_particles=1000),
}
clouds = {}
for name, run in runs.items():
    weights = jax.nn.softmax(run.log_weights)
    x = np.asarray(run.positions["x"])
    clouds[name] = x[jax.random.choice(jax.random.key(1), len(x), (600,), p=weights)]
    print(f"{name:13s} exact: {run.exact!s:5s}  mean {(weights @ x).round(3)}  ", end="")
    print(f"log normaliser {run.log_evidence:.3f}")

# %% alt="Draws of both ways over contours of the product: added scores miss its mass"
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), sharex=True, sharey=True)
axis = np.linspace(-4, 4, 80)
grid = np.stack(np.meshgrid(axis, axis), -1)
at = jnp.asarray(one.t_min)
log_density = -jax.vmap(jax.vmap(lambda x: both.energy(x, at)))(jnp.asarray(grid))
for ax, (name, draws) in zip(axes, clouds.items(), strict=True):
    ax.contour(axis, axis, log_density - log_density.max(), levels=[-6, -4, -2, -0.5], alpha=0.6)
    ax.plot(*draws.T, ".", ms=2)
    ax.set(title=name, xlim=(-4, 4), ylim=(-1.5, 2.5))
plt.show()

# %% [markdown]
# The heuristic has no evidence, and says so. It looks well enough, which is the trouble with it.
#
# ## The same with data
#
# The likelihood is one more factor. *Diffusion posterior sampling* (DPS) steers a reverse diffusion by
# the likelihood of the denoised mean, and keeps no account of it. `nd.Twisted` takes the same steps and
# weighs them.


# %%
def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(one))
    numpyro.sample("y", dist.Normal(x[1], 0.3), obs=y)


y = 0.5
spread = np.sqrt(covariances[:, 1, 1] + noise2 + 0.3**2)
joint = np.asarray(one.weights) * np.exp(dist.Normal(one.means[:, 1], spread).log_prob(y))
print(f"exactly   left {joint[0] / joint.sum():.3f}, log evidence {np.log(joint.sum()):.3f}")
for name, scheme in {
    "DPS": nd.schemes.unweighted(nd.Twisted(levels=60)),
    "weighted": nd.Twisted(levels=60),
}.items():
    smc = nd.SMC(model, scheme, num_particles=512, num_chains=2)
    smc.run(jax.random.key(2), y=y)
    left = (smc.get_samples()["x"][:, 0] < -0.5).mean()
    print(f"{name:9s} left {left:.3f}, log evidence {smc.log_evidence:.3f}")

# %% [markdown]
# ## Exercises
#
# 1. Give the added scores 500 levels. Does the mean come closer to the exact one?
# 2. `one / 0.5` is `one` at half the temperature. What are its modes' shares? (Square the densities,
#    component by component.)
# 3. `nd.cfg(one, other, 2.0)` is guidance, $p_1^{-1} p_2^2$. Why might that have no normaliser, and does
#    the package warn?
#
# Next: [9. More data, more objects, more time](09-scale.md). More: [Composition and
# control](../composition.md), [Guidance heuristics](../heuristics.md).
