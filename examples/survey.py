"""A small survey: three images seen by two instruments, in one model with thirteen latent sites.

Each object has an image under a learned prior, a brightness, a kind (blue or red) and a colour; brightness
and kinds come from a population whose parameters are unknown. A camera sees blurred images on a sky that is a
Gaussian process over its columns; a photometer sees colours, and fails for some objects. Both noise levels
are unknown. Kinds and failures are discrete, and summed out along the noise levels.

    python examples/survey.py            about three minutes on two cores
    python examples/survey.py --tiny     a check that everything runs
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

energy = nd.load_pretrained("digits-8x8")
# For 205 numbers: many particles and levels farther apart, which is as much work as fewer and closer ones.
SCHEME = nd.Annealed(pilot=nd.schemes.Pilot(num_particles=128, conditional_ess=0.9))
OBJECTS, BANDS, FAILURES, WORSE = 3, 4, 0.15, 20.0
COLOURS = jnp.array([-0.5, 0.5])  # of blue and red objects, on average
columns = jnp.arange(8.0)
gaps = columns[:, None] - columns
BLUR = jax.nn.softmax(-0.5 * (gaps / 0.7) ** 2, 1)
SLOPES = jnp.linspace(-1.0, 1.0, BANDS)
# A Gaussian process over columns by its spectrum: cosines, orthonormal on the columns.
frequencies = jnp.pi * jnp.arange(8) / 8
WAVES = (
    jnp.cos(frequencies * (columns[:, None] + 0.5))
    * jnp.where(jnp.arange(8) == 0, 0.5, 1.0) ** 0.5
    / 2
)


def seen(x, log_flux):
    """An image at the camera: ink from 0 to its brightness, blurred along both axes."""
    return jnp.exp(log_flux)[..., None, None] * (BLUR @ ((x + 1) / 2) @ BLUR.T)


def model(camera=None, photometer=None):
    # The population.
    mean = numpyro.sample("mean", dist.Normal(0.0, 0.5))
    spread = numpyro.sample("spread", dist.LogNormal(-1.0, 0.5))
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))  # of red ones
    # The instruments and the sky.
    camera_noise = numpyro.sample("camera_noise", dist.LogNormal(-2.0, 0.3))
    photometer_noise = numpyro.sample("photometer_noise", dist.LogNormal(-2.0, 0.3))
    length = numpyro.sample("length", dist.LogNormal(1.0, 0.3))
    height = numpyro.sample("height", dist.LogNormal(-1.5, 0.3))
    white = numpyro.sample("white", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    smooth = jnp.exp(
        -0.25 * (frequencies * length) ** 2
    )  # root of the spectral density, up to a constant
    roots = smooth * jnp.sqrt(8.0 / jnp.sum(smooth**2))
    sky = numpyro.deterministic("sky", height * WAVES @ (roots * white))
    # The objects.
    with numpyro.plate("objects", OBJECTS):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        log_flux = numpyro.sample("log_flux", dist.Normal(mean, spread))
        red = numpyro.sample("red", dist.Bernoulli(probs=share))
        colour = numpyro.sample("colour", dist.Normal(COLOURS[red], 0.2))
        failed = numpyro.sample("failed", dist.Bernoulli(probs=FAILURES))
        seen_by_camera = dist.Normal(seen(x, log_flux) + sky, camera_noise).to_event(2)
        numpyro.sample("camera", seen_by_camera, obs=camera)
        noise = photometer_noise * jnp.where(failed == 1, WORSE, 1.0)
        bands = log_flux[..., None] + colour[..., None] * SLOPES
        numpyro.sample(
            "photometer", dist.Normal(bands, noise[..., None]).to_event(1), obs=photometer
        )


def simulate(key, images):
    """Data of given images, and all else that is true, drawn from the model."""
    given = numpyro.handlers.condition(model, {"x": images})
    trace = numpyro.handlers.trace(numpyro.handlers.seed(given, key)).get_trace()
    values = {name: site["value"] for name, site in trace.items() if site["type"] != "plate"}
    return values, {name: values[name] for name in ("camera", "photometer")}


def draw(path, truth, samples, chances):
    """Data, truth, mean and spread of each image, chances of its kind and failure, the sky."""
    figure, axes = plt.subplots(OBJECTS, 6, figsize=(11, 5.2), layout="constrained")
    mean, spread = samples["x"].mean(0), samples["x"].std(0)
    for i, row in enumerate(axes):
        shown = [(truth["camera"], None), (truth["x"], 1.0), (mean, 1.0), (spread, None)]
        for axis, (image, limit) in zip(row, shown, strict=False):
            low = None if limit is None else -limit
            axis.imshow(image[i], cmap="gray", vmin=low, vmax=limit)
            axis.set_axis_off()
        names = ["red", "failed"]
        row[4].bar(names, [chances[name][i] for name in names], color="#4878a8")
        row[4].plot(names, [truth[name][i] for name in names], "o", color="#c04030")
        row[4].set(ylim=(-0.06, 1.06))
    for axis, title in zip(
        axes[0], ["camera", "truth", "posterior mean", "posterior sd", "probability"], strict=False
    ):
        axis.set_title(title, fontsize=9)
    low, middle, high = np.quantile(samples["sky"], [0.05, 0.5, 0.95], 0)
    axes[0, 5].fill_between(columns, low, high, color="#4878a8", alpha=0.3)
    axes[0, 5].plot(columns, middle, color="#4878a8")
    axes[0, 5].plot(columns, truth["sky"], color="#c04030")
    axes[0, 5].set_title("sky", fontsize=9)
    for axis, name in zip(axes[1:, 5], ("camera_noise", "mean"), strict=True):
        axis.hist(samples[name], bins=30, density=True, color="#4878a8", alpha=0.5)
        axis.axvline(truth[name], color="#c04030")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_yticks([])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--seed", type=int, default=1, help="of data and run")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    num_particles, num_chains = (16, 2) if options.tiny else (768, 3)
    scheme = nd.Annealed(levels=6, moves=1, pilot=16) if options.tiny else SCHEME
    options.output.mkdir(parents=True, exist_ok=True)

    images, _ = nd.pretrained.load_digits("test")
    truth, data = simulate(jax.random.key(options.seed), images[3 * options.seed :][:OBJECTS])
    started = time.perf_counter()
    smc = nd.SMC(model, scheme, num_particles=num_particles, num_chains=num_chains)
    smc.run(jax.random.key(options.seed + 1), **data)
    print(f"log evidence {smc.log_evidence:.2f} +- {smc.log_evidence_error:.2f}")
    clouds, left = smc.result.log_evidence, smc.result.trace.unique_ancestors[:, -1]
    print(f"of each cloud {np.round(np.asarray(clouds), 1)}, families left {np.asarray(left)}")
    print(f"{smc.result.num_levels_run} levels, {time.perf_counter() - started:.0f} s")
    print(nd.diagnostics.verdict(smc.result, smc.bridge))
    found = smc.discrete_probabilities()
    chances = {name: np.asarray(found[name])[..., 1] for name in ("red", "failed")}
    samples = {name: np.asarray(value) for name, value in smc.get_samples().items()}
    for name in ("mean", "spread", "share", "camera_noise", "photometer_noise", "length", "height"):
        low, high = np.quantile(samples[name], [0.05, 0.95])
        print(f"{name:18} {low:7.3f} to {high:6.3f}  (true {float(truth[name]):.3f})")
    for i in range(OBJECTS):
        kind = f"p(red) {chances['red'][i]:.2f} (true {int(truth['red'][i])})"
        print(
            f"object {i}: {kind}, p(failed) {chances['failed'][i]:.2f} (true {int(truth['failed'][i])})"
        )
    path = options.output / "survey.png"
    draw(path, {name: np.asarray(value) for name, value in truth.items()}, samples, chances)
    print(f"wrote {path}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
