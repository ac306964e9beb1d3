"""Compositions of learned digits: with weights, and as reverse diffusion with the summed scores.

Class-conditional energies of 8x8 digits. *Guidance*: a three with a guidance scale of 3. *Cold*: all
digits at half the temperature. *And*: three times eight over all. *Set*: a three that leans to the left,
its slant above what one three in ten of the training images has. The law of all digits, by which guidance
and *and* divide, is the mixture of the ten labels: a label's density is at most ten times that, so that
the ratio is bounded and the law has a normaliser. `Annealed` and `ReverseDiffusion` weigh and move their
particles; *summed scores* are the same reverse diffusion without weights and moves, as guided samplers
run it. `log constant` is the log normaliser (of the set: of its probability) in nats, `E[U]` the mean of
the composed energy, `judge` the mean probability that a support vector classifier gives to what was asked
for (a three; a three or an eight; its own best guess, when cold), `diversity` the mean distance of two
draws. Mean and standard deviation over clouds.
"""

from pathlib import Path

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

import numpyro_diffusion as nd

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROWS, COLUMNS = np.mgrid[:8, :8]


def slant(x):
    """Covariance of row and column over the ink: positive where the top leans to the left."""
    ink = jax.nn.softplus(20 * x) / 20
    total = jnp.sum(ink)
    row, column = jnp.sum(ink * ROWS) / total, jnp.sum(ink * COLUMNS) / total
    return jnp.sum(ink * (ROWS - row) * (COLUMNS - column)) / total


def laws() -> dict:
    """Composed energies, and what the judge should see in their draws."""
    digits = nd.load_pretrained("digits-8x8-labels")
    labels = [digits.given(label) for label in range(10)]
    three, eight, every = labels[3], labels[8], nd.energies.Mixture(labels)
    images, of = nd.pretrained.load_digits("train")
    least = float(np.quantile(jax.vmap(slant)(jnp.asarray(images[of == 3])), 0.9))
    return {
        "guidance": (nd.cfg(every, three, 3.0), (3,)),
        "cold": (nd.load_pretrained("digits-8x8") / 0.5, None),
        "and": (three + eight - every, (3, 8)),
        "set": (three + nd.factors.Restrict(lambda x: slant(x) - least), (3,)),
    }


def judge():
    images, labels = nd.pretrained.load_digits("train")
    svc = CalibratedClassifierCV(SVC(gamma="scale", C=10.0), ensemble=False)
    return svc.fit(images.reshape(len(images), -1), labels)


def diversity(x: np.ndarray) -> float:
    flat = x.reshape(len(x), -1)
    order = np.random.default_rng(0).permutation(len(flat))
    return float(np.sqrt(((flat - flat[order]) ** 2).sum(1)).mean())


def measured(result, energy, wanted, classifier):
    """Numbers of each cloud, from equally weighted draws."""
    t = jnp.asarray(energy.t_min)
    alpha_t, _ = energy.schedule(t)
    count = result.log_weights.shape[-1]
    keys = jax.random.split(jax.random.key(2), len(result.log_weights))
    resample = jax.vmap(lambda k, w: nd.smc.resample_equal(k, w, count))
    index = resample(keys, result.log_weights)
    clouds = jax.vmap(lambda x, i: x[i])(result.positions["x"], index)
    energies = eqx.filter_jit(jax.vmap(jax.vmap(lambda u: energy.energy(alpha_t * u, t))))(clouds)
    rows = []
    for x, values in zip(np.asarray(clouds), np.asarray(energies), strict=True):
        p = classifier.predict_proba(x.reshape(count, -1))
        seen = p.max(1) if wanted is None else p[:, list(wanted)].sum(1)
        rows.append((np.mean(values[np.isfinite(values)]), seen.mean(), diversity(x)))
    return np.asarray(result.log_evidence), np.asarray(rows), np.asarray(clouds)


def figure(draws: dict, path: Path) -> None:
    """Eight draws of every law, with weights above and without below."""
    rows = [(law, kind) for law in draws for kind in ("Annealed", "summed scores")]
    plot, axes = plt.subplots(len(rows), 8, figsize=(6, 0.8 * len(rows)), layout="constrained")
    for line, (law, kind) in zip(axes, rows, strict=True):
        x = draws[law][kind]
        spread = x.reshape(-1, *x.shape[2:])[:: max(1, x.shape[0] * x.shape[1] // 8)]
        for place, image in zip(line, spread, strict=False):
            place.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(f"{law}\n{kind}", rotation=0, ha="right", va="center", fontsize=8)
    plot.savefig(path, dpi=110)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    particles, clouds, levels = (16, 2, 6) if options.tiny else (128, options.seeds, 200)
    schemes = {
        "Annealed": nd.Annealed(
            levels=6 if options.tiny else None, pilot=nd.schemes.Pilot(conditional_ess=0.93)
        ),
        "ReverseDiffusion": nd.ReverseDiffusion(
            levels=6 if options.tiny else None, pilot=nd.schemes.Pilot(conditional_ess=0.93)
        ),
        "summed scores": nd.schemes.unweighted(nd.ReverseDiffusion(levels=levels, moves=0)),
    }
    classifier, rows, draws = judge(), [], {}
    both = lambda v: f"{np.mean(v):.2f} +- {np.std(v, ddof=1):.2f}"
    for law, (energy, wanted) in laws().items():
        draws[law] = {}
        for name, scheme in schemes.items():
            model = scheme(nd.from_energy(energy), jax.random.key(0))
            result = nd.run_smc(jax.random.key(1), model, particles, num_chains=clouds)
            log_z, numbers, draws[law][name] = measured(result, energy, wanted, classifier)
            constant = both(log_z) if result.weighted else "none"
            count = result.num_levels_run
            rows.append([law, name, constant, *(both(n) for n in numbers.T), count])
            print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    columns = ["law", "sampler", "log constant", "E[U]", "judge", "diversity", "levels"]
    _table.emit("composed_digits", __doc__, columns, rows, options.save)
    if options.save:
        figure(draws, _table.ROOT / "docs" / "images" / "composed-digits.png")


if __name__ == "__main__":
    main()
