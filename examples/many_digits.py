"""Sixteen digits at once: one unknown noise level for all of them, and a contrast for each.

Every image is dim, blurred and noisy. A plate holds the sixteen diffusion sites and their contrasts, 1,041
latent numbers in all; sixteen images tell the noise level that they share far better than one of them could.
All that the sampler needs to know of it is the word `plate`.

    python examples/many_digits.py            about two minutes on two cores
    python examples/many_digits.py --tiny     a check that everything runs
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

TRUE_SIGMA = 0.15
energy = nd.load_pretrained("digits-8x8")
gaps = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
blur = jax.nn.softmax(-0.5 * (gaps / 0.7) ** 2, 1)


def forward(contrast, x):
    """Ink from 0 to the contrast of its image, blurred along both axes."""
    return contrast[..., None, None] * (blur @ ((x + 1) / 2) @ blur.T)


def model(num, y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-2.0, 1.0))
    with numpyro.plate("images", num):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        contrast = numpyro.sample("contrast", dist.LogNormal(0.0, 0.3))
        numpyro.sample("y", dist.Normal(forward(contrast, x), sigma).to_event(2), obs=y)


def dim_digits(num):
    """Test digits, which the prior never saw, their contrasts, and what is seen of them."""
    images, _ = nd.pretrained.load_digits("test")
    truth = jnp.asarray(images[:num])
    contrast = jnp.linspace(0.6, 1.5, num)
    noise = TRUE_SIGMA * jax.random.normal(jax.random.key(1), truth.shape)
    return truth, contrast, forward(contrast, truth) + noise


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--num", type=int, default=16, help="how many digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    num, particles = (3, 8) if options.tiny else (options.num, 64)
    # Longer steps from level to level than by default: levels are dear where a particle is 16 images.
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(32, conditional_ess=0.9))
    if options.tiny:
        scheme = nd.Annealed(levels=4, moves=1, pilot=8)

    truth, true_contrast, y = dim_digits(num)
    smc = nd.SMC(model, scheme, num_particles=particles, num_chains=2)
    started = time.perf_counter()
    smc.run(jax.random.key(options.seed), num, y=y)
    smc.print_summary(max_rows=4)
    samples = smc.get_samples(group_by_chain=True)
    contrast, x = (np.asarray(samples[name]) for name in ("contrast", "x"))
    contrast, x = contrast.reshape(-1, num), x.reshape(-1, num, 8, 8)
    low, high = np.quantile(contrast, [0.05, 0.95], axis=0)
    inside = np.mean((low < true_contrast) & (true_contrast < high))
    sigma = np.asarray(samples["sigma"])
    print(f"sigma {sigma.mean():.4f} +- {sigma.std():.4f}, true {TRUE_SIGMA}")
    print(f"{inside:.0%} of the contrasts lie in their 90 % intervals")
    error = np.sqrt(np.mean((x.mean(0) - truth) ** 2))
    print(f"images: error of the mean {error:.3f}, posterior sd {np.sqrt(x.var(0).mean()):.3f}")

    figure = plt.figure(figsize=(0.62 * num + 0.8, 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    rows = {"truth": truth, "data": y, "mean": x.mean(0), "sd": x.std(0)}
    axes = top.subplots(4, num, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        limits = {"data": (0.0, 1.2), "sd": (0.0, 0.8)}.get(name, (-1.0, 1.0))
        for ax, image in zip(line, images, strict=True):
            ax.imshow(
                image, cmap="magma" if name == "sd" else "gray", vmin=limits[0], vmax=limits[1]
            )
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    left, right = bottom.subplots(1, 2)
    plots.plot_density(left, sigma, "posterior of the noise level", TRUE_SIGMA)
    middle = contrast.mean(0)
    right.errorbar(
        true_contrast, middle, [middle - low, high - middle], fmt="o", color="#30506d", ms=3
    )
    right.plot(true_contrast, true_contrast, color="#c8553d", lw=1)
    right.set(xlabel="true contrast")
    right.set_title("contrast: mean and 90 % interval", fontsize=9, loc="left")
    right.spines[["top", "right"]].set_visible(False)
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "many_digits.png", dpi=100)
    print(f"wrote {options.output / 'many_digits.png'}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
