"""Are error bars of few clouds honest on posteriors with several modes, and does the verdict say where not?

Mixtures of two unlike Gaussians in the plane as priors, seen through a function that does not tell modes
apart: their squares, moduli, sum of squares, product, or the sine of one of them. Truth is quadrature on a
grid. `nd.SMC` with default settings but for the particles; 12 runs of 4 clouds for each of `--seeds` pilots.

`z` is the root mean square of errors in units of the stated error (1 is right, less is too careful), then the
share of runs within 1.96 of them (95 % is right) and the worst; of the log evidence, and of the mean of the
first coordinate. `plain` is the larger of the two errors, by genealogies and across clouds, as it is without
the widening by few or uneven families and by refuted ones. `width` is stated over plain, the median of runs.
The last columns are shares of runs by the first sentence of their verdict. `ReverseDiffusion` is the scheme
whose families know least, shown for what the verdict says of it.
"""

from typing import NamedTuple

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics
from numpyro_diffusion.diagnostics.table import means_and_errors

GROUP, GROUPS = 4, 12


class Problem(NamedTuple):
    """A prior, what is seen of it, with which noise."""

    prior: nd.GaussianMixture
    seen: object
    data: tuple
    noise: float

    def model(self, y):
        x = numpyro.sample("x", nd.DiffusionPrior(self.prior))
        numpyro.sample("y", dist.Normal(self.seen(x), self.noise).to_event(1), obs=y)

    def exact(self):
        """Log evidence and posterior mean."""
        line = np.linspace(-6.0, 6.5, 1601)
        grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        y, t = jnp.asarray(self.data), jnp.asarray(self.prior.t_min)

        @jax.jit
        @jax.vmap
        def joint(x):
            return (
                self.prior.log_density(x, t)
                + dist.Normal(self.seen(x), self.noise).log_prob(y).sum()
            )

        logs = [np.asarray(joint(jnp.asarray(part)), float) for part in np.array_split(grid, 40)]
        total = logsumexp(logs := np.concatenate(logs))
        return total + 2 * np.log(line[1] - line[0]), np.exp(logs - total) @ grid


BROAD, TIED = [[0.6, 0.3], [0.3, 0.5]], [[0.6, 0.5], [0.5, 0.6]]
UNLIKE = nd.GaussianMixture(
    [0.8, 0.2], [[-0.6, -0.5], [1.2, 1.4]], [BROAD, [[0.8, 0.1], [0.1, 0.9]]]
)
TWO_TIED = nd.GaussianMixture(
    [0.7, 0.3], [[-1.0, -1.0], [1.2, 1.2]], [TIED, [[0.1, 0.05], [0.05, 0.1]]]
)
ONE_SMALL = nd.GaussianMixture([0.8, 0.2], [[-1.0, -1.0], [1.5, 1.0]], [BROAD, 0.03 * np.eye(2)])
RARE = nd.GaussianMixture([0.95, 0.05], [[0.0, 0.0], [2.5, 2.5]], [np.eye(2), 0.02 * np.eye(2)])
PROBLEMS = {
    "squares": Problem(UNLIKE, lambda x: x**2, (1.5, 1.0), 0.3),
    "moduli, tied": Problem(TWO_TIED, jnp.abs, (1.3, 1.0), 0.15),
    "sum of squares": Problem(ONE_SMALL, lambda x: jnp.sum(x**2)[None], (3.25,), 0.1),
    "sine": Problem(ONE_SMALL, lambda x: jnp.sin(3 * x[:1]), (0.5,), 0.1),
    "product and difference": Problem(
        RARE, lambda x: jnp.stack([x[0] * x[1], x[0] - x[1]]), (6.25, 0.0), 0.4
    ),
}
VERDICTS = {
    "nothing": "Nothing to worry",
    "few families": "A few families hold",
    "differ": "The clouds differ",
    "disagree": "The clouds disagree",
}


def few(result, clouds):
    """A result with some of its clouds."""
    names = "positions log_weights log_evidence log_evidence_error initial_info trace state".split()
    take = lambda tree: jax.tree.map(lambda leaf: leaf[clouds], tree)
    return result._replace(**{name: take(getattr(result, name)) for name in names})


def judged(result, exact, mean):
    """Errors in units of plain and of stated ones, of evidence and mean; widths, and words of the verdict."""
    shares = diagnostics.cloud_shares(result)
    off = logsumexp(result.log_evidence) - np.log(GROUP) - exact
    spread = np.std(GROUP * shares, ddof=1) / GROUP**0.5
    plain = max(np.linalg.norm(shares * result.log_evidence_error), spread)
    stated = diagnostics.log_evidence_error(result)
    # Draws of equal weights, as a summary takes them.
    logs = np.asarray(result.log_weights, float)
    weights = np.exp(logs - logsumexp(logs, 1, keepdims=True))
    count = logs.shape[1]
    index = np.array(
        [np.searchsorted(np.cumsum(w), (np.arange(count) + 0.5) / count) for w in weights]
    )
    index = np.minimum(index, count - 1)
    values = np.take_along_axis(np.asarray(result.positions["x"], float)[..., 0], index, 1)[
        ..., None
    ]
    families = np.take_along_axis(np.asarray(result.state.ancestors), index, 1)
    means, errors = means_and_errors(values, shares, families)
    by_cloud = values.mean(1)[:, 0]
    sums = [
        s * np.bincount(f, v[:, 0] - means[0]) / count
        for s, f, v in zip(shares, families, values, strict=True)
    ]
    by_family = np.sqrt(sum(np.sum(each**2) for each in sums) * count / (count - 1))
    across = np.sqrt(GROUP / (GROUP - 1) * np.sum((shares * (by_cloud - means[0])) ** 2))
    plain_mean, gap = max(by_family, across), means[0] - mean[0]
    words = diagnostics.verdict(result)
    return [
        off / plain,
        off / stated,
        stated / plain,
        gap / plain_mean,
        gap / errors[0],
        errors[0] / plain_mean,
        *(words.startswith(start) for start in VERDICTS.values()),
    ]


def units(values):
    size, worst = np.abs(values), values[np.argmax(np.abs(values))]
    return f"{np.sqrt(np.mean(size**2)):.2f}, {np.mean(size < 1.96):.0%}, {worst:+.1f}"


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=8)
    options = options.parse_args()
    sizes, seeds, groups = ((32,), 1, 2) if options.tiny else ((128, 512), options.seeds, GROUPS)
    cases = [(name, nd.Annealed(), size) for name in PROBLEMS for size in sizes]
    cases += [("product and difference", nd.ReverseDiffusion(), size) for size in sizes[:1]]
    rows, exact = [], {name: problem.exact() for name, problem in PROBLEMS.items()}
    for name, scheme, size in cases:
        found, problem = [], PROBLEMS[name]
        for seed in range(seeds):
            smc = nd.SMC(
                problem.model,
                scheme,
                num_particles=size,
                num_chains=GROUP * groups,
                progress_bar=False,
            )
            smc.run(jax.random.key(seed), jnp.asarray(problem.data))
            parts = (slice(GROUP * i, GROUP * i + GROUP) for i in range(groups))
            found += [judged(few(smc.result, part), *exact[name]) for part in parts]
        found = np.array(found, float).T
        rows.append(
            [
                name,
                type(scheme).__name__,
                size,
                found.shape[1],
                *(units(found[i]) for i in (0, 1)),
                f"{np.median(found[2]):.2f}",
                *(units(found[i]) for i in (3, 4)),
                f"{np.median(found[5]):.2f}",
                *(f"{share:.0%}" for share in found[6:].mean(1)),
            ]
        )
        print(rows[-1], flush=True)
    columns = [
        "seen",
        "scheme",
        "particles",
        "runs",
        "evidence, plain: z",
        "stated: z",
        "width",
        "mean, plain: z",
        "stated: z",
        "width",
        *VERDICTS,
    ]
    _table.emit("error_bars", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
