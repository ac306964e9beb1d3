"""Train the prior `digits-8x8` that ships with the package, from data to model card.

    python scripts/train_digits.py                 # train, judge, draw, write the card
    python scripts/train_digits.py --compare       # first fit every variant of the table

It needs scikit-learn (which holds the data) and matplotlib, and takes minutes on two CPU cores. The
weights, the card and its pictures go to `numpyro_diffusion/pretrained/`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from numpyro_diffusion.energies import ProperEnergy
from numpyro_diffusion.io import read_card, save
from numpyro_diffusion.nets import ResidualMLP
from numpyro_diffusion.pretrained import load_digits
from numpyro_diffusion.schedules import log_snr_grid, reverse_moments
from numpyro_diffusion.train import FitResult, denoising_loss, energy_loss, fit

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

NOISE_MIN = 0.0625  # half a grey step (2/16): the steps melt into one another, nothing else does
NOISE_MAX = 10.0  # the largest standard deviation of the data in any direction is 1.7
JUDGE_KEY, JUDGE_REPEATS = 7, 64
OUT = Path(__file__).parents[1] / "numpyro_diffusion" / "pretrained"


class Variant(NamedTuple):
    """One row of the comparison."""

    name: str
    width: int = 128
    depth: int = 2
    weight_decay: float = 1.0
    eigenbasis: bool = True
    shift: float = 0.0
    level_weight: float = 0.1
    steps: int = 10_000
    batch_size: int = 128


SHIPPED = Variant("shipped")
VARIANTS = [
    SHIPPED,
]


def shifted(scale: float):
    """Augmentation: move an image by a random part of a pixel (bilinear)."""

    def augment(key, image):
        offset = scale * jax.random.normal(key, (2, 1, 1))
        grid = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")) + offset
        return jax.scipy.ndimage.map_coordinates(image, list(grid), order=1, mode="nearest")

    return augment


def untrained(variant: Variant, train: np.ndarray) -> ProperEnergy:
    """The energy of a variant before training: the Gaussian of the training images."""
    net = ResidualMLP(jax.random.key(1), (8, 8), width=variant.width, depth=variant.depth)
    return ProperEnergy.from_data(
        net, train, noise_min=NOISE_MIN, noise_max=NOISE_MAX, diagonal=not variant.eigenbasis
    )


def trained(variant: Variant, train: np.ndarray, validation: np.ndarray, **options) -> FitResult:
    """Fit a variant; the checkpoint is the one of least validation loss."""
    scale = float(np.sqrt(train.var(0).mean()))
    return fit(
        jax.random.key(2),
        untrained(variant, train),
        train,
        validation=validation,
        steps=variant.steps,
        batch_size=variant.batch_size,
        weight_decay=variant.weight_decay,
        loss=lambda energy, key, batch: energy_loss(
            energy, key, batch, data_scale=scale, level_weight=variant.level_weight
        ),
        augment=shifted(variant.shift) if variant.shift else None,
        **options,
    )


def held_out_loss(energy, images: np.ndarray, data_scale: float) -> float:
    """Denoising loss with fixed noise: the number in the card, and what the tests recompute."""
    keys = jax.random.split(jax.random.key(JUDGE_KEY), JUDGE_REPEATS)
    loss = lambda key: denoising_loss(energy, key, jnp.asarray(images), data_scale=data_scale)
    return float(jnp.mean(jax.jit(lambda keys: jax.lax.map(loss, keys))(keys)))


def ancestral_samples(energy, key, num: int, levels: int = 200) -> np.ndarray:
    """Draws of the reverse process, the last one denoised."""
    times = log_snr_grid(energy.schedule, levels, energy.t_min, energy.t_max)

    def one(key):
        mean, variance = energy.moments(times[0])
        key, key_start = jax.random.split(key)
        x = mean + jnp.sqrt(variance) * jax.random.normal(key_start, energy.shape)

        def step(carry, pair):
            x, key = carry
            key, key_noise = jax.random.split(key)
            a, b, v = reverse_moments(energy.schedule, pair[0], pair[1])
            noise = jax.random.normal(key_noise, energy.shape)
            return (a * x + b * energy.denoise(x, pair[0]) + jnp.sqrt(v) * noise, key), None

        (x, _), _ = jax.lax.scan(step, (x, key), jnp.stack([times[:-1], times[1:]], 1))
        return energy.denoise(x, times[-1])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, num)))


def draw_grid(axis, images: np.ndarray, columns: int, title: str):
    """Images side by side, dark ink on light paper."""
    rows = len(images) // columns
    canvas = np.full((rows * 9 + 1, columns * 9 + 1), np.nan)
    for i, image in enumerate(images[: rows * columns]):
        row, column = divmod(i, columns)
        canvas[row * 9 + 1 : row * 9 + 9, column * 9 + 1 : column * 9 + 9] = image
    axis.imshow(canvas, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def draw_samples(path: Path, samples: np.ndarray, test: np.ndarray):
    """Samples next to real test digits, in one picture."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
    draw_grid(axes[0], test, 12, "held-out test digits")
    draw_grid(axes[1], samples, 12, "samples of the prior (reverse process, 200 levels)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_history(path: Path, result: FitResult, gaussian: float):
    """The loss curve on training and validation digits."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    history = result.history
    axis.plot(history["step"][1:], history["train_loss"][1:], label="training digits", color="0.6")
    axis.plot(history["step"], history["validation_loss"], label="validation digits", color="C0")
    axis.axhline(gaussian, ls=":", color="0.3", label="Gaussian of the data")
    axis.plot(result.best_step, result.best_loss, "o", color="C3", label="shipped checkpoint")
    axis.set(xlabel="step", ylabel="denoising loss a dimension", title="Training of digits-8x8")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def count(energy: ProperEnergy) -> int:
    """Trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(energy.net))


def compare(train, validation, data_scale) -> list[dict]:
    """Fit every variant and judge it on the validation digits."""
    rows = []
    for variant in VARIANTS:
        start = time.perf_counter()
        result = trained(variant, train, validation, progress_bar=False)
        row = variant._asdict() | {
            "parameters": count(result.energy),
            "best_step": result.best_step,
            "train_loss": round(float(result.history["train_loss"][-1]), 4),
            "validation_loss": round(held_out_loss(result.energy, validation, data_scale), 4),
            "seconds": round(time.perf_counter() - start),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main():
    """Train, judge, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compare", action="store_true", help="fit every variant for the table")
    parser.add_argument("--out", type=Path, default=OUT, help="where weights and card go")
    options = parser.parse_args()
    (train, _), (validation, _), (test, _) = map(load_digits, ("train", "validation", "test"))
    data_scale = float(np.sqrt(train.var(0).mean()))
    weights = options.out / "digits-8x8.safetensors"
    if options.compare:
        rows = compare(train, validation, data_scale)
    else:
        rows = read_card(weights).get("variants", []) if weights.exists() else []

    result = trained(SHIPPED, train, validation)
    energy = result.energy
    gaussian = untrained(SHIPPED, train)
    losses = {
        name: round(held_out_loss(energy, images, data_scale), 5)
        for name, images in (("train", train), ("validation", validation), ("test", test))
    }
    card = {
        "name": "digits-8x8",
        "data": "8x8 digits of scikit-learn: test part of the UCI Optical Recognition of Handwritten Digits",
        "data_licence": "CC BY 4.0 (Alpaydin & Kaynak, 1998, doi:10.24432/C50P49)",
        "weights_licence": "Apache-2.0",
        "units": "grey value / 8 - 1: paper is -1, ink is 1",
        "range": [-1.0, 1.0],
        "noise_min": NOISE_MIN,
        "noise_max": NOISE_MAX,
        "split": "numpyro_diffusion.pretrained.digits_split(): 1297 train, 200 validation, 300 test",
        "parameters": count(energy),
        "loss": losses,
        "loss_gaussian": round(held_out_loss(gaussian, test, data_scale), 5),
        "loss_protocol": {"key": JUDGE_KEY, "repeats": JUDGE_REPEATS, "data_scale": data_scale},
        "best_step": result.best_step,
        "variants": rows,
    }
    save(weights, energy, card)
    draw_history(options.out / "digits-8x8-loss.png", result, result.history["validation_loss"][0])
    samples = ancestral_samples(energy, jax.random.key(3), 144)
    draw_samples(options.out / "digits-8x8-samples.png", samples, test[:144])
    print(json.dumps({k: v for k, v in card.items() if k != "variants"}, indent=2))


if __name__ == "__main__":
    main()
