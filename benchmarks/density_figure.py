"""The picture of `docs/densities.md`: error of the log density against evaluations of the score.

A mixture in the plane at a typical point, root mean square error over 300 repeats. With d/2t in the place of
the noise the variance is infinite: more evaluations do not help, and another 300 repeats give another curve.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from density import draws, literal, mixture

import numpyro_diffusion as nd

ROOT = Path(__file__).parent.parent
REPEATS, SIZES = 300, 2 ** np.arange(4, 14)


def running(prior, x, matched: bool):
    """RMSE of means of ever more single terms, shape `(len(SIZES),)`."""
    one = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: literal(prior, x, key, matched, 1), keys, batch_size=4096
        )
    )
    values = one(jax.random.split(jax.random.key(3), REPEATS * SIZES[-1]))
    means = np.cumsum(np.asarray(values).reshape(REPEATS, -1), 1)[:, SIZES - 1] / SIZES
    exact = prior.log_density(x, jnp.asarray(prior.t_min))
    return np.sqrt(np.mean((means - np.asarray(exact)) ** 2, 0))


def ours(prior, x):
    exact, errors, costs = prior.log_density(x, jnp.asarray(prior.t_min)), [], []
    for times, pairs in (
        (4, 2),
        (8, 2),
        (8, 4),
        (16, 4),
        (16, 8),
        (32, 8),
        (32, 16),
        (64, 16),
        (64, 32),
        (128, 32),
    ):
        estimator = nd.density.ScoreFormula(
            nd.density.Stratified(times), nd.density.Mirrored(pairs)
        )
        found = estimator(prior, jnp.tile(x, (REPEATS, 1)), jax.random.key(4))
        errors.append(np.sqrt(np.mean((np.asarray(found.value) - np.asarray(exact)) ** 2)))
        costs.append(2 * times * pairs)
    return costs, errors


def main() -> None:
    prior = mixture(2)
    x = draws(prior, jax.random.key(2), 1)[0]
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axis.loglog(
        SIZES, running(prior, x, False), "x-", color="black", label="the formula as printed"
    )
    axis.loglog(SIZES, running(prior, x, True), "s-", color="#8a8a8a", label="noise matched")
    axis.loglog(*ours(prior, x), "o-", color="#30506d", label="score_formula")
    axis.set(xlabel="evaluations of the score", ylabel="RMSE of log p(x), nats")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.68))
    path = ROOT / "docs" / "images" / "density-literal.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
