"""The evidence under the law of the flow's map, by number of steps, for data between modes.

The model is `eight_dimensional(3, sigma=0.3)` of the tests. With $q$ the push-forward of the standard normal
by the map and $p$ the prior, the ratio of evidences is the mean of $q(x) / p(x)$ over the exact posterior,
which is a mixture of Gaussians. $q$ is from the inverse of the map, by Newton's method, and its Jacobian;
points at which it does not converge are left out. The last row is `probability_flow`, an adaptive solve.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np
from closed_form import eight_dimensional
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from numpyro_diffusion.density import from_noise, probability_flow, to_noise

jax.config.update("jax_enable_x64", True)


def posterior_draws(problem, num):
    """Exact draws, by component."""
    rng, h, size = np.random.default_rng(0), problem.operator, len(problem.data)
    noise = float(problem.prior.schedule.noise_level(jnp.asarray(problem.prior.t_min)))
    log_weights, laws = [], []
    for w, m, cov in zip(problem.weights, problem.means, problem.covariances, strict=True):
        s = cov + noise**2 * np.eye(len(m))
        v = h @ s @ h.T + problem.sigma**2 * np.eye(size)
        gain, residual = np.linalg.solve(v, h @ s).T, problem.data - h @ m
        log_weights.append(np.log(w) + multivariate_normal.logpdf(residual, np.zeros(size), v))
        laws.append((m + gain @ residual, s - gain @ h @ s))
    shares = np.exp(log_weights - logsumexp(log_weights))
    chosen = rng.choice(len(shares), size=num, p=shares)
    return jnp.asarray(np.stack([rng.multivariate_normal(*laws[k]) for k in chosen]))


def log_density_of_map(prior, x, start, num_steps):
    """Log density of the push-forward at points, NaN where the map's inverse is not found."""
    to_data = lambda z: from_noise(prior, z, num_steps=num_steps)

    def one(x, z):
        for _ in range(5):
            z = z - jnp.linalg.solve(jax.jacrev(to_data)(z), to_data(z) - x)
        log_det = jnp.linalg.slogdet(jax.jacrev(to_data)(z))[1]
        value = jnp.sum(jax.scipy.stats.norm.logpdf(z)) - log_det
        return jnp.where(jnp.max(jnp.abs(to_data(z) - x)) < 1e-6, value, jnp.nan)

    return jax.jit(jax.vmap(one))(x, start)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    problem = eight_dimensional(3, sigma=0.3)
    prior, t = problem.prior, jnp.asarray(problem.prior.t_min)
    x = posterior_draws(problem, 10 if options.tiny else 150)
    log_p = jax.vmap(lambda u: prior.log_density(u, t))(x)
    start = jax.vmap(lambda x: to_noise(prior, x, num_steps=128))(x)
    rows = []
    for steps in (8, 16, 32, None):
        if steps is None:
            log_q = probability_flow(prior, x).value
        else:
            log_q = log_density_of_map(prior, x, start, steps)
        gaps = np.asarray(log_q - log_p)
        gaps = gaps[np.isfinite(gaps)]
        ratio = np.exp(gaps)
        error = ratio.std(ddof=1) / ratio.mean() / len(ratio) ** 0.5
        row = [steps or "adaptive", len(ratio), f"{np.log(ratio.mean()):+.4f} ± {error:.4f}"]
        rows.append([*row, f"{np.median(np.abs(gaps)):.4f}", f"{np.abs(gaps).max():.4f}"])
    columns = ["steps", "points", "log evidence, error", "median error of log p", "largest"]
    _table.emit("flow_steps", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
