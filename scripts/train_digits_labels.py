"""Train the other priors over digits: by label, and by distillation of a plain denoiser.

    python scripts/train_digits_labels.py                    # all of them, from data to cards
    python scripts/train_digits_labels.py --steps 100 --out /tmp/digits    # a check that it runs

The teachers are plain denoisers, one with and one without labels; they are not kept. Needs scikit-learn,
which holds the data; about a quarter of an hour on two CPU cores.
"""

import argparse
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from train_digits import NOISE_MAX, NOISE_MIN, OUT, data_scale, parameters

import numpyro_diffusion as nd
from numpyro_diffusion.energies import NetworkDenoiser
from numpyro_diffusion.pretrained import load_digits
from numpyro_diffusion.train import denoising_loss, level_loss

WEIGHT_DECAY = 1.0  # of the variants of `digits-8x8`, the one that does best on held-out digits


NAMES = ["digits-8x8-labels", "digits-8x8-labels-distilled", "digits-8x8-distilled"]


def untrained(kind, data, key, labels: bool):
    """An energy that is still the Gaussian of the images."""
    condition = nd.nets.Labels(jax.random.fold_in(key, 1), 10) if labels else None
    net = nd.nets.ResidualMLP(key, (8, 8), condition=condition)
    return kind.from_data(net, data, noise_min=NOISE_MIN, noise_max=NOISE_MAX)


@eqx.filter_jit
def fixed_noise(loss, model, images, labels, repeats: int = 32):
    """A loss with noise that never changes."""
    keys = jax.random.split(jax.random.key(7), repeats)
    told = {} if labels is None else {"condition": labels}
    return jnp.mean(jax.lax.map(lambda key: loss(model, key, images, **told), keys))


def judge(model, images, labels, scale) -> dict:
    """Losses of a model on some images; of an energy by label, how well it tells labels apart too."""
    denoising = lambda e, k, x, **told: denoising_loss(e, k, x, data_scale=scale, **told)
    row = {"denoising_loss": round(float(fixed_noise(denoising, model, images, labels)), 5)}
    if isinstance(model, nd.AbstractEnergy):
        row["level_loss"] = round(float(fixed_noise(level_loss, model, images, labels)), 4)
        if labels is not None and model.label_normalizers is not None:
            log_p = np.asarray(label_log_probabilities(model, images))
            row["accuracy"] = round(float(np.mean(log_p.argmax(1) == labels)), 3)
            row["log_score"] = round(float(np.mean(log_p[np.arange(len(labels)), labels])), 3)
    return row


@eqx.filter_jit
def label_log_probabilities(energy, images, key=None):
    """Log p(label | image noised to `t_min`) for equal priors, of shape `(num, 10)`."""
    t = jnp.asarray(energy.t_min)
    s = energy.schedule.noise_level(t)
    noise = jax.random.normal(jax.random.key(6) if key is None else key, images.shape)
    log_density = lambda u, label: energy.given(label).log_density(u, t)
    each = jax.vmap(lambda u: jax.vmap(lambda label: log_density(u, label))(jnp.arange(10)))
    return jax.nn.log_softmax(each(images + s * noise), axis=1)


def calibrated(energy, labels: bool, num_chains: int, num_particles: int):
    """The energy with its normalisers, by prior runs, and with what the card says of them."""
    size = {"num_particles": num_particles, "num_chains": num_chains}
    runs = [energy.given(label) for label in range(10)] if labels else [energy]
    found = [nd.prior_normalizer(e, jax.random.key(5), **size) for e in runs]
    values, errors = ([getattr(f, n) for f in found] for n in ("value", "standard_error"))
    if labels:
        return energy.with_label_normalizers(values, errors), values, errors
    return energy.with_log_normalizer(values[0], errors[0]), values, errors


def main():
    """Train a teacher and three energies, judge, calibrate and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6000, help="updates of each training")
    parser.add_argument("--particles", type=int, default=1000, help="of each of four clouds")
    parser.add_argument("--names", nargs="+", default=NAMES, help="which of them")
    parser.add_argument("--out", type=Path, default=OUT, help="where weights and cards go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    split = {part: load_digits(part) for part in ("train", "validation", "test")}
    data, labels = split["train"]
    scale, key = data_scale(data), jax.random.key(11)
    optimizer = nd.train.Optimizer(weight_decay=WEIGHT_DECAY)
    common = {"steps": options.steps, "optimizer": optimizer}

    def told(with_labels: bool):
        images, held_out = split["validation"]
        if not with_labels:
            return {"validation": images}
        return {"condition": labels, "validation": (images, jnp.asarray(held_out))}

    def plain(with_labels: bool):
        teacher = NetworkDenoiser(untrained(nd.InnerProductEnergy, data, key, with_labels))
        loss = lambda e, k, x, **c: denoising_loss(e, k, x, data_scale=scale, **c)
        whole = {"loss": loss, "trainable": lambda d: d.base.net}
        return nd.fit(
            jax.random.key(12), teacher, data, **told(with_labels), **common, **whole
        ).energy

    for name in options.names:
        with_labels, distilled = "labels" in name, "distilled" in name
        teacher = plain(with_labels)
        energy = untrained(nd.ProperEnergy, data, key, with_labels)
        settings = {**told(with_labels), **common}
        if distilled:
            energy = nd.distill(
                jax.random.key(13), teacher, energy, data, level_weight=0.1, **settings
            ).energy
        else:
            energy = nd.fit(jax.random.key(13), energy, data, **settings).energy
        energy, values, errors = calibrated(energy, with_labels, 4, options.particles)
        card = {
            "name": name,
            "made_by": f"python scripts/train_digits_labels.py --steps {options.steps}",
            "data": "the 8x8 digits of scikit-learn: 1,797 scans, the test part of the UCI Optical "
            "Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998, doi:10.24432/C50P49)",
            "data_licence": "CC BY 4.0",
            "weights_licence": "Apache-2.0",
            "units": "grey value / 8 - 1: paper is -1, ink is 1",
            "range": [-1.0, 1.0],
            "noise_min": NOISE_MIN,
            "noise_max": NOISE_MAX,
            "split": "numpyro_diffusion.digits_split(): 1297 train, 200 validation, 300 test",
            "condition": "digit, 0 to 9: `energy.given(label)`" if with_labels else None,
            "training": "distilled from a plain denoiser" if distilled else "trained on data",
            "parameters": parameters(energy),
            "log_normalizer": values,
            "log_normalizer_error": errors,
        }
        for part, (images, truth) in split.items():
            truth = jnp.asarray(truth) if with_labels else None
            card[part] = judge(energy, jnp.asarray(images), truth, scale)
            card[f"{part}_teacher"] = judge(teacher, jnp.asarray(images), truth, scale)
        nd.save(options.out / f"{name}.safetensors", energy, card)
        (options.out / f"{name}.md").write_text(written(card))
        print(json.dumps(card, indent=1), flush=True)


def written(card: dict) -> str:
    """A card as Markdown."""
    names = list(card["train"])
    rows = [
        f"| {part} | " + " | ".join(str(card[part][n]) for n in names)
        + f" | {card[part + '_teacher']['denoising_loss']} |"
        for part in ("train", "validation", "test")
    ]  # fmt: skip
    head = ["digits", *(n.replace("_", " ") for n in names), "denoising loss of the plain denoiser"]
    normalizers = ", ".join(
        f"{v:.2f} ± {e:.2f}"
        for v, e in zip(card["log_normalizer"], card["log_normalizer_error"], strict=True)
    )
    return TEMPLATE.format(
        **{n: v for n, v in card.items() if n not in ("condition", "log_normalizer")},
        condition=card["condition"] or "none",
        normalizers=normalizers,
        table="\n".join(
            ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows]
        ),
    )  # fmt: skip


TEMPLATE = """# {name}

A diffusion prior over 8x8 images of handwritten digits, {training}:
`numpyro_diffusion.load_pretrained("{name}")`.

**Data.** {data}. Licence of the data: {data_licence}; of the weights: {weights_licence}.

**Units and range.** {units}. Images lie in {range}. The prior is the law of an image plus noise of
standard deviation {noise_min} (half a grey step); sampling starts from noise of {noise_max}.

**Condition.** {condition}.

**Split.** `{split}`. The validation digits chose the checkpoint; the test digits were used once, for the
table.

**Model.** `ProperEnergy` over a residual MLP, {parameters} parameters, float32, in the eigenbasis of the
training covariance. Log normaliser, one a label where there are labels: {normalizers} nats (SMC, 4 clouds).

{table}

*Denoising loss* is a dimension, noise levels uniform in log-SNR, with the label where there are labels;
*level loss* the cross-entropy of guessing one of 8 noise levels. *Accuracy* and *log score* (nats) are those
of the label's posterior probability, from the normalised energies alone.

**Made by** `{made_by}`.
"""


if __name__ == "__main__":
    main()
