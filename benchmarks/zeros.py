"""Likelihoods that are 0 somewhere: evidence and posterior mean against quadrature, in every sampler.

Two mixtures of two normal laws, .6 N(-1, .3) + .4 N(1.5, .5) and .3 N(-2, .5) + .7 N(1, .2) with variances
in brackets, under hard sets, bounded noise, supports that move with the latent, rounding, logarithms of
negative numbers, and steep steps. 4 clouds of 1,000 particles, or 4 ladders or chains of 1,000 draws (of 32
particles in `ParticleGibbs`); other settings are the defaults, but for up to 1,000 levels of
`ReverseDiffusion`. Floats have 32 bits, 64 with `--x64`.

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


def bounded(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.Uniform(x - 0.5, x + 0.5), obs=y)


def pareto(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.Pareto(jnp.exp(x), 3.0), obs=y)


def truncated(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.sample("y", dist.TruncatedNormal(0.0, 1.0, low=x, high=x + 1.5), obs=y)


def rounded(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("rounded", jnp.where(jnp.round(x) == 1, 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def logarithm(prior, y):
    x = numpyro.sample("x", nd.DiffusionPrior(prior))[0]
    numpyro.factor("log", jnp.log(x - 0.2))
    numpyro.sample("y", dist.Normal(x, 0.4), obs=y)


class Problem(NamedTuple):
    law: Law
    model: Callable
    args: tuple
    log_likelihood: np.ndarray

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


def by_gibbs(problem: Problem, num_draws: int):
    kernel = nd.ParticleGibbs(problem.model, num_particles=32)
    chains = MCMC(
        kernel,
        num_warmup=num_draws // 10,
        num_samples=num_draws,
        num_chains=4,
        chain_method="vectorized",
        jit_model_args=True,
        progress_bar=False,
    )

    def run(key):
        chains.run(key, problem.law.energy(), *map(jnp.asarray, problem.args))
        return np.nan, np.nan, float(chains.get_samples()["x"].mean()), np.nan

    return run


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--only", default="", help="samplers whose name holds this")
    options.add_argument("--x64", action="store_true", help="64-bit floats in place of 32-bit ones")
    options = options.parse_args()
    jax.config.update("jax_enable_x64", options.x64)
    size, seeds = (100, 1) if options.tiny else (1000, options.seeds)
    rows = []
    table = "-".join(["zeros", *filter(None, [options.only, "x64" * options.x64])])
    for name, scheme in SAMPLERS.items():
        if options.only not in name:
            continue
        own = {}
        if name == "Twisted":
            number = 4000 if options.tiny else 1_000_000
            own = {law: of_reverse_sampler(law, number) for law in (FIRST, SECOND)}
        for what, problem in problems().items():
            others = {"replica_exchange": by_replicas, "ParticleGibbs": by_gibbs}
            run = others[name](problem, size) if scheme is None else by_smc(scheme, problem, size)
            try:
                found = np.array([run(jax.random.key(seed)) for seed in range(seeds)])
            except (nd.schemes.pilot.PilotError, FloatingPointError) as error:
                rows.append([name, what, "", type(error).__name__, "", "", "", ""])
                print(error)
                continue
            (log_evidence, mean) = problem.exact(own.get(problem.law))
            got, error, means, number = found.T
            deviation = lambda values: values.std(ddof=1) if seeds > 1 else 0.0
            rows.append(
                [
                    name,
                    what,
                    f"{log_evidence:.3f}, {mean:.3f}",
                    "" if np.isnan(got).any() else f"{got.mean():.3f} ± {deviation(got):.3f}",
                    ""
                    if np.isnan(got).any()
                    else f"{np.abs((got - log_evidence) / error).max():.1f}",
                    f"{means.mean():.3f} ± {deviation(means):.3f}",
                    f"{abs(means.mean() - mean) / (deviation(means) or 1) * seeds**0.5:.1f}",
                    "" if np.isnan(number).any() else f"{number.mean():.0f}",
                ]
            )
            _table.emit(table, __doc__, COLUMNS, rows, options.save)


if __name__ == "__main__":
    main()
