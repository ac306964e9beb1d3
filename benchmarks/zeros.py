"""Likelihoods that are 0 somewhere: evidence and posterior mean against quadrature, in every sampler.

Two mixtures of two normal distributions, .6 N(-1, .3) + .4 N(1.5, .5) and .3 N(-2, .5) + .7 N(1, .2) with
variances in brackets, under hard sets, bounded noise, supports that move with the latent, rounding,
logarithms of negative numbers, and steep steps. 4 clouds of 1,000 particles, or 4 ladders or chains of 1,000
draws (of 32 particles in `ParticleGibbs`, 64 in `ParticleMarginal`), a quarter of them where a sweep has more
than 100 levels; other settings are the defaults, but for up to 1,000 levels of `ReverseDiffusion`. Floats
have 32 bits, 64 with `--x64`. `ParticleMarginal` has another latent site beside x, theta from N(0, 1), and
another datum, .3 from N(x + theta, .25), so that its exact values differ.

`worst z` is the largest distance from the truth over the keys, in stated standard errors; `z` that of the
average mean of x, in those of an average. `Twisted` has the distribution of its own reverse sampler for a
prior, which in 100 steps is some hundredths of a nat off: what is exact for it are means over a million draws
of that prior, made without data, good to .006 nat.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from scipy import stats

import numpyro_diffusion as nd

X = np.linspace(-10, 10, 1_000_001)
COLUMNS = [
    "sampler",
    "model",
    "exact",
    "log evidence",
    "worst z",
    "mean of x",
    "z",
    "levels",
]
NEVER, ALL = -np.inf, np.inf


class Law(NamedTuple):
    weights: Any
    means: Any
    variances: Any

    def energy(self):
        return nd.GaussianMixture(
            self.weights, np.array(self.means)[:, None], np.array(self.variances)[:, None, None]
        )

    def density(self):
        sd = np.sqrt(np.array(self.variances) + 0.004**2)  # with the noise of t_min
        return (np.array(self.weights) * stats.norm.pdf(X[:, None], self.means, sd)).sum(1)


FIRST, SECOND = Law((0.6, 0.4), (-1.0, 1.5), (0.3, 0.5)), Law((0.3, 0.7), (-2.0, 1.0), (0.5, 0.2))


def hard(prior, low, high, within, elsewhere, y, sd):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("hard", jnp.where((x > low) & (x < high), within, elsewhere))
    numpyro.sample("y", dist.Normal(x, sd), obs=y)
    return x


def bounded(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.Uniform(x - 0.5, x + 0.5), obs=y)
    return x


def pareto(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.Pareto(jnp.exp(x), 3.0), obs=y)
    return x


def truncated(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.TruncatedNormal(0.0, 1.0, low=x, high=x + 1.5), obs=y)
    return x


def rounded(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("rounded", jnp.where(jnp.round(x) == 1, 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
    return x


def logarithm(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("log", jnp.log(x - 0.2))
    numpyro.sample("y", dist.Normal(x, 0.4), obs=y)
    return x


class Beside:
    """The model with another latent site and another datum."""

    def __init__(self, model: Callable):
        self.model = model

    def __call__(self, *args):
        x = self.model(*args)
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(x + theta, 0.5), obs=jnp.asarray(0.3))


class Problem(NamedTuple):
    law: Law
    model: Callable
    args: tuple
    log_likelihood: np.ndarray

    def beside(self) -> "Problem":
        other = stats.norm.logpdf(0.3, X, 1.25**0.5)
        return self._replace(model=Beside(self.model), log_likelihood=self.log_likelihood + other)

    def exact(self, draws: np.ndarray | None = None) -> tuple[float, float]:
        """Log evidence and posterior mean by quadrature, or under a prior that is known by draws."""
        if draws is not None:
            weights = np.interp(draws, X, np.exp(self.log_likelihood))
            return float(np.log(weights.mean())), float(weights @ draws / weights.sum())
        terms = self.law.density() * np.exp(self.log_likelihood)
        total = np.trapezoid(terms, X)
        return float(np.log(total)), float(np.trapezoid(terms * X, X) / total)


def _cut(law, low, high, within, elsewhere, y=0.0, sd=1e3):
    value = np.where((low < X) & (high > X), within, elsewhere) + stats.norm.logpdf(y, X, sd)
    return Problem(law, hard, (low, high, within, elsewhere, y, sd), value)


def problems() -> dict[str, Problem]:
    four = np.array([0.6, 0.3, 0.9, 0.55])
    inside = lambda y: np.where(np.abs(X - y) <= 0.5, 0.0, NEVER)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = np.where(np.exp(X) <= 1.5, np.log(3) + 3 * X - 4 * np.log(1.5), NEVER)
        mass = stats.norm.cdf(X + 1.5) - stats.norm.cdf(X)
        window = np.where((X <= 0.8) & (X >= -0.7), stats.norm.logpdf(0.8) - np.log(mass), NEVER)
        near = stats.norm.logpdf(0.7, X, 0.5)
        logs = np.where(X > 0.2, np.log(np.maximum(X - 0.2, 1e-300)), NEVER)
    return {
        "x > 1 cut off": _cut(FIRST, 1.0, ALL, NEVER, 0.0, 0.6, 0.4),
        "x > 1 cut off, second prior": _cut(SECOND, 1.0, ALL, NEVER, 0.0, 0.7, 0.5),
        "x < 0 cut off, no data": _cut(SECOND, -ALL, 0.0, NEVER, 0.0),
        "a gap at the prior's mean": _cut(SECOND, -0.1, 0.7, NEVER, 0.0, 0.7, 0.5),
        "x < .4 cut off, the mean with it": _cut(FIRST, -ALL, 0.4, NEVER, 0.0, 0.6, 0.4),
        "all but 1 %": _cut(FIRST, -ALL, 2.6, NEVER, 0.0),
        "a step of -30": _cut(FIRST, 1.0, ALL, -30.0, 0.0, 0.6, 0.4),
        "a step of -30, second prior": _cut(SECOND, 1.0, ALL, -30.0, 0.0, 0.7, 0.5),
        "uniform noise": Problem(FIRST, bounded, (0.6,), inside(0.6)),
        "uniform noise, four data": Problem(FIRST, bounded, (four,), sum(map(inside, four))),
        "Pareto with scale exp(x)": Problem(FIRST, pareto, (1.5,), scale),
        "truncated normal from x to x + 1.5": Problem(FIRST, truncated, (0.8,), window),
        "rounded to 1": Problem(
            SECOND, rounded, (0.7,), near + np.where(np.round(X) == 1, 0.0, NEVER)
        ),
        "log of x - .2, else NaN": Problem(
            FIRST, logarithm, (0.6,), stats.norm.logpdf(0.6, X, 0.4) + logs
        ),
    }


SAMPLERS = {
    "Annealed": nd.Annealed(),
    "ReverseDiffusion": nd.ReverseDiffusion(pilot=nd.schemes.Pilot(max_levels=1000)),
    "LikelihoodTempered": nd.LikelihoodTempered(),
    "Twisted": nd.Twisted(),
    "replica_exchange": None,
    "ParticleGibbs": None,
    "ParticleMarginal": None,
}
KERNELS = {
    "ParticleGibbs": lambda model: nd.ParticleGibbs(model, num_particles=32),
    "ParticleMarginal": nd.ParticleMarginal,
}


def by_smc(scheme, problem: Problem, num_particles: int):
    smc = nd.SMC(
        problem.model, scheme, num_particles=num_particles, num_chains=4, progress_bar=False
    )

    def run(key):
        smc.run(key, problem.law.energy(), *map(jnp.asarray, problem.args))
        samples, weights = smc.get_weighted_samples()
        x, weights = np.asarray(samples["x"])[..., 0], np.asarray(weights)
        mean = (x * weights).sum() / weights.sum()
        number = len(np.asarray(smc.result.levels.clock))
        return smc.log_evidence, smc.log_evidence_error, mean, number

    return run


def of_reverse_sampler(law: Law, number: int):
    """Draws of the prior that `Twisted` has: without data its particles are that, and their weights equal."""

    def prior():
        numpyro.sample("x", nd.DiffusionPrior(law.energy()))

    smc = nd.SMC(
        prior,
        SAMPLERS["Twisted"],
        num_particles=number // 4,
        num_chains=4,
        batch_size=100_000,
        progress_bar=False,
    )
    smc.run(jax.random.key(99))
    return np.asarray(smc.get_weighted_samples()[0]["x"])[..., 0].ravel()


def by_replicas(problem: Problem, num_draws: int):
    bridge = nd.from_model(problem.model, problem.law.energy(), *map(jnp.asarray, problem.args))

    def run(key):
        found = nd.replica_exchange(key, bridge, num_draws=num_draws)
        mean, number = float(np.mean(found.positions["x"])), len(found.swap_acceptance)
        return found.log_evidence, found.log_evidence_error, mean, number

    return run


def by_kernel(kernel, problem: Problem, num_draws: int):
    """All chains of all keys side by side, in one program."""

    def run(num_keys, seed):
        args = (problem.law.energy(), *map(jnp.asarray, problem.args))
        levels = len(kernel.make(args, {}).levels.clock)
        draws = num_draws // 4 if levels > 100 else num_draws
        chains = MCMC(
            kernel,
            num_warmup=max(draws // 4, 20),
            num_samples=draws,
            num_chains=4 * num_keys,
            chain_method="vectorized",
            jit_model_args=True,
            progress_bar=False,
        )
        chains.run(jax.random.key(seed), *args)
        x = np.asarray(chains.get_samples(group_by_chain=True)["x"])
        means = x.reshape(num_keys, -1).mean(1)
        return [(np.nan, np.nan, mean, levels) for mean in means]

    return run


def kept_rows(table: str) -> list[list[str]]:
    """Rows of a run that was cut off."""
    path = _table.ROOT / "benchmarks" / "results" / f"{table}.md"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def found(name, scheme, problem, size, seeds, seed):
    """Log evidence, its error, mean of x and number of levels, by key; chains of all keys from one `seed`."""
    if name in KERNELS:
        return by_kernel(KERNELS[name](problem.model), problem, size)(seeds, seed)
    run = by_smc(scheme, problem, size) if scheme else by_replicas(problem, size)
    return [run(jax.random.key(seed)) for seed in range(seeds)]


def row_of(name, what, exact, results):
    """A row of the table."""
    got, error, means, number = np.array(results).T
    spread = lambda values: values.std(ddof=1) if len(values) > 1 else 0.0
    evidence = ["", ""]
    if not np.isnan(got).any():
        worst = np.abs((got - exact[0]) / error).max()
        evidence = [f"{got.mean():.3f} ± {spread(got):.3f}", f"{worst:.1f}"]
    z = abs(means.mean() - exact[1]) / (spread(means) or 1) * len(means) ** 0.5
    return [
        name,
        what,
        f"{exact[0]:.3f}, {exact[1]:.3f}",
        *evidence,
        f"{means.mean():.3f} ± {spread(means):.3f}",
        f"{z:.1f}",
        f"{number.mean():.0f}",
    ]


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--only", default="", help="samplers whose name holds this")
    options.add_argument("--x64", action="store_true", help="64-bit floats in place of 32-bit ones")
    options.add_argument(
        "--more", action="store_true", help="go on with the rows of the saved table"
    )
    options = options.parse_args()
    jax.config.update("jax_enable_x64", options.x64)
    size, seeds = (100, 1) if options.tiny else (1000, options.seeds)
    table = "-".join(["zeros", *filter(None, [options.only, "x64" * options.x64])])
    rows = kept_rows(table) if options.more else []
    done = {tuple(row[:2]) for row in rows}
    for name, scheme in SAMPLERS.items():
        if options.only not in name:
            continue
        own = {}
        if name == "Twisted":
            number = 4000 if options.tiny else 1_000_000
            own = {law: of_reverse_sampler(law, number) for law in (FIRST, SECOND)}
        for index, (what, problem) in enumerate(problems().items()):
            if (name, what) in done:
                continue
            problem = problem.beside() if name == "ParticleMarginal" else problem
            try:
                results = found(name, scheme, problem, size, seeds, index)
                rows.append(row_of(name, what, problem.exact(own.get(problem.law)), results))
            except (nd.schemes.pilot.PilotError, FloatingPointError) as error:
                rows.append([name, what, "", type(error).__name__, "", "", "", ""])
                print(error)
            jax.clear_caches()  # nothing is shared between models, and memory adds up
            _table.emit(table, __doc__, COLUMNS, rows, options.save)


if __name__ == "__main__":
    main()
