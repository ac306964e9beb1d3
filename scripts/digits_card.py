"""Pictures and model card of `digits-8x8`, from the numbers that `train_digits.py` measured."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = {
    "name": "variant",
    "parameters": "parameters",
    "best_step": "best step",
    "denoising_loss": "denoising loss",
    "level_loss": "level loss, nats",
    "disagreement": "disagreement, nats",
    "log_density": "log density, nats",
    "log_normalizer_error": "± (SMC)",
    "seconds": "seconds",
}


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
    draw_grid(axes[1], samples, 12, "draws of the prior (reverse process, 200 steps)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_history(path: Path, parts):
    """Loss on training and validation digits, in the two parts of training."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    titles = ("1: denoising and levels", "2: and anchors")
    for axis, title, part in zip(axes, titles, parts, strict=True):
        history = part.history
        axis.plot(
            history["step"][1:], history["train_loss"][1:], color="0.6", label="training digits"
        )
        axis.plot(history["step"][1:], history["validation_loss"][1:], label="validation digits")
        axis.plot(part.best_step, part.best_loss, "o", color="C3", label="chosen checkpoint")
        axis.set(xlabel="step", ylabel="loss", title=title)
        low, high = history["validation_loss"].min(), history["validation_loss"][1]
        axis.set_ylim(min(low, history["train_loss"][1:].min()) - 0.02, min(high, low + 0.2) + 0.02)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table."""
    cell = lambda value: " + ".join(map(str, value)) if isinstance(value, list) else str(value)
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row.get(c, "")) for c in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def losses(card: dict) -> str:
    """Losses on the three parts of the split as a Markdown table."""
    names = list(card["test"])
    lines = ["| digits | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines += ["|" + " --- |" * (len(names) + 1)]
    for part in ("train", "validation", "test"):
        lines.append(f"| {part} | " + " | ".join(str(card[part][name]) for name in names) + " |")
    return "\n".join(lines)


def write_card(path: Path, card: dict):
    """The model card as Markdown."""
    rows, variants, command = card["variants"], "", "python scripts/train_digits.py"
    if rows:
        variants = VARIANTS.format(table=table(rows))
        command += " --compare"
    fields = {**card, "losses": losses(card), "variants": variants, "command": command}
    path.write_text(TEMPLATE.format(**fields))


VARIANTS = """## Variants

All judged on the validation digits; the shipped one was chosen by log density, then by size.

{table}

"""


TEMPLATE = """# digits-8x8

A diffusion prior over 8x8 images of handwritten digits: `numpyro_diffusion.load_pretrained("digits-8x8")`.

![Draws of the prior beside held-out digits](digits-8x8-samples.png)

**Data.** {data}. Licence of the data: {data_licence}; of the weights: {weights_licence}.

**Units and range.** {units}. Images lie in {range}. The prior is the law of an image plus noise of
standard deviation {noise_min} (half a grey step); sampling starts from noise of {noise_max}.

**Split.** A fixed permutation, `{split}`.
Training saw the 1,297; the 200 chose the checkpoints; the 300 were used once, for the last line below. Their
row numbers are in the file's card too.

**Model.** `ProperEnergy` over a residual MLP, {parameters} parameters, float32, in the eigenbasis of the
training covariance. Log normaliser {log_normalizer[0]:.2f} ± {log_normalizer[1]:.2f} nats (SMC, 8 clouds
of 2,000 particles): `load_pretrained` returns a normalised prior.

**Training.** Adam with decoupled weight decay and averaged weights, in two parts of at most 8,000 and 4,000
steps. Part 1: denoising, plus 0.1 of the cross-entropy of guessing the noise level from the energies.
Part 2: plus 0.1 of the misfit to log densities that the scores of part 1 imply at 8,192 anchors, half of
them training digits, half draws. The checkpoint of each part is the one of least loss on the validation
digits, with noise that never changes: steps {best_step[0]} and {best_step[1]}.

![Loss on training and validation digits](digits-8x8-loss.png)

{losses}

*Denoising loss* is a dimension, noise levels uniform in log-SNR. *Level loss* is the cross-entropy of
guessing one of 8 levels. *Log density* is that of a digit noised to {noise_min}, in nats: by the energy and
its normaliser, and by the score formula. *Disagreement* is the standard deviation over digits of the
difference of the two, about 1 nat of it Monte Carlo: how far energies are from what the scores imply.

{variants}## Why not denoising alone

It gives draws that look the same and an energy that cannot be sampled: nothing at low noise compares one
digit with another, so an annealed cloud ends in one or two digits; and the energy of a plain
`InnerProductEnergy` need not be bounded away from the data, so that long MALA chains may leave.
`ProperEnergy` cannot do that, and the level and anchor terms set the weights of the digits right.

## What it is not

It knows 1,297 small digits: not other fonts, sizes or units. Training digits are likelier than
test digits (compare the log densities above). The energy is trusted between noise levels {noise_min} and
{noise_max} only.

## Made by

    {command}
"""
