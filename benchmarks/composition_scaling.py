"""Where weights of compositions stop working: errors of the log evidence from 2 to 512 dimensions.

Two mixtures of two Gaussians with unequal variances along every axis; their product, and the first at
temperature 1/2, both with a normaliser in closed form. 100 levels equal in log-SNR, 500 particles, 8 clouds.
`energies` are reverse-diffusion kernels to the powers of the laws, with weights alone or with one Hamiltonian
move a level; `annealed` is that move with weights between levels; the others need scores alone. Error of the
mean and spread over clouds, in nats; the figure (of all tables that are saved) shows the root of their
mean square. A spread of some 2 nats
is where a cloud of this size has collapsed.
"""

from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd

matplotlib.use("agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)
DIMENSIONS = (2, 8, 32, 128)


def energy_of(parameters, x, t):
    """A mixture of Gaussians with diagonal covariances, noised exactly."""
    weights, means, variances, schedule = parameters
    alpha, sigma = schedule(t)
    values = alpha**2 * variances + sigma**2
    gaps = (x - alpha * means) ** 2 / values + jnp.log(2 * jnp.pi * values)
    return -jax.nn.logsumexp(jnp.log(weights) - 0.5 * jnp.sum(gaps, -1))


def mixture(dimension: int, seed: int) -> nd.EnergyFunction:
    """Two components, a few standard deviations apart in all, whatever the dimension."""
    rng = np.random.default_rng((seed, dimension))
    weights = np.array([0.35, 0.65])
    means = rng.standard_normal((2, dimension)) * 1.5 / dimension**0.5
    variances = rng.uniform(0.2, 1.0, (2, dimension))
    mean = weights @ means
    return nd.EnergyFunction(
        energy_of,
        (dimension,),
        params=(*map(jnp.asarray, (weights, means, variances)), nd.schedules.VariancePreserving()),
        mean=mean,
        variance=weights @ (variances + (means - mean) ** 2),
        log_normalizer=0.0,
    )


def log_integral(first: nd.EnergyFunction, second: nd.EnergyFunction) -> float:
    """Of the product of two mixtures, as they are at `t_min`: a sum over pairs of components."""
    alpha, sigma = (float(v) for v in first.schedule(jnp.asarray(first.t_min)))

    def parts(energy):
        weights, means, variances = (np.asarray(leaf) for leaf in energy.params[:3])
        return weights, alpha * means, alpha**2 * variances + sigma**2

    terms = [
        np.log(w1 * w2) + norm.logpdf(m1, m2, np.sqrt(v1 + v2)).sum()
        for w1, m1, v1 in zip(*parts(first), strict=True)
        for w2, m2, v2 in zip(*parts(second), strict=True)
    ]
    return float(logsumexp(terms))


def families() -> dict:
    schemes = nd.schemes
    composed = lambda c: nd.ScoreComposition(levels=100, correction=c)
    return {
        "energies, weights alone": nd.ReverseDiffusion(levels=100, moves=0),
        "energies, with moves": nd.ReverseDiffusion(levels=100),
        "annealed": nd.Annealed(levels=100, moves=1),
        "ratios of kernels (RNE)": composed(schemes.RadonNikodym()),
        "continuous time (FKC)": composed(schemes.FeynmanKacCorrection()),
        "continuous time, controlled": composed(schemes.DriftLite()),
    }


def saved() -> dict:
    """Root mean square errors of the tables that are kept, by law, dimension and weights."""
    found = {}
    for path in sorted((_table.ROOT / "benchmarks" / "results").glob("composition_scaling*.md")):
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 5 and cells[1].isdigit():
                mean, spread = map(float, cells[3].split(" +- "))
                found[cells[0], int(cells[1]), cells[2]] = float(np.hypot(mean, spread))
    return found


def figure(results: dict, path: Path) -> None:
    plot, axes = plt.subplots(1, 2, figsize=(8.5, 3.8), sharey=True, layout="constrained")
    dimensions = sorted({dimension for _, dimension, _ in results})
    for axis, law in zip(axes, ("product", "temperature 1/2"), strict=True):
        for name in families():
            found = [(d, results[law, d, name]) for d in dimensions if (law, d, name) in results]
            axis.plot(*zip(*found, strict=True), "o-", label=name, markersize=3)
        axis.axhline(2, color="0.7", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="dimensions", title=law)
    axes[0].set_ylabel("error of the log evidence [nats]")
    plot.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    plot.savefig(path, dpi=120)


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS)
    options = parser.parse_args()
    particles, clouds = (50, 2) if options.tiny else (500, 8)
    rows = []
    for dimension in options.dimensions[:1] if options.tiny else options.dimensions:
        one, other = mixture(dimension, 0), mixture(dimension, 1)
        laws = {
            "product": (one + other, log_integral(one, other)),
            "temperature 1/2": (one / 0.5, log_integral(one, one)),
        }
        for law, (energy, truth) in laws.items():
            for name, scheme in families().items():
                bridge = nd.from_energy(energy, bridge_type=scheme.bridge_type)
                model = scheme(bridge, jax.random.key(0))
                result = nd.run_smc(jax.random.key(1), model, particles, num_chains=clouds)
                error = np.asarray(result.log_evidence) - truth
                each = scheme.evaluations_per_level(bridge, result.levels)
                cell = f"{error.mean():.3f} +- {error.std(ddof=1):.3f}"
                rows.append([law, dimension, name, cell, f"{each:.3g}"])
                print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
                jax.clear_caches()  # a process cannot map the code of all these programs at once
    columns = ["law", "d", "weights", "log evidence less truth", "evaluations a level"]
    whole = tuple(options.dimensions) == DIMENSIONS
    name = "-".join(["composition_scaling", *(map(str, options.dimensions) if not whole else [])])
    _table.emit(name, __doc__, columns, rows, options.save)
    if options.save:
        figure(saved(), _table.ROOT / "docs" / "images" / "composition-scaling.png")


if __name__ == "__main__":
    main()
