"""How many galaxies are in a noisy image, one, two or three? Their number is a discrete site.

Every galaxy has a place, a size, an axis ratio and a flux, under a diffusion prior of small vectors; those
beyond the number are masked. The sampler sums over the numbers, so that one run has the probability of each.

    python examples/how_many.py            about three minutes on two cores
    python examples/how_many.py --tiny     a check that everything runs
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

MOST, SIDE, NOISE = 3, 16, 0.35
# Of a population: round ones and long ones. Place (2), log size, log axis ratio, and a flux in magnitudes.
round_ones, long_ones = [0.0, 0.0, -1.6, -0.1, 0.0], [0.0, 0.0, -1.1, -1.0, 0.3]
spread = np.diag([0.3, 0.3, 0.03, 0.005, 0.03])
prior = nd.GaussianMixture([0.6, 0.4], [round_ones, long_ones], [spread, spread])
grid = jnp.linspace(-1.2, 1.2, SIDE)


def light(galaxy):
    """Image of one galaxy, an ellipse along the first axis."""
    along = jnp.exp(galaxy[2])
    across = along * jnp.exp(galaxy[3])
    dx, dy = (grid - galaxy[0]) / along, (grid - galaxy[1]) / across
    return 2 * jnp.exp(galaxy[4] - 0.5 * (dx[None, :] ** 2 + dy[:, None] ** 2))


def model(y=None):
    number = 1 + numpyro.sample("more", dist.Categorical(jnp.ones(MOST) / MOST))
    numpyro.deterministic("number", number)
    with numpyro.plate("galaxies", MOST):
        galaxies = numpyro.sample("galaxy", nd.DiffusionPrior(prior))
    there = jnp.arange(MOST) < number
    image = jnp.sum(jnp.where(there[:, None, None], jax.vmap(light)(galaxies), 0.0), 0)
    numpyro.deterministic("image", image)
    numpyro.sample("y", dist.Normal(image, NOISE).to_event(2), obs=y)


def data(number: int, seed: int):
    """Galaxies at places of their own, two of which overlap, and their noisy image."""
    places = jnp.array([[-0.5, 0.2], [0.15, -0.1], [0.6, 0.7]])[:number]
    shapes = jnp.array([[-1.6, -0.1, 0.0], [-1.1, -1.0, 0.3], [-1.6, -0.1, 0.1]])[:number]
    truth = jnp.sum(jax.vmap(light)(jnp.concatenate([places, shapes], 1)), 0)
    return truth, truth + NOISE * jax.random.normal(jax.random.key(seed), truth.shape)


def draw(path, y, truth, found, samples):
    """Data, truth, the probabilities of the numbers, and the mean of what is there."""
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.5), layout="constrained")
    images = {0: (y, "data"), 1: (truth, "truth"), 3: (samples["image"].mean(0), "posterior mean")}
    for place, (image, title) in images.items():
        axes[place].imshow(image, cmap="gray", vmin=-0.5, vmax=2.5, origin="lower")
        axes[place].set_title(title, fontsize=9)
        axes[place].set_axis_off()
    axes[2].bar(np.arange(1, MOST + 1), found, color="#4878a8")
    axes[2].set(
        xticks=range(1, MOST + 1), xlabel="galaxies", ylim=(0, 1.05), title="p(number | data)"
    )
    axes[2].title.set_fontsize(9)
    axes[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--number", type=int, default=2, help="how many there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    num_particles, num_chains = (16, 2) if options.tiny else (512, 4)
    scheme = nd.Annealed(levels=6, moves=1, pilot=16) if options.tiny else nd.Annealed()
    options.output.mkdir(parents=True, exist_ok=True)

    truth, y = data(options.number, options.seed + 1)
    started = time.perf_counter()
    smc = nd.SMC(model, scheme, num_particles=num_particles, num_chains=num_chains)
    smc.run(jax.random.key(options.seed), y=y)
    print(f"log evidence {smc.log_evidence:.2f} +- {smc.log_evidence_error:.2f}")
    print(nd.diagnostics.verdict(smc.result, smc.bridge))
    found = np.asarray(smc.discrete_probabilities()["more"])
    samples = {name: np.asarray(value) for name, value in smc.get_samples().items()}
    path = options.output / "how_many.png"
    draw(path, y, truth, found, samples)
    for number, probability in enumerate(found, 1):
        print(f"p({number} | data) = {probability:.3f}")
    print(f"there are {options.number}; wrote {path}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
