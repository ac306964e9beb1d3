"""Evidence of well-known targets without a diffusion prior, by default settings.

The same engine, pilot and moves on models of plain NumPyro, where `Annealed` is likelihood tempering: a
logistic regression (Pima, 9 dimensions), 32 dimensions of double wells (65,536 modes), a mixture of 40 far
Gaussians, and a log-Gaussian Cox process on a 32 x 32 grid (1,024 dimensions, whitened). All have
4 clouds of 1,000 particles. Truth: many-well by quadrature, mixture 0, the other
two by long runs of other samplers (Pima -392.867 +- 0.001; Cox process 503.39). `error` is the mean over
seeds, `stated` what a run says of itself, `z` the root mean square of error over stated error.
"""

import time
from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

DATA = Path(__file__).parent / "data"


def pima():
    table = np.genfromtxt(DATA / "pima.csv", delimiter=",")
    table = table[np.isfinite(table).all(1)]
    x, y = table[:, :-1], table[:, -1]
    x = 0.5 * (x - x.mean(0)) / x.std(0)

    def model():
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 20.0))
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 5.0).expand([x.shape[1]]).to_event(1))
        logits = intercept + jnp.asarray(x) @ slopes
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=jnp.asarray(y))

    return model, -392.867, 1000, 4


def many_well():
    def model():
        base = dist.Normal(0.0, 1.5)
        with numpyro.plate("wells", 16):
            x = numpyro.sample("x", base)
            y = numpyro.sample("y", dist.Normal(0.0, 1.0))
        energy = -0.5 * x - 6 * x**2 + x**4 + 0.5 * y**2
        start = base.log_prob(x) + dist.Normal(0.0, 1.0).log_prob(y)
        numpyro.factor("wells_of_all", -jnp.sum(energy + start))

    return model, 164.6957, 1000, 4


def mixture():
    means = jnp.asarray(np.loadtxt(DATA / "gmm40_means.csv", delimiter=","))
    scale = float(jax.nn.softplus(1.0))

    def model():
        base = dist.Normal(jnp.zeros(2), 30.0).to_event(1)
        x = numpyro.sample("x", base)
        terms = dist.Normal(means, scale).to_event(1).log_prob(x)
        numpyro.factor("target", jax.nn.logsumexp(terms) - jnp.log(40.0) - base.log_prob(x))

    return model, 0.0, 1000, 4


def cox_process(grid: int = 32):
    points = np.genfromtxt(DATA / "df_pines.csv", delimiter=",")[1:, 1:]
    cells = np.minimum(np.floor(grid * points).astype(int), grid - 1)
    counts = np.zeros((grid, grid))
    np.add.at(counts, tuple(cells.T), 1.0)
    place = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), -1).reshape(
        -1, 2
    )
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    root = np.linalg.cholesky(1.91 * np.exp(-33 * distance / grid) + 1e-9 * np.eye(grid**2))
    root, counts, mean = (
        jnp.asarray(root, jnp.float32),
        jnp.asarray(counts.ravel()),
        np.log(126) - 0.955,
    )

    def model():
        white = numpyro.sample("white", dist.Normal(0.0, 1.0).expand([grid**2]).to_event(1))
        field = mean + root @ white
        numpyro.factor("counts", jnp.sum(field * counts - jnp.exp(field) / grid**2))

    return model, 503.3939, 1000, 4


TARGETS = {
    "Pima": pima,
    "many-well, 32-D": many_well,
    "GMM-40": mixture,
    "Cox process": cox_process,
}


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    rows = []
    for name, make in TARGETS.items():
        model, truth, size, clouds = make()
        seeds = options.seeds
        if options.tiny:
            if name == "Cox process":
                continue
            size, clouds, seeds = 64, 2, 1
        errors, stated, seconds = [], [], []
        smc = nd.SMC(model, num_particles=size, num_chains=clouds, progress_bar=False)
        for seed in range(seeds):
            started = time.perf_counter()
            smc.run(jax.random.key(seed))
            seconds.append(time.perf_counter() - started)
            errors.append(smc.log_evidence - truth)
            stated.append(smc.log_evidence_error)
        errors, stated = np.array(errors), np.array(stated)
        rows.append(
            [
                name,
                smc.result.num_levels_run,
                f"{clouds} x {size}",
                f"{truth:.2f}",
                f"{errors.mean():+.2f} +- {errors.std():.2f}",
                f"{np.abs(errors).max():.2f}",
                f"{stated.mean():.2f}",
                f"{np.sqrt(np.mean((errors / stated) ** 2)):.2f}",
                f"{np.median(seconds):.0f}",
            ]
        )
    columns = ["target", "levels", "particles", "truth", "error", "worst", "stated", "z", "s a run"]
    _table.emit("evidence_targets", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
