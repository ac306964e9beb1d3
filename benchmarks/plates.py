"""Plates that scale: evidence and cost by number of objects, and 64 digits under shared unknowns.

First table: objects of a Gaussian mixture under an unknown offset and noise level (`tests/plates.py`),
against quadrature over these two. `--digits`: 64 dim, blurred, noisy digits with an unknown noise level, and
contrasts of an unknown population.

    python benchmarks/plates.py --save
    python benchmarks/plates.py --digits --save
"""

import time
import warnings

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion.schemes import Pilot

TRUTH = {"sigma": 0.15, "middle": 0.0, "spread": 0.3}
gaps = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
BLUR = jax.nn.softmax(-0.5 * (gaps / 0.7) ** 2, 1)


def forward(contrast, x):
    """Ink from 0 to the contrast of its image, blurred along both axes."""
    return contrast[..., None, None] * (BLUR @ ((x + 1) / 2) @ BLUR.T)


def digits_model(energy):
    def model(y):
        sigma = numpyro.sample("sigma", dist.LogNormal(-2.0, 1.0))
        middle = numpyro.sample("middle", dist.Normal(0.0, 0.5))
        spread = numpyro.sample("spread", dist.LogNormal(-1.2, 0.5))
        with numpyro.plate("images", len(y)):
            x = numpyro.sample("x", nd.DiffusionPrior(energy))
            contrast = numpyro.sample("contrast", dist.LogNormal(middle, spread))
            numpyro.sample("y", dist.Normal(forward(contrast, x), sigma).to_event(2), obs=y)

    return model


def dim_digits(num):
    """Test digits, which the prior never saw, their contrasts, and what is seen of them."""
    images, _ = nd.pretrained.load_digits("test")
    truth, key = jnp.asarray(images[:num]), jax.random.key(1)
    contrast = TRUTH["middle"] + TRUTH["spread"] * jax.random.normal(jax.random.key(2), (num,))
    contrast = jnp.exp(contrast)
    noise = TRUTH["sigma"] * jax.random.normal(key, truth.shape)
    return truth, contrast, forward(contrast, truth) + noise


def scaling(options) -> None:
    from plates import data, exact, model

    scheme = nd.Annealed(levels=12)
    # Small plates are cheap, and need more particles for an error that is as small an object.
    sizes = {3: 50} if options.tiny else {4: 1024, 16: 512, 64: 128, 256: 128}
    by_object = lambda particles: nd.ppl.PlateSMC(
        model, scheme, split=("y",), num_particles=particles, progress_bar=False
    )
    one_cloud = lambda particles: nd.SMC(model, num_particles=particles, progress_bar=False)
    jobs = [("by object", num, by_object(particles)) for num, particles in sizes.items()]
    jobs += [("one cloud", num, one_cloud(512)) for num in sizes if num <= 16]
    rows = []
    for way, num, run in jobs:
        y = data(num, seed=num)
        truth, moments = exact(y)
        errors, stated, offs, cost, started = [], [], [], 0.0, time.process_time()
        for seed in range(1 if options.tiny else options.seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run.run(jax.random.key(seed), jnp.asarray(y, float))
                errors.append(run.log_evidence - truth)
            stated.append(run.log_evidence_error)
            mu = np.asarray(run.get_samples()["mu"], float).mean()
            offs.append((mu - moments["mu"][0]) / moments["mu"][1])
            cost += run.network_evaluations
        number = len(errors) * run.num_chains * run.num_particles * num
        seconds = (time.process_time() - started) / len(errors)
        # An evaluation of one cloud's particle is of the networks of all its objects.
        each = cost / number * (num if way == "one cloud" else 1)
        rows.append(
            [num, way, run.num_particles, f"{truth:.2f}", f"{np.mean(errors):+.3f}",
             f"{np.std(errors, ddof=1) if len(errors) > 1 else np.nan:.3f}",
             f"{np.mean(stated):.3f}", f"{np.sqrt(np.mean(np.square(errors))) / num:.4f}",
             f"{np.sqrt(np.mean(np.square(offs))):.2f}", f"{each:.0f}", f"{seconds:.0f}"]
        )  # fmt: skip
        emit_scaling(rows, options)


def emit_scaling(rows, options) -> None:
    columns = [
        "objects", "sampler", "particles", "exact log evidence", "mean error", "sd", "stated error",
        "rms error an object", "error of the offset, posterior sd",
        "network evaluations a particle and object",
        "CPU s a run",
    ]  # fmt: skip
    notes = (
        "Four replicates a run; evaluations are of all rounds and replicates over particles of the final "
        "clouds. `one cloud` is `nd.SMC` over all objects together, with levels of its own pilot.",
    )
    _table.emit("plates", __doc__, columns, rows, options.save, notes)


def digits(options) -> None:
    energy = nd.load_pretrained("digits-8x8")
    num = 3 if options.tiny else options.num
    truth, contrast, y = dim_digits(num)
    scheme = nd.Annealed(pilot=Pilot(128, conditional_ess=options.ess))
    if options.tiny:
        scheme = nd.Annealed(levels=4, moves=1, pilot=8)
    settings = {"rounds": options.rounds, "round_particles": min(128, options.particles)}
    if options.tiny:
        settings = {"rounds": 1}
    run = nd.ppl.PlateSMC(
        digits_model(energy),
        scheme,
        split=("y",),
        num_particles=8 if options.tiny else options.particles,
        num_chains=2 if options.tiny else 4,
        batch_size=4,
        **settings,
    )
    started = time.perf_counter()
    run.run(jax.random.key(0), y)
    print(f"{time.perf_counter() - started:.0f} s of wall time")
    run.print_summary(max_rows=3)
    samples = {n: np.asarray(v) for n, v in run.get_samples().items()}
    found, result = samples["contrast"], run.result
    rows = []
    for name, value in TRUTH.items():
        low, high = np.quantile(samples[name], [0.05, 0.95])
        inside = "yes" if low < value < high else "no"
        rows.append([name, value, f"{samples[name].mean():.4f}", f"{samples[name].std():.4f}",
                     f"{low:.4f} to {high:.4f}", inside])  # fmt: skip
    for level in (0.5, 0.8, 0.9):
        low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        rows.append([f"contrasts, {level:.0%} intervals", "", "", "", "",
                     f"{np.mean((low < contrast) & (contrast < high)):.0%} of {num}"])  # fmt: skip
    image = np.sqrt(np.mean((samples["x"].mean(0) - truth) ** 2))
    notes = (
        f"{num} digits, {run.num_particles} particles an object, {run.num_chains} replicates, "
        f"{run.num_nodes} nodes, {run.rounds} rounds: log evidence {run.log_evidence:.2f} +- "
        f"{result.log_evidence_error:.2f} nats from the spread of replicates "
        f"({run.log_evidence_error:.2f} with the prior's normaliser), {result.node_ess:.0f} effective nodes, "
        f"{result.object_ess.min():.0f} effective particles for the worst object; "
        f"{run.network_evaluations:,} network evaluations. Images: error of the mean {image:.3f}, posterior "
        f"sd {np.sqrt(samples['x'].var(0).mean()):.3f}.",
    )
    columns = ["site", "truth", "mean", "sd", "90 % interval", "covered"]
    _table.emit("plates_digits", "Plates that scale: 64 digits under shared unknowns.", columns, rows,
                options.save, notes)  # fmt: skip
    if options.save:
        picture(truth, contrast, y, samples)


def picture(truth, contrast, y, samples) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from numpyro_diffusion import plots

    figure = plt.figure(figsize=(9.6, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    shown = range(0, len(y), max(1, len(y) // 16))
    x = samples["x"]
    lines = {"truth": truth, "data": y, "mean": x.mean(0), "sd": x.std(0)}
    axes = top.subplots(4, len(shown), squeeze=False)
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        low, high = {"data": (0.0, 1.2), "sd": (0.0, 0.8)}.get(name, (-1.0, 1.0))
        for ax, i in zip(line, shown, strict=True):
            ax.imshow(images[i], cmap="magma" if name == "sd" else "gray", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    *shared, last = bottom.subplots(1, 4)
    titles = {"sigma": "noise level", "middle": "mean of log contrasts", "spread": "their spread"}
    for ax, (name, title) in zip(shared, titles.items(), strict=True):
        plots.plot_density(ax, samples[name], title, TRUTH[name])
        ax.locator_params(axis="x", nbins=4)
    middle = samples["contrast"].mean(0)
    low, high = np.quantile(samples["contrast"], [0.05, 0.95], axis=0)
    last.errorbar(
        contrast, middle, [middle - low, high - middle], fmt="o", color="#30506d", ms=2, lw=0.8
    )
    ends = [float(contrast.min()), float(contrast.max())]
    last.plot(ends, ends, color="#c8553d", lw=1)
    last.set(xlabel="true contrast")
    last.set_title("contrasts: mean, 90 % interval", fontsize=9, loc="left")
    last.spines[["top", "right"]].set_visible(False)
    figure.savefig(_table.ROOT / "docs" / "images" / "plates.png", dpi=90)


if __name__ == "__main__":
    parser = _table.parser(__doc__)
    parser.add_argument("--digits", action="store_true", help="the second part")
    parser.add_argument("--num", type=int, default=64, help="digits")
    parser.add_argument(
        "--particles", type=int, default=512, help="particles a digit and replicate"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--ess", type=float, default=0.9, help="share that a level of the pilot keeps"
    )
    options = parser.parse_args()
    (digits if options.digits else scaling)(options)
