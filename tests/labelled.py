r"""Classes with a law in closed form, held by an energy that takes labels like any trained one.

Class $c$ is a mixture of isotropic Gaussians in the plane, $\sum_k w_{ck} \mathcal{N}(m_{ck}, v_{ck} I)$,
noised exactly. The backbone computes it, plus $c(s, \text{label})$, any function of noise level and label,
which no score sees.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

WEIGHTS = np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
MEANS = np.array(
    [[[-1.2, 0.4], [0.6, 1.0]], [[0.9, -0.6], [-0.3, -1.1]], [[1.5, 1.2], [-1.5, -0.9]]]
)
VARIANCES = np.array([[0.3, 0.5], [0.4, 0.25], [0.6, 0.35]])


class Exact(eqx.Module):
    """A backbone whose `ScalarEnergy` is that of the classes."""

    weights: jax.Array
    means: jax.Array
    variances: jax.Array
    size: jax.Array

    def offset(self, log_s, label):
        return self.size * (jnp.sin(2 * log_s + label) + 1.5 * label - 1)

    def log_density(self, u, s, label):
        v = self.variances[label] + s**2
        squares = jnp.sum((u - self.means[label]) ** 2, -1)
        terms = jnp.log(self.weights[label]) - 0.5 * squares / v - jnp.log(2 * jnp.pi * v)
        return jax.nn.logsumexp(terms)

    def __call__(self, w, c_noise, label):
        log_s = 4 * c_noise
        s = jnp.exp(log_s)
        u = w * jnp.sqrt(1 + s**2)
        rest = (
            0.5 * jnp.sum(w**2) + jnp.log(2 * jnp.pi * (1 + s**2)) + self.log_density(u, s, label)
        )
        return jnp.zeros(2).at[0].set(s * (rest - self.offset(log_s, label)))


def classes(size: float = 0.0, num: int = 2) -> nd.energies.ScalarEnergy:
    """The first classes; `size` is that of the offset."""
    net = Exact(
        *(jnp.asarray(a[:num]) for a in (WEIGHTS, MEANS, VARIANCES)), size=jnp.asarray(size)
    )
    return nd.energies.ScalarEnergy(net, np.zeros(2), np.ones(2))


def log_densities(energy, x) -> np.ndarray:
    """Exact log densities of the classes at `t_min`, shape `(num, num_labels)`, by SciPy."""
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal

    s = float(energy.schedule.noise_level(jnp.asarray(energy.t_min)))
    found = []
    for label in range(len(energy.net.weights)):
        terms = [
            np.log(w) + multivariate_normal.logpdf(x, m, (v + s**2) * np.eye(2))
            for w, m, v in zip(WEIGHTS[label], MEANS[label], VARIANCES[label], strict=True)
        ]
        found.append(logsumexp(np.array(terms), 0))
    return np.array(found).T


def draws(num: int, num_labels: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clean points and their labels."""
    rng = np.random.default_rng(seed)
    label = np.arange(num) % num_labels
    part = np.array([rng.choice(2, p=WEIGHTS[c]) for c in label])
    noise = rng.normal(size=(num, 2)) * np.sqrt(VARIANCES[label, part])[:, None]
    return MEANS[label, part] + noise, label
