"""Threes: as they are, guided, colder, and leaning to the left, each a law of its own.

The prior knows the law of each digit. Expressions make new laws of them: more of a three than all digits
(guidance), a three at half the temperature, a three confined to those that lean to the left. Particles are
weighed, so that each row of the picture shows its law, with the log of its constant: for the last one, the
probability that a three leans so.

    python examples/composed_digits.py            about two minutes on two cores
    python examples/composed_digits.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import numpyro_diffusion as nd

ROWS, COLUMNS = np.mgrid[:8, :8]


def slant(x):
    """Covariance of row and column over the ink: positive where the top leans to the left."""
    ink = jax.nn.softplus(20 * x) / 20
    total = jnp.sum(ink)
    row, column = jnp.sum(ink * ROWS) / total, jnp.sum(ink * COLUMNS) / total
    return jnp.sum(ink * (ROWS - row) * (COLUMNS - column)) / total


def laws() -> dict:
    digits = nd.load_pretrained("digits-8x8-labels")
    three = digits.given(3)
    every = nd.energies.Mixture(
        [digits.given(label) for label in range(10)]
    )  # bounds the ratio: see the docs
    return {
        "threes": three,
        "guided": nd.cfg(every, three, 3.0),
        "colder": three / 0.5,
        "leaning": three + nd.factors.Restrict(lambda x: slant(x) - 0.8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("composed_digits.png"))
    options = parser.parse_args()
    particles, levels = (16, 4) if options.tiny else (256, None)
    scheme = nd.ReverseDiffusion(levels=levels, pilot=nd.schemes.Pilot(conditional_ess=0.93))
    chosen = dict(list(laws().items())[-1:]) if options.tiny else laws()
    figure, axes = plt.subplots(
        len(chosen), 9, figsize=(7, 0.85 * len(chosen)), layout="constrained", squeeze=False
    )
    for line, (name, energy) in zip(axes, chosen.items(), strict=True):
        model = scheme(nd.from_energy(energy), jax.random.key(0))
        result = nd.run_smc(jax.random.key(1), model, particles, progress_bar=not options.tiny)
        constant = f"{float(result.log_evidence):.2f} ± {float(result.log_evidence_error):.2f}"
        print(f"{name}: log constant {constant}, {result.num_levels_run} levels")
        print(nd.diagnostics.verdict(result))
        index = nd.smc.resample_equal(jax.random.key(2), result.log_weights, particles)
        images = np.asarray(result.positions["x"])[np.asarray(index)[:: particles // 9][:9]]
        for place, image in zip(line, images, strict=False):
            place.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(options.out, dpi=120)
    print(f"picture in {options.out}")


if __name__ == "__main__":
    main()
