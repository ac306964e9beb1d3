"""Calibration: ranks of the truth under the learned prior, and coverage on real digits.

The model: a digit under the shipped prior, a contrast near 1 and a noise level, both unknown and
log-normal; the image is blurred and a quarter of its pixels hidden. Each data set gets a posterior from
one cloud of 256 particles of `nd.SMC` with a pilot of 128 and otherwise default settings.

*Simulated*: simulation-based calibration on `--seeds` data sets. True images are particles of a long run
of the prior alone, exp(-E(x, t_min)), not draws of the reverse process, whose law differs a little; true
contrast and noise level are draws of their priors. If sampler and model agree, the truth's rank in the
posterior is uniform for every quantity, also for one that looks at the data, such as the log likelihood
(Modrak et al. 2023). `p KS` is the Kolmogorov-Smirnov p value of the ranks, `p band` that of the largest
departure of their empirical distribution function, pointwise probabilities made simultaneous by
simulation (Sailynoja et al. 2022); `50 %` and `90 %` are the coverages of central intervals, in per cent,
+- the binomial standard error that an exact sampler would have. The figure shows the differences of the
distribution functions with the simultaneous 95 % band.

*Real*: half as many digits of the test split, which the prior never saw, damaged in the same way. Pixels of
one image depend on each other, so theirs is the mean over images of the share covered, +- its standard
error over images.

Not simuk, whose posteriors are those of NumPyro's MCMC; here they are those of SMC.
"""

import sys
import time
from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion.smc import resample_equal

matplotlib.use("agg")
import matplotlib.pyplot as plt

ENERGY = nd.load_pretrained("digits-8x8")
GAPS = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
BLUR = jax.nn.softmax(-0.5 * (GAPS / 0.8) ** 2, 1)
VISIBLE = jnp.ones((8, 8), bool).at[:, 4:6].set(False)
PIXELS = {"pixel (3, 3)": (3, 3), "pixel (6, 2)": (6, 2)}
PIXELS |= {"hidden pixel (2, 4)": (2, 4), "hidden pixel (5, 5)": (5, 5)}
CONTRAST, SIGMA = dist.LogNormal(0.0, 0.2), dist.LogNormal(-2.5, 0.5)
SCHEME = nd.Annealed(pilot=128)
ORDER = ["sigma", "contrast", "log likelihood", "mean pixel", *PIXELS]  # of rows and panels


def forward(x, contrast):
    """Ink from 0 to `contrast`, blurred along both axes."""
    return contrast * BLUR @ ((x + 1) / 2) @ BLUR.T


def model(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    contrast = numpyro.sample("contrast", CONTRAST)
    sigma = numpyro.sample("sigma", SIGMA)
    seen = dist.Normal(forward(x, contrast), sigma).mask(VISIBLE).to_event(2)
    numpyro.sample("y", seen, obs=y)


def prior_images(count: int, size: int, clouds: int) -> np.ndarray:
    """Images from a long run of the prior alone, each another particle."""
    steps = nd.Annealed()(nd.from_energy(ENERGY), jax.random.key(1))
    result = nd.run_smc(jax.random.key(2), steps, size, num_chains=clouds)
    log_weights = result.log_weights + result.log_evidence[:, None]
    log_weights -= jax.nn.logsumexp(result.log_weights, 1, keepdims=True)
    index = resample_equal(jax.random.key(3), log_weights.ravel(), log_weights.size)
    index = np.random.default_rng(4).permutation(np.asarray(index))[:count]
    return np.asarray(result.positions["x"]).reshape(-1, 8, 8)[index]


@jax.jit
def quantities(x, contrast, sigma, y):
    """What is ranked, for one image with its parameters."""
    pointwise = dist.Normal(forward(x, contrast), sigma).log_prob(y)
    named = {name: x[at] for name, at in PIXELS.items()}
    log_likelihood = jnp.sum(jnp.where(VISIBLE, pointwise, 0.0))
    scalars = {"sigma": sigma, "contrast": contrast, "log likelihood": log_likelihood}
    return {**scalars, "mean pixel": x.mean(), **named, "pixels": x}


def rank_of_truth(seed: int, x) -> dict[str, np.ndarray]:
    """Randomized rank in (0, 1) of each quantity at the truth, for data made from the image `x`.

    The truth counts as one more particle of an average weight, 1 / (ESS + 1), of which a random share lies
    below it: for equal weights this is the usual rank, uniform at any number of draws.
    """
    key = jax.random.split(jax.random.key(seed), 5)
    contrast, sigma = CONTRAST.sample(key[0]), SIGMA.sample(key[1])
    y = forward(x, contrast) + sigma * jax.random.normal(key[2], (8, 8))
    y = jnp.where(VISIBLE, y, 0.0)  # what is hidden cannot leak into the posterior
    smc = nd.SMC(model, SCHEME, num_particles=256, num_chains=1, progress_bar=False)
    smc.run(key[3], y=y)
    draws, weights = smc.get_weighted_samples()
    draws, weights = jax.tree.map(lambda leaf: leaf[0], (draws, weights))
    truth = quantities(x, contrast, sigma, y)
    found = jax.vmap(quantities, (0, 0, 0, None))(draws["x"], draws["contrast"], draws["sigma"], y)
    own = 1 / (1 + 1 / np.sum(np.asarray(weights) ** 2))
    share = np.random.default_rng(seed).uniform(size=(8, 8))

    def rank(values, value):
        below = np.tensordot(np.asarray(weights), np.asarray(values) < np.asarray(value), 1)
        return (1 - own) * below + own * (share if np.ndim(value) else share[0, 0])

    return jax.tree.map(rank, found, truth)


def all_ranks(name: str, seed: int, images) -> dict[str, np.ndarray]:
    ranks, started = [], time.perf_counter()
    for i, x in enumerate(images):
        ranks.append(rank_of_truth(seed + i, jnp.asarray(x)))
        if (i + 1) % 20 == 0 or i + 1 == len(images):
            seconds = (time.perf_counter() - started) / (i + 1)
            print(f"{name}: {i + 1} data sets, {seconds:.1f} s each", file=sys.stderr, flush=True)
    return {name: np.stack([r[name] for r in ranks]) for name in ranks[0]}


def covered(ranks, probability: float):
    return np.abs(ranks - 0.5) <= probability / 2


def binomial(ranks, probability: float) -> str:
    p, n = covered(ranks, probability).mean(), len(ranks)
    return f"{100 * p:.0f} +- {100 * np.sqrt(probability * (1 - probability) / n):.0f}"


def by_image(ranks, probability: float) -> str:
    shares = covered(ranks, probability).mean(1)
    return f"{100 * shares.mean():.1f} +- {100 * shares.std() / len(shares) ** 0.5:.1f}"


def tail(ranks, grid) -> np.ndarray:
    """Smallest two-sided pointwise probability of the distribution function over a grid."""
    n = ranks.shape[-1]
    counts = np.stack([(ranks <= z).sum(-1) for z in grid], -1)
    law = stats.binom(n, grid)
    return np.minimum(1.0, 2 * np.minimum(law.cdf(counts), law.sf(counts - 1))).min(-1)


def draw_figure(ranks, grid, level: float, path: Path) -> None:
    """Differences of the distribution functions from the uniform one, with the simultaneous band."""
    n = len(next(iter(ranks.values())))
    law = stats.binom(n, grid)
    low, high = law.ppf(level / 2) / n - grid, law.isf(level / 2) / n - grid
    figure, axes = plt.subplots(
        2, 4, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, values) in zip(axes.ravel(), ranks.items(), strict=True):
        axis.fill_between(grid, low, high, color="tab:blue", alpha=0.2, linewidth=0)
        difference = [(values <= z).mean() - z for z in grid]
        axis.step(grid, difference, where="mid", color="tab:blue")
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set_title(name, fontsize=9)
    figure.supxlabel("rank of the truth", fontsize=9)
    figure.supylabel("ECDF less uniform", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=200)
    options = options.parse_args()
    count, size, clouds = (2, 64, 2) if options.tiny else (options.seeds, 1024, 8)
    grid = np.arange(1, 100) / 100
    simulated = all_ranks("simulated", 1000, prior_images(count, size, clouds))
    pixels, simulated = simulated["pixels"], {name: simulated[name] for name in ORDER}
    null = tail(np.random.default_rng(0).uniform(size=(4000, count)), grid)
    rows = []
    for name, ranks in simulated.items():
        p_band = (null <= tail(ranks, grid)).mean()
        p_values = [f"{stats.kstest(ranks, 'uniform').pvalue:.2f}", f"{p_band:.2f}"]
        shares = [binomial(ranks, 0.5), binomial(ranks, 0.9)]
        rows.append([f"{count} simulated", name, *p_values, *shares])

    visible = np.asarray(VISIBLE)
    parts = {"pixels seen": visible, "pixels hidden": ~visible, "all pixels": visible | True}
    add = lambda data, pixels: rows.extend(
        [data, name, "", "", by_image(pixels[:, where], 0.5), by_image(pixels[:, where], 0.9)]
        for name, where in parts.items()
    )
    add(f"{count} simulated", pixels)
    images, _ = nd.pretrained.load_digits("test")
    real = all_ranks("real", 5000, images[: count // 2])
    for name in ORDER[:4]:
        shares = [binomial(real[name], 0.5), binomial(real[name], 0.9)]
        rows.append([f"{count // 2} real", name, "", "", *shares])
    add(f"{count // 2} real", real["pixels"])
    columns = ["data sets", "quantity", "p KS", "p band", "50 %", "90 %"]
    _table.emit("calibration", __doc__, columns, rows, options.save)
    if options.save:
        path = _table.ROOT / "docs" / "images" / "calibration.png"
        draw_figure(simulated, grid, np.quantile(null, 0.05), path)


if __name__ == "__main__":
    main()
