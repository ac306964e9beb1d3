"""Restore a real digit that is blurred, partly hidden and noisy, and say how sure that is.

The digit comes from the test split, which the prior never saw. Noise level and contrast are unknown and
inferred with the image. The evidence then compares two rival forward models: a Gaussian blur (the true
one) and no blur at all.

    python examples/restore_digit.py            about two minutes on two cores
    python examples/restore_digit.py --tiny     a check that everything runs
"""

import argparse
import time
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion import plots

TRUE_SIGMA, TRUE_CONTRAST, BLUR_WIDTH = 0.05, 1.3, 0.8
energy = nd.load_pretrained("digits-8x8")


def gaussian_blur(width: float) -> jax.Array:
    """Matrix of a Gaussian blur along one axis; rows sum to 1. Width 0 is no blur."""
    gaps = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
    weights = jnp.exp(-0.5 * (gaps / width) ** 2) if width > 0 else jnp.eye(8)
    return weights / weights.sum(1, keepdims=True)


def forward(blur, contrast, x):
    """What the camera would see without noise: ink from 0 to `contrast`, blurred along both axes."""
    return contrast * blur @ ((x + 1) / 2) @ blur.T


def model(blur, visible, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    contrast = numpyro.sample("contrast", dist.LogNormal(0.0, 0.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
    seen = dist.Normal(forward(blur, contrast, x), sigma).mask(visible).to_event(2)
    numpyro.sample("y", seen, obs=y)


def damaged_digit(index: int):
    """A test digit, the pixels that are visible, and the data."""
    images, _ = nd.pretrained.load_digits("test")
    truth = jnp.asarray(images[index])
    visible = jnp.ones((8, 8), bool).at[:, 4:6].set(False)
    noise = TRUE_SIGMA * jax.random.normal(jax.random.key(1), (8, 8))
    y = forward(gaussian_blur(BLUR_WIDTH), TRUE_CONTRAST, truth) + noise
    return truth, visible, jnp.where(visible, y, 0.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--index", type=int, default=3, help="which digit of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    num_particles, num_chains = (16, 2) if options.tiny else (256, 4)
    scheme = nd.Annealed(levels=6, moves=1, pilot=16) if options.tiny else nd.Annealed()
    options.output.mkdir(parents=True, exist_ok=True)

    truth, visible, y = damaged_digit(options.index)
    smc = nd.SMC(model, scheme, num_particles=num_particles, num_chains=num_chains)
    started = time.perf_counter()
    smc.run(jax.random.key(options.seed), gaussian_blur(BLUR_WIDTH), visible, y=y)
    smc.print_summary(max_rows=4)
    print(f"true sigma {TRUE_SIGMA}, true contrast {TRUE_CONTRAST}\n")

    data = smc.to_arviz()
    print(az.summary(data, var_names=["sigma", "contrast"]), "\n")
    data.to_netcdf(options.output / "restore_digit.nc")

    # The same compiled sampler on the rival forward model: only the blur matrix is new.
    rival = nd.SMC(model, scheme, num_particles=num_particles, num_chains=num_chains)
    rival.run(jax.random.key(options.seed), gaussian_blur(0.0), visible, y=y)
    gap = smc.log_evidence - rival.log_evidence
    error = np.hypot(smc.log_evidence_error, rival.log_evidence_error)
    print(f"log evidence with blur    {smc.log_evidence:8.2f} +- {smc.log_evidence_error:.2f}")
    print(f"log evidence without blur {rival.log_evidence:8.2f} +- {rival.log_evidence_error:.2f}")
    print(nd.diagnostics.verdict(rival.result))
    print(f"log Bayes factor in favour of the blur {gap:.2f} +- {error:.2f} nats\n")

    samples = smc.get_samples(group_by_chain=True)
    figure = plots.plot_restoration(
        truth,
        jnp.where(visible, y, jnp.nan),
        samples["x"],
        samples["sigma"],
        smc.result,
        true_noise=TRUE_SIGMA,
    )
    figure.savefig(options.output / "restore_digit.png", dpi=110)
    print(f"wrote {options.output / 'restore_digit.nc'} and {options.output / 'restore_digit.png'}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
