"""Split samplers and their laws: a ring-shaped datum under a prior of three ridges.

The distance from the origin is measured, with noise, so the posterior lies where a ring crosses the ridges.
PnP-DM draws from the prior and from the data in turn, each in a neighbourhood of the other: its draws are
blurred by the size of that neighbourhood, and weights undo it. DAPS with the score takes what a noised point
says of the clean one for a Gaussian; with the energy its draws are the posterior's own. Quadrature says
how far each is from it.

    python examples/split_gibbs.py            about a minute on two cores
    python examples/split_gibbs.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import numpyro_diffusion as nd

prior = nd.GaussianMixture(
    [0.3, 0.3, 0.4],
    [[-1.8, 0.0], [0.0, 1.2], [1.6, -0.6]],
    [[[0.3, 0.25], [0.25, 0.5]], [[0.5, -0.2], [-0.2, 0.2]], [[0.2, 0.1], [0.1, 0.4]]],
)


def log_likelihood(x):
    """A distance of 1.6, known to 0.15."""
    return -0.5 * ((jnp.sqrt(jnp.sum(x**2) + 1e-6) - 1.6) / 0.15) ** 2


SAMPLERS = {
    "PnP-DM, as it is": nd.samplers.PnPDM(0.4, weights="none"),
    "PnP-DM, weighted": nd.samplers.PnPDM(0.15),
    "DAPS, score": nd.samplers.DAPS(prior="score"),
    "DAPS, energy": nd.samplers.DAPS(0.3, 1.0, 3),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few draws, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    chains, draws, burn_in = (10, 5, 10) if options.tiny else (200, 50, 60)

    side = np.linspace(-4, 4, 240)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1))
    t = jnp.asarray(prior.t_min)
    log_p = jax.vmap(jax.vmap(lambda u: prior.log_density(u, t) + log_likelihood(u)))(grid)
    density = np.exp(np.asarray(log_p))
    density = density / density.sum()
    # Bins of 0.2 a side, for a distance between laws that a reader can check by eye.
    bins = np.linspace(-4, 4, 41)
    exact, *_ = np.histogram2d(*np.asarray(grid).reshape(-1, 2).T, bins, weights=density.ravel())

    bridge = nd.from_energy(prior, log_likelihood)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharey=True, layout="constrained")
    for i, (axis, (name, sampler)) in enumerate(zip(axes, SAMPLERS.items(), strict=True)):
        key = jax.random.fold_in(jax.random.key(options.seed), i)
        found = nd.samplers.split_gibbs(
            key, bridge, sampler, num_chains=chains, num_draws=draws, num_burn_in=burn_in
        )
        x = np.asarray(found.positions["x"]).reshape(-1, 2)
        weights = np.asarray(jax.nn.softmax(found.log_weights.ravel()))
        shares, *_ = np.histogram2d(*x.T, bins, weights=weights)
        distance = 0.5 * np.abs(shares - exact).sum()
        tail = np.mean(
            nd.diagnostics.pareto_k(found._replace(log_weights=found.log_weights.ravel()))
        )
        heavy = "" if np.isnan(tail) else f", k-hat {tail:.2f}"
        print(f"{name}: total variation {distance:.2f}{heavy}; {found.target}")
        chosen = nd.smc.resample_equal(key, jnp.log(weights), min(1500, len(x)))
        levels = density.max() * np.array([0.05, 0.3, 0.55, 0.8])
        axis.contour(side, side, density, levels=levels, colors="#c8553d", linewidths=0.7)
        axis.scatter(*x[np.asarray(chosen)].T, s=3, color="#30506d", alpha=0.4, linewidths=0)
        title = f"{name}\ntotal variation {distance:.2f}"
        axis.set(title=title, xlim=(-3, 3), ylim=(-2.6, 3), aspect="equal")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "split_gibbs.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
