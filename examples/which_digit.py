"""Which digit is it? Ten evidences, one a label, of a real digit most of which is hidden.

The prior knows the law of each digit. Noise is unknown. Each label is a model of its own; with the normaliser
of every label known, the evidences compare, and Bayes' rule gives the probability of each label with its
error.

    python examples/which_digit.py            about two minutes on two cores
    python examples/which_digit.py --tiny     a check that everything runs
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

TRUE_SIGMA = 0.4
digits = nd.load_pretrained("digits-8x8-labels")


def model(label, visible, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(digits.given(label)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(x, sigma).mask(visible).to_event(2), obs=y)


def hidden_digit(index: int):
    """A test digit, its label, the pixels that are visible, and the data."""
    images, labels = nd.pretrained.load_digits("test")
    truth = jnp.asarray(images[index])
    visible = jnp.ones((8, 8), bool).at[3:].set(False)
    y = truth + TRUE_SIGMA * jax.random.normal(jax.random.key(1), (8, 8))
    return truth, int(labels[index]), visible, jnp.where(visible, y, 0.0)


def draw(path, truth, seen, log_evidence, errors, restored):
    """Data, truth, the probabilities of the labels, and what the two likeliest look like."""
    probabilities = np.exp(log_evidence - np.logaddexp.reduce(log_evidence))
    # Of a softmax: the error of one probability from independent errors of all log evidences.
    jacobian = np.diag(probabilities) - np.outer(probabilities, probabilities)
    spread = np.sqrt(jacobian**2 @ errors**2)
    best = np.argsort(-probabilities)[:2]
    widths = {"width_ratios": [1, 1, 2.2, 1, 1]}
    figure, axes = plt.subplots(1, 5, figsize=(11, 2.3), gridspec_kw=widths, layout="constrained")
    images = {0: (seen, "data"), 1: (truth, "truth")}
    images |= {
        3 + i: (restored[label], f"mean if {label}: p = {probabilities[label]:.2f}")
        for i, label in enumerate(best)
    }
    for place, (image, title) in images.items():
        grey = plt.get_cmap("gray_r").copy()
        grey.set_bad("#f2d7b6")
        axes[place].imshow(np.ma.masked_invalid(image), cmap=grey, vmin=-1, vmax=1)
        axes[place].set_title(title, fontsize=9)
        axes[place].set_axis_off()
    axes[2].bar(range(10), probabilities, yerr=spread, color="#4878a8", ecolor="#333333", capsize=2)
    axes[2].set(xticks=range(10), xlabel="label", ylim=(0, 1.05), title="p(label | data)")
    axes[2].title.set_fontsize(9)
    axes[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return probabilities, spread


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

    truth, label, visible, y = hidden_digit(options.index)
    started = time.perf_counter()
    log_evidence, errors, restored = np.zeros(10), np.zeros(10), {}
    for guess in range(10):
        smc = nd.SMC(model, scheme, num_particles=num_particles, num_chains=num_chains)
        smc.run(jax.random.key(options.seed), jnp.asarray(guess), visible, y=y)
        log_evidence[guess], errors[guess] = smc.log_evidence, smc.log_evidence_error
        restored[guess] = np.asarray(smc.get_samples()["x"]).mean(0)
        print(f"{guess}: log evidence {smc.log_evidence:8.2f} +- {smc.log_evidence_error:.2f}")
        print(nd.diagnostics.verdict(smc.result))
    path = options.output / "which_digit.png"
    seen = np.where(visible, y, np.nan)
    probabilities, spread = draw(path, truth, seen, log_evidence, errors, restored)
    for guess in np.argsort(-probabilities)[:3]:
        print(f"p({guess} | data) = {probabilities[guess]:.3f} +- {spread[guess]:.3f}")
    print(f"it is a {label}; wrote {path}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
