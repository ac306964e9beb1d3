"""Amortised proposals beside the ordinary run: evidence, and network evaluations for an effective sample.

A proposal is fitted once to simulations of a model (`nd.ppl.fit_proposal`), and `nd.SMC(model,
initial=proposal)` starts there for one data set after another; beside it `nd.SMC(model)` with its defaults.
Data sets are draws of the model, or test digits, noisy (sigma 0.2, unknown) and with two of eight columns
hidden, under the prior `digits-8x8`.

Error: of the log evidence, mean over `--seeds` runs and, in brackets, their spread; `stated` is what a run
says of it. Of a learned prior the exact evidence is not known: the reference, evidence and means, is all
`--seeds` ordinary runs and one of four times the particles together. Effective samples: posterior variance
of a function over the mean squared error of its estimate in these runs, the number of independent exact
draws that would do as well, the median over the coordinates of x and the other sites. Evaluations are of
the prior's density, with or without its gradient, in thousands a run, pilots apart. `gain` is the ratio of
effective samples an evaluation, proposal over ordinary. Pareto k-hat is the median of those of the runs.

What the proposal costs once, simulations and training, is below the table.
"""

import functools
import time
from typing import Any, NamedTuple

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_form import Problem, eight_dimensional, three_modes

import numpyro_diffusion as nd


class Task(NamedTuple):
    """A model, data sets and what is known of their posteriors."""

    name: str
    model: Any
    data: list[tuple]
    problems: list[Problem] | None
    num_particles: int
    options: dict[str, Any]


def simulated(problem: Problem, count: int) -> list[Problem]:
    """The same problem with data drawn from it."""
    rng = np.random.default_rng(7)
    problems = []
    for _ in range(count):
        k = rng.choice(len(problem.weights), p=problem.weights)
        x = rng.multivariate_normal(problem.means[k], problem.covariances[k])
        offset = problem.offset_scale * rng.normal()
        data = problem.operator @ x + offset + problem.sigma * rng.normal(size=len(problem.data))
        problems.append(problem._replace(data=data))
    return problems


def closed(name: str, problem: Problem, count: int, tiny: bool) -> Task:
    problems = simulated(problem, count)
    # The model's own code, data as arguments: one program for all data sets.
    data = [(jnp.asarray(p.operator), jnp.asarray(p.data)) for p in problems]
    options = {"simulations": 400, "steps": 50} if tiny else {}
    return Task(name, problem.model, data, problems, 100 if tiny else 1000, options)


def digits(count: int, tiny: bool) -> Task:
    energy = nd.load_pretrained("digits-8x8")
    images, _ = nd.pretrained.load_digits("test")
    visible = jnp.ones((8, 8), bool).at[:, 4:6].set(False)

    def model(visible, y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.5, 0.5))
        numpyro.sample("y", dist.Normal(x, sigma).mask(visible).to_event(2), obs=y)

    noise = 0.2 * np.random.default_rng(7).normal(size=(count, 8, 8))
    data = [
        (visible, jnp.asarray(np.where(visible, images[3 + i] + noise[i], 0.0)))
        for i in range(count)
    ]
    options = (
        {"simulations": 400, "steps": 10, "components": 2, "width": 16}
        if tiny
        else {"components": 4}
    )
    return Task("digit, hidden columns", model, data, None, 32 if tiny else 256, options)


class Runs(NamedTuple):
    """Log evidences, stated errors and weighted means of some runs, and evaluations of one."""

    log_evidence: np.ndarray
    stated: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    evaluations: float
    pareto_k: float


def run(make, data: tuple, seeds) -> Runs:
    rows = []
    for seed in seeds:
        smc = make().run(jax.random.key(seed), *data)
        samples, weights = smc.get_weighted_samples()
        weights = np.asarray(weights, float)
        flat = [
            np.asarray(v, float).reshape(*weights.shape, -1) for _, v in sorted(samples.items())
        ]
        values = np.concatenate(flat, -1)
        found = smc.proposal_diagnostics
        k = np.nan if found is None else found.pareto_k
        mean = functools.partial(np.einsum, "cn,cnd->d", weights)
        rows.append((smc._log_evidence, smc.log_evidence_error, mean(values), mean(values**2),
                     smc.network_evaluations, k))  # fmt: skip
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Runs(*columns[:4], float(columns[4].mean()), float(np.median(columns[5])))


def truth(task: Task, i: int, ordinary: Runs, large: Runs | None):
    """Log evidence, and means and variances of all coordinates."""
    if task.problems is not None:
        exact = task.problems[i].exact()
        mean, variance = exact.mean, exact.variance
        if task.problems[i].offset_scale:  # sites in alphabetical order
            mean = np.concatenate([[exact.offset_mean], mean])
            variance = np.concatenate([[exact.offset_sd**2], variance])
        return exact.log_evidence, mean, variance
    assert large is not None
    share = len(ordinary.means) / (len(ordinary.means) + 4)
    both = lambda a, b: share * a.mean(0) + (1 - share) * b.mean(0)
    mean, square = both(ordinary.means, large.means), both(ordinary.squares, large.squares)
    evidence = np.log(both(np.exp(ordinary.log_evidence), np.exp(large.log_evidence)))
    return float(evidence), mean, square - mean**2


def main() -> None:
    options = _table.parser(__doc__)
    arguments = options.parse_args()
    tiny, seeds = arguments.tiny, 2 if arguments.tiny else arguments.seeds
    gaussian = eight_dimensional(6)
    gaussian = gaussian._replace(
        weights=np.ones(1),
        means=gaussian.means[:1],
        covariances=gaussian.covariances[:1],
        sigma=0.2,
    )
    count = 1 if tiny else 3
    tasks = [
        closed("8-D Gaussian", gaussian, count, tiny),
        closed("2-D mixture, offset", three_modes(), count, tiny),
        digits(count, tiny),
    ]
    rows, notes = [], []
    for task in tasks:
        started = time.perf_counter()
        proposal = nd.ppl.fit_proposal(
            jax.random.key(1000), task.model, *task.data[0], **task.options, progress_bar=False
        )
        seconds = time.perf_counter() - started
        simulations = task.options.get("simulations", 10_000)
        draws = (
            f"{simulations * 200 / 1000:,.0f} thousand evaluations"
            if task.problems is None
            else "exact"
        )
        notes.append(
            f"{task.name}: {simulations:,} simulations (draws of the prior: {draws}) and "
            f"{proposal.fit.history['step'][-1]} steps of training, {seconds:.0f} s in all; "
            f"{proposal.fit.verdict}"
        )
        sizes = {"num_particles": task.num_particles, "progress_bar": False}
        sampler = functools.partial(nd.SMC, task.model, **sizes)
        for i, data in enumerate(task.data):
            ordinary = run(sampler, data, range(seeds))
            large = None
            if task.problems is None:
                more = functools.partial(sampler, num_particles=4 * task.num_particles)
                large = run(more, data, [999])
            log_evidence, mean, variance = truth(task, i, ordinary, large)
            from_proposal = run(functools.partial(sampler, initial=proposal), data, range(seeds))
            each = []
            for name, runs in (("ordinary", ordinary), ("from proposal", from_proposal)):
                errors = runs.log_evidence - log_evidence
                effective = float(np.median(variance / np.mean((runs.means - mean) ** 2, 0)))
                each.append(effective / runs.evaluations)
                rows.append([
                    f"{task.name}, data {i + 1}", name,
                    f"{errors.mean():+.3f} ({errors.std(ddof=1):.3f})", f"{runs.stated.mean():.3f}",
                    f"{effective:.0f}", f"{runs.evaluations / 1000:.0f}", f"{1000 * each[-1]:.1f}",
                    "" if len(each) == 1 else f"{each[1] / each[0]:.1f}",
                    "" if np.isnan(runs.pareto_k) else f"{runs.pareto_k:.2f}",
                ])  # fmt: skip
                print(*rows[-1], sep=" | ", flush=True)
    columns = [
        "model", "method", "error of log evidence", "stated", "effective samples",
        "evaluations / 1000", "effective / 1000 evaluations", "gain", "k-hat",
    ]  # fmt: skip
    _table.emit("amortised", __doc__, columns, rows, arguments.save, tuple(notes))


if __name__ == "__main__":
    main()
