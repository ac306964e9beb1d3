"""A digit seen through a blur of unknown width: image, width and noise level inferred together.

How wide a blur is cannot be told from a blurred image alone; it takes a prior that knows how sharp digits
are. The width is one more `numpyro.sample`, and enters the likelihood as any parameter would.

    python examples/unknown_blur.py            about two minutes on two cores
    python examples/unknown_blur.py --tiny     a check that everything runs
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
from numpyro_diffusion import plots

TRUE_WIDTH, TRUE_SIGMA = 1.1, 0.03
energy = nd.load_pretrained("digits-8x8")
gaps = jnp.arange(8.0)[:, None] - jnp.arange(8.0)


def forward(width, x):
    """Ink from 0 to 1, under a Gaussian blur of some width along both axes."""
    blur = jax.nn.softmax(-0.5 * (gaps / width) ** 2, 1)
    return blur @ ((x + 1) / 2) @ blur.T


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.7))
    sigma = numpyro.sample("sigma", dist.LogNormal(-3.0, 1.0))
    numpyro.sample("y", dist.Normal(forward(width, x), sigma).to_event(2), obs=y)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--index", type=int, default=12, help="which digit of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    particles = 8 if options.tiny else 256
    scheme = nd.Annealed(levels=4, moves=1, pilot=8) if options.tiny else None

    images, _ = nd.pretrained.load_digits("test")  # the prior never saw them
    truth = jnp.asarray(images[options.index])
    noise = TRUE_SIGMA * jax.random.normal(jax.random.key(1), (8, 8))
    y = forward(TRUE_WIDTH, truth) + noise
    smc = nd.SMC(model, scheme, num_particles=particles, num_chains=2)
    started = time.perf_counter()
    smc.run(jax.random.key(options.seed), y=y)
    smc.print_summary(max_rows=4)
    print(f"true width {TRUE_WIDTH}, true sigma {TRUE_SIGMA}")

    samples = {n: np.asarray(v) for n, v in smc.get_samples(group_by_chain=True).items()}
    x = samples["x"].reshape(-1, 8, 8)
    figure = plt.figure(figsize=(8.2, 4.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.2])
    shown = {"truth": truth, "data": y, "posterior mean": x.mean(0), "posterior sd": x.std(0)}
    shown |= {"a draw": x[0], "another": x[len(x) // 2]}
    for ax, (name, image) in zip(top.subplots(1, 6), shown.items(), strict=True):
        limits = {"data": (0, 1), "posterior sd": (0, 0.6)}.get(name, (-1, 1))
        ax.imshow(image, cmap="magma" if "sd" in name else "gray", vmin=limits[0], vmax=limits[1])
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=9)
    left, middle, right = bottom.subplots(1, 3)
    plots.plot_density(left, samples["width"], "width of the blur, pixels", TRUE_WIDTH)
    plots.plot_density(middle, samples["sigma"], "noise level", TRUE_SIGMA)
    right.scatter(
        samples["width"].ravel(), samples["sigma"].ravel(), s=4, alpha=0.4, color="#30506d"
    )
    right.plot(TRUE_WIDTH, TRUE_SIGMA, "x", color="#c8553d", mew=2)
    right.set(xlabel="width", ylabel="noise level")
    right.spines[["top", "right"]].set_visible(False)
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "unknown_blur.png", dpi=100)
    print(f"wrote {options.output / 'unknown_blur.png'}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
