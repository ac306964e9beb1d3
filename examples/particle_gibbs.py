"""Four far modes and an unknown noise level: NUTS alone, and a particle Gibbs block beside NUTS.

A mixture in the plane is the prior of a point of which one noisy number is seen; the noise level is unknown.
Each chain of NUTS stays in the mode in which it starts. In the other run NUTS has the noise level alone, and
eight particles carry the point through the noise levels of the prior, where all modes are one.

    python examples/particle_gibbs.py            about two minutes on two cores
    python examples/particle_gibbs.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs, init_to_sample

import numpyro_diffusion as nd

WEIGHTS = np.array([0.2, 0.3, 0.4, 0.1])
MEANS = np.array([[-3.0, -2.5], [-2.5, 3.0], [3.0, 2.5], [2.5, -3.0]])
COVARIANCES = np.array(
    [np.diag([0.3, 0.2]), np.diag([0.2, 0.5]), np.diag([0.4, 0.2]), 0.3 * np.eye(2)]
)
prior = nd.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
DIRECTION, Y = np.array([0.25, 0.1]), 0.1


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.8))
    numpyro.sample("y", dist.Normal(DIRECTION @ x, sigma), obs=y)


def truth():
    """Mode probabilities by quadrature over the noise level."""
    sigma = np.linspace(0.0005, 5.0, 5001)[:, None]
    variance = sigma**2 + np.einsum("i,kij,j->k", DIRECTION, COVARIANCES, DIRECTION)
    gap = Y - MEANS @ DIRECTION
    p = WEIGHTS * np.exp(-0.5 * gap**2 / variance - 0.5 * (sigma / 0.8) ** 2) / np.sqrt(variance)
    return p.sum(0) / p.sum()


def shares(x):
    """How many draws are nearest to each mode, with a leading axis of chains."""
    mode = np.argmin(np.sum((x[..., None, :] - MEANS) ** 2, -1), -1)
    return (mode[..., None] == np.arange(4)).mean(1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few draws, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    size = 5 if options.tiny else 1000
    nuts = NUTS(model, init_strategy=init_to_sample)
    kernels = {
        "NUTS": nuts,
        "particle Gibbs and NUTS": Gibbs(
            [(nd.ParticleGibbs(model, num_particles=8), ["x"]), (nuts, None)]
        ),
    }
    exact, draws = truth(), {}
    print("exact mode probabilities    ", exact.round(3))
    for name, kernel in kernels.items():
        mcmc = MCMC(
            kernel,
            num_warmup=size // 2,
            num_samples=size,
            num_chains=4,
            chain_method=jax.vmap,
            progress_bar=False,
        )
        mcmc.run(jax.random.key(options.seed), jnp.asarray(Y))
        draws[name] = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
        print(f"{name:28}", shares(draws[name]).mean(0).round(3))
        for chain, one in enumerate(shares(draws[name])):
            print(f"  chain {chain:<20}", one.round(3))

    figure, axes = plt.subplots(
        1, 3, figsize=(9.6, 3.3), layout="constrained", width_ratios=(1, 1, 1.1)
    )
    colors = ["#30506d", "#c8553d", "#588157", "#b08968"]
    for axis, (name, x) in zip(axes, draws.items(), strict=False):
        for one, color in zip(x, colors, strict=True):
            axis.scatter(*one[::3].T, s=4, color=color, alpha=0.5, linewidths=0)
        axis.set(title=name, xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), aspect="equal")
    places = np.arange(4)
    bars = {"exact": (exact, "#999999")}
    for (name, x), color in zip(draws.items(), ("#c8553d", "#30506d"), strict=True):
        bars[name] = shares(x).mean(0), color
    for k, (name, (heights, color)) in enumerate(bars.items()):
        axes[2].bar(places + 0.27 * (k - 1), heights, 0.25, color=color, label=name)
    axes[2].set(title="mode probabilities", xticks=places, xlabel="mode", ylim=(0, 0.7))
    axes[2].legend(frameon=False, fontsize=8)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "particle_gibbs.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
