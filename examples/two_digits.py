"""Two digits written over each other: which two were they?

The camera sees the sum of two images, with noise of unknown level. Two diffusion sites under one prior enter
one likelihood. Nothing says which image is the first: the posterior holds every answer twice, with the two
changed over. The labels of the draws, by a classifier, show them.

    python examples/two_digits.py            about two minutes on two cores
    python examples/two_digits.py --tiny     a check that everything runs
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.svm import SVC

import numpyro_diffusion as nd
from numpyro_diffusion import plots

TRUE_SIGMA = 0.05
energy = nd.load_pretrained("digits-8x8")


def ink(x):
    """From 0 to 1."""
    return (x + 1) / 2


def model(y=None):
    first = numpyro.sample("first", nd.DiffusionPrior(energy))
    second = numpyro.sample("second", nd.DiffusionPrior(energy))
    sigma = numpyro.sample("sigma", dist.LogNormal(-3.0, 1.0))
    numpyro.sample("y", dist.Normal(ink(first) + ink(second), sigma).to_event(2), obs=y)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--digits", type=int, nargs=2, default=(3, 10), help="in the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    particles = 8 if options.tiny else 256
    scheme = nd.Annealed(levels=4, moves=1, pilot=8) if options.tiny else None

    images, labels = nd.pretrained.load_digits("test")  # the prior never saw them
    truth, named = jnp.asarray(images[list(options.digits)]), labels[list(options.digits)]
    noise = TRUE_SIGMA * jax.random.normal(jax.random.key(1), (8, 8))
    y = ink(truth[0]) + ink(truth[1]) + noise
    smc = nd.SMC(model, scheme, num_particles=particles, num_chains=2)
    started = time.perf_counter()
    smc.run(jax.random.key(options.seed), y=y)
    smc.print_summary(max_rows=2)
    print(f"true sigma {TRUE_SIGMA}, true digits {named}")

    samples = {n: np.asarray(v) for n, v in smc.get_samples(group_by_chain=True).items()}
    pairs = np.stack([samples["first"], samples["second"]], 2).reshape(-1, 2, 8, 8)
    shown, known = nd.pretrained.load_digits("train")
    classifier = SVC().fit(shown.reshape(len(shown), -1), known)
    read = classifier.predict(pairs.reshape(-1, 64)).reshape(-1, 2)
    for pair, count in Counter(map(tuple, read.tolist())).most_common(6):
        print(f"read as {pair}: {count / len(read):.1%}")

    figure = plt.figure(figsize=(8.2, 3.6), layout="constrained")
    top, bottom = figure.subfigures(1, 2, width_ratios=[3, 1.4])
    axes = top.subplots(3, 6)
    several = pairs[np.linspace(0, len(pairs) - 1, 12).round().astype(int)][1::2][:4]
    columns = [("truth", truth), *((f"draw {i + 1}", pair) for i, pair in enumerate(several))]
    for column, (name, pair) in zip(axes.T[1:], columns, strict=True):
        total = ink(pair[0]) + ink(pair[1])
        for ax, image, limits in zip(
            column, [*pair, total], [(-1, 1), (-1, 1), (0, 2)], strict=True
        ):
            ax.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
        column[0].set_title(name, fontsize=9)
    axes[2, 0].imshow(y, cmap="gray", vmin=0, vmax=2)
    axes[2, 0].set_title("data", fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax in axes[:2, 0]:
        ax.axis("off")
    for ax, name in zip(axes[:, 1], ("first", "second", "sum"), strict=True):
        ax.set_ylabel(name, fontsize=9)
    plots.plot_density(bottom.subplots(), samples["sigma"], "noise level", TRUE_SIGMA)
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "two_digits.png", dpi=100)
    print(f"wrote {options.output / 'two_digits.png'}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
