"""Train the prior `digits-8x8` that ships with the package, from data to model card.

    python scripts/train_digits.py              # train, judge, calibrate, draw, write the card
    python scripts/train_digits.py --compare    # first fit every variant of the card's table

Training has two parts. The first teaches the scores and ties the levels to one another
(`energy_loss`). The second also ties energies to log densities that the scores themselves imply at
8,192 anchors. It needs scikit-learn (which holds the data) and matplotlib. Minutes on two CPU cores;
the comparison takes about half an hour. Weights, card and pictures go to `numpyro_diffusion/pretrained/`.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from digits_card import draw_history, draw_samples, write_card

import numpyro_diffusion as nd
from numpyro_diffusion.energies.reverse import reverse_process
from numpyro_diffusion.io import read_card
from numpyro_diffusion.pretrained import load_digits
from numpyro_diffusion.train import (
    denoising_loss,
    energy_loss,
    level_loss,
    make_anchors,
    score_log_density,
)

NOISE_MIN = 0.0625  # half a grey step (2/16): the steps melt into one another, nothing else does
NOISE_MAX = 10.0  # the largest standard deviation of the data in any direction is 1.7
OUT = Path(__file__).parents[1] / "numpyro_diffusion" / "pretrained"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the comparison; the defaults are what ships."""

    name: str = "**shipped**"
    width: int = 128
    depth: int = 2
    weight_decay: float = 1.0
    level_weight: float = 0.1
    anchor_weight: float = 0.1
    eigenbasis: bool = True
    shift: float = 0.0


SHIPPED = Variant()
VARIANTS = [
    SHIPPED,
    Variant("no anchors", anchor_weight=0.0),
    Variant("denoising alone", anchor_weight=0.0, level_weight=0.0),
    Variant("width 64", width=64),
    Variant("width 192", width=192),
    Variant("depth 1", depth=1),
    Variant("depth 3", depth=3),
    Variant("weight decay 0.1", weight_decay=0.1),
    Variant("weight decay 0.5", weight_decay=0.5),
    Variant("weight decay 2", weight_decay=2.0),
    Variant("pixels, not eigenbasis", eigenbasis=False),
    Variant("random shifts of 0.1 pixel", shift=0.1),
]


class Trained(NamedTuple):
    """An energy and the histories of the two parts of its training."""

    energy: nd.AbstractEnergy
    parts: list[nd.train.FitResult]


def shifted(scale: float):
    """Augmentation: move an image by a random part of a pixel (bilinear)."""

    def augment(key, image):
        offset = scale * jax.random.normal(key, (2, 1, 1))
        grid = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")) + offset
        return jax.scipy.ndimage.map_coordinates(image, list(grid), order=1, mode="nearest")

    return augment


def untrained(variant: Variant, data: np.ndarray) -> nd.ProperEnergy:
    """The energy of a variant before training: the Gaussian of the training images."""
    net = nd.nets.ResidualMLP(jax.random.key(1), (8, 8), width=variant.width, depth=variant.depth)
    return nd.ProperEnergy.from_data(
        net, data, noise_min=NOISE_MIN, noise_max=NOISE_MAX, diagonal=not variant.eigenbasis
    )


def train(variant: Variant, data: np.ndarray, validation: np.ndarray, progress_bar=True) -> Trained:
    """Fit a variant in two parts; each checkpoint is the one of least validation loss."""

    def part(key, energy, steps, learning_rate, anchors=None):
        loss = lambda energy, key, batch: energy_loss(
            energy,
            key,
            batch,
            data_scale=data_scale(data),
            level_weight=variant.level_weight,
            anchors=anchors,
            anchor_weight=variant.anchor_weight,
        )
        return nd.fit(
            key,
            energy,
            data,
            validation=validation,
            steps=steps,
            learning_rate=learning_rate,
            optimizer=nd.train.Optimizer(weight_decay=variant.weight_decay),
            loss=loss,
            augment=shifted(variant.shift) if variant.shift else None,
            progress_bar=progress_bar,
        )

    parts = [part(jax.random.key(2), untrained(variant, data), 8000, 2e-3)]
    if variant.anchor_weight:
        anchors = make_anchors(parts[0].energy, jax.random.key(3), jnp.asarray(data))
        parts.append(part(jax.random.key(4), parts[0].energy, 4000, 1e-3, anchors))
    return Trained(parts[-1].energy, parts)


def data_scale(data: np.ndarray) -> float:
    """Root mean variance of a pixel."""
    return float(np.sqrt(data.var(0).mean()))


@eqx.filter_jit
def fixed_noise_loss(loss, energy, images, key=None, repeats=64):
    """A loss with noise that never changes: the numbers in the card, which the tests recompute."""
    keys = jax.random.split(jax.random.key(7) if key is None else key, repeats)
    return jnp.mean(jax.lax.map(lambda key: loss(energy, key, images), keys))


def calibrate(energy, num_chains: int, num_particles: int) -> tuple[float, float]:
    """Log normaliser of an energy and its standard error over independent SMC clouds, in nats."""
    model = nd.Annealed()(nd.bridge.from_energy(energy.with_log_normalizer(None)))
    result = nd.run_smc(jax.random.key(5), model, num_particles, num_chains=num_chains)
    log_z = np.asarray(result.log_evidence, np.float64)
    spread = np.exp(log_z - log_z.max())
    return (
        float(log_z.max() + np.log(spread.mean())),
        float(spread.std(ddof=1) / spread.mean() / math.sqrt(num_chains)),
    )


@eqx.filter_jit
def densities(energy, images, key=None):
    """Minus energy, and log density by the score formula, of images noised to `t_min`."""
    t = jnp.asarray(energy.t_min)
    keys = jax.random.split(jax.random.key(6) if key is None else key, (2, len(images)))
    alpha, sigma = energy.schedule(t)
    noise = jax.vmap(lambda k: jax.random.normal(k, energy.shape))(keys[0])
    points = images + sigma / alpha * noise
    by_energy = lambda u: u.size * jnp.log(alpha) - energy.energy(alpha * u, t)
    by_score = lambda arg: score_log_density(energy, *arg, t, num_levels=48, num_draws=32)
    return jax.vmap(by_energy)(points), jax.lax.map(by_score, (keys[1], points), batch_size=20)


def judge(energy, images, scale: float, log_normalizer: float) -> dict:
    """What the card says of an energy on some images."""
    images = jnp.asarray(images)
    denoising = lambda e, k, x: denoising_loss(e, k, x, data_scale=scale)
    by_energy, by_score = (np.asarray(values, np.float64) for values in densities(energy, images))
    return {
        "denoising_loss": round(float(fixed_noise_loss(denoising, energy, images)), 5),
        "level_loss": round(float(fixed_noise_loss(level_loss, energy, images)), 4),
        "log_density": round(float(by_energy.mean()) - log_normalizer, 2),
        "log_density_by_score": round(float(by_score.mean()), 2),
        "disagreement": round(float((by_energy - by_score).std()), 2),
    }


def parameters(energy) -> int:
    """Number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves((energy.net, energy.offset)))


def compare(data, validation) -> list[dict]:
    """Fit every variant and judge it on the validation digits."""
    rows = []
    for variant in VARIANTS:
        start = time.perf_counter()
        result = train(variant, data, validation, progress_bar=False)
        seconds = time.perf_counter() - start
        log_normalizer, error = calibrate(result.energy, 4, 512)
        rows.append(
            {
                "name": variant.name,
                "parameters": parameters(result.energy),
                "best_step": [part.best_step for part in result.parts],
                **judge(result.energy, validation, data_scale(data), log_normalizer),
                "log_normalizer_error": round(error, 2),
                "seconds": round(seconds),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    rows.append(
        {
            "name": "Gaussian of the data",
            **judge(untrained(SHIPPED, data), validation, data_scale(data), 0.0),
        }
    )
    return rows


def main():
    """Train, judge, calibrate, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compare", action="store_true", help="fit every variant for the table")
    parser.add_argument("--out", type=Path, default=OUT, help="where weights and card go")
    options = parser.parse_args()
    images = {part: load_digits(part)[0] for part in ("train", "validation", "test")}
    weights = options.out / "digits-8x8.safetensors"
    old = read_card(weights) if weights.exists() else {}
    data, validation = images["train"], images["validation"]
    rows = compare(data, validation) if options.compare else old.get("variants", [])

    energy, parts = train(SHIPPED, data, validation)
    log_normalizer, error = calibrate(energy, 8, 2000)
    energy = energy.with_log_normalizer(log_normalizer, error)
    scale = data_scale(data)
    card = {
        "name": "digits-8x8",
        "data": "the 8x8 digits of scikit-learn: 1,797 scans, the test part of the UCI Optical "
        "Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998, doi:10.24432/C50P49)",
        "data_licence": "CC BY 4.0",
        "weights_licence": "Apache-2.0",
        "units": "grey value / 8 - 1: paper is -1, ink is 1",
        "range": [-1.0, 1.0],
        "noise_min": NOISE_MIN,
        "noise_max": NOISE_MAX,
        "split": "numpyro_diffusion.digits_split(): 1297 train, 200 validation, 300 test",
        "test_rows": nd.pretrained.digits_split().test.tolist(),
        "parameters": parameters(energy),
        "best_step": [part.best_step for part in parts],
        "data_scale": scale,
        "log_normalizer": [log_normalizer, error],
        **{part: judge(energy, images[part], scale, log_normalizer) for part in images},
        "variants": rows,
    }
    nd.save(weights, energy, card)
    draw_history(options.out / "digits-8x8-loss.png", parts)
    t_min = jnp.asarray(energy.t_min)
    draw = lambda key: energy.denoise(reverse_process(energy, key, 200), t_min)
    samples = jax.vmap(draw)(jax.random.split(jax.random.key(8), 144))
    draw_samples(options.out / "digits-8x8-samples.png", np.asarray(samples), images["test"][:144])
    write_card(options.out / "digits-8x8.md", card)
    print(json.dumps({k: v for k, v in card.items() if k != "test_rows"}, indent=2))


if __name__ == "__main__":
    main()
