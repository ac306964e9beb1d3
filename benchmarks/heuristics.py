"""Heuristics of posterior sampling and what weights make of them: a Gaussian of which a quarter is seen.

An autoregressive Gaussian in 16 dimensions, every fourth coordinate seen with noise 0.5, exact scores; 20
data sets, 1,000 draws, at most 200 evaluations of the score a draw. A score counts with one gradient
through it; further derivatives count one each. `--steps`: 200 steps for twists that need those, whatever they
cost. `--full`: the same 200,000 evaluations as a few steps with a matrix of covariance and more draws, as
many as the row says; what a pilot asks of the prior, once, is not counted.

`W2` is the 2-Wasserstein distance between the Gaussians of the moments of the (weighted) draws and of the
posterior, `mean` the mean absolute error of the posterior mean in its standard deviations, `sd` the mean
ratio of standard deviations, `log evidence` the mean absolute error and the largest one, in nats. `k-hat`
is the shape of the tail of the weights where nothing was resampled, averaged. `none`, `importance` and
`exact` are the `weights` of a sampler: left out, as one product at the end, and with resampling. Samplers
that make chains have 50 of them, and keep 20 draws of each; a sweep of DAPS cannot be split, and its warm-
up comes on top.

`--restoration`: DDRM, DDNM, DiffPIR, RePaint, ensemble Kalman guidance and Langevin chains; rows of fewer
steps have as many more draws, unless a level costs more.

Peers (`--peers`) run where they can be imported, with the same exact score, 200 steps, and settings that are
named or their defaults.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import _heuristic_peers
import _restoration_methods
import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.linalg import sqrtm

import numpyro_diffusion as nd

jax.config.update("jax_enable_x64", True)

SIZE, SIGMA, SEEN, BUDGET = 16, 0.5, np.arange(1, 16, 4), 200
COVARIANCE = 0.75 ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))
OPERATOR = np.eye(SIZE)[SEEN]
IMPORTANCE = ("`Tweedie()`, DPS", "`Widened()`, PiGDM")
PRIOR = nd.Gaussian(np.zeros(SIZE), COVARIANCE)
TWISTS = {
    "`Tweedie()`, DPS": nd.Tweedie(),
    "`Widened()`, PiGDM": nd.Widened(),
    "`Moments()`, TMPD": nd.twists.Moments(),
    "`MatrixFree()`, MMPS": nd.twists.MatrixFree(),
    "`NoisedObservation()`, FPS": nd.twists.NoisedObservation(),
    "`BlackBox()`, FK steering": nd.twists.BlackBox(),
}


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[SEEN], SIGMA).to_event(1), obs=y)


class Case(NamedTuple):
    """A model with its data."""

    model: Callable
    args: tuple

    @property
    def y(self):
        return self.args[-1]

    def bridge(self, **options):
        return nd.from_model(self.model, *self.args, **options)


def exact(y):
    """Mean and covariance of the posterior, and the log evidence."""
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min)))
    prior = COVARIANCE + noise**2 * np.eye(SIZE)
    seen = OPERATOR @ prior @ OPERATOR.T + SIGMA**2 * np.eye(len(SEEN))
    gain = np.linalg.solve(seen, OPERATOR @ prior).T
    log_evidence = -0.5 * (y @ np.linalg.solve(seen, y) + np.linalg.slogdet(2 * np.pi * seen)[1])
    return gain @ y, prior - gain @ OPERATOR @ prior, log_evidence


KINDS = {
    "exact": lambda scheme: scheme,
    "importance": nd.schemes.unresampled,
    "none": nd.schemes.unweighted,
}


def by_smc(scheme, twist=None, budget=BUDGET, kind="exact"):
    def run(key, case, size):
        chosen = scheme.twist if twist is None else twist
        bridge = case.bridge(twist=chosen, bridge_type=scheme.bridge_type)
        each = scheme
        if isinstance(scheme, nd.Twisted):  # as many steps as the budget allows
            a_level = scheme.evaluations_per_level(bridge)
            each = type(scheme)(
                levels=int((budget - 1) / a_level) - 1,  # one more at the end
                covariance=scheme.covariance,
                conjugate=scheme.conjugate,
                proposal=scheme.proposal,
            )
        found = nd.run_smc(key, KINDS[kind](each)(bridge), size)
        count = 1 + each.evaluations_per_level(bridge, found.levels) * found.num_levels_run
        weights = np.asarray(jax.nn.softmax(found.log_weights))
        tail = np.nan
        if kind == "importance":
            tail = float(np.mean(nd.diagnostics.pareto_k(found)))
        return found.positions, weights, float(found.log_evidence), count, tail

    return run


def by_chains(sampler, bridge_type=nd.bridge.DensityBridge, num_chains=50):
    def run(key, case, size):
        bridge = case.bridge(bridge_type=bridge_type)
        draws = -(-size // num_chains)
        sweeps = BUDGET * draws // sampler.evaluations(bridge)  # of each chain
        burn_in = sweeps // 5
        thinning = max(1, (sweeps - burn_in) // draws)
        found = nd.samplers.split_gibbs(
            key, bridge, sampler, num_chains=num_chains, num_draws=draws, num_burn_in=burn_in,
            thinning=thinning,
        )  # fmt: skip
        flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in found.positions.items()}
        pooled = found._replace(log_weights=found.log_weights.ravel())
        tail = float(np.mean(nd.diagnostics.pareto_k(pooled)))
        weights = np.asarray(jax.nn.softmax(pooled.log_weights))
        return flat, weights, np.nan, found.num_evaluations / len(weights), tail

    return run


def exact_draws(key, case, size):
    mean, covariance, _ = exact(case.y)
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    x = rng.multivariate_normal(mean, covariance, size)
    return {"x": x}, np.full(size, 1 / size), np.nan, 0, np.nan


def methods():
    """By name, `(key, case, size) -> (draws, weights, log evidence, evaluations a draw, k-hat)`."""
    found = {}
    for name, twist in TWISTS.items():
        kinds = ("none", "importance", "exact") if name in IMPORTANCE else ("none", "exact")
        for weights in kinds:
            found[f"{name}, {weights}"] = by_smc(nd.Twisted(BUDGET), twist, kind=weights)
    for weights in ("none", "exact"):
        scheme = nd.Twisted(BUDGET, conjugate=True)
        name = f"`NoisedObservation()`, conjugate, MCGDiff, {weights}"
        found[name] = by_smc(scheme, nd.twists.NoisedObservation(), kind=weights)
    found["`PnPDM(0.3)`, score, none"] = by_chains(
        nd.samplers.PnPDM(0.3, weights="none", num_steps=8), nd.bridge.PathBridge
    )
    found["`PnPDM(0.3)`, score, exact"] = by_chains(
        nd.samplers.PnPDM(0.3, num_steps=8), nd.bridge.PathBridge
    )
    found["`PnPDM(0.3)`, energy, none"] = by_chains(nd.samplers.PnPDM(0.3, weights="none"))
    found["`PnPDM(0.3)`, energy, exact"] = by_chains(nd.samplers.PnPDM(0.3))
    found["`DAPS()`, score"] = by_chains(nd.samplers.DAPS(prior="score"), nd.bridge.PathBridge)
    found["`DAPS(1, 1, 1)`, energy"] = by_chains(nd.samplers.DAPS(1.0, 1.0, 1))
    sharp = nd.ReverseDiffusion(levels=8, covariance=nd.schemes.Full(), moves=0)
    found["`ReverseDiffusion(8, Full())`, `Moments()`"] = by_smc(sharp, nd.twists.Moments())
    found["`ReverseDiffusion()`"] = by_smc(nd.ReverseDiffusion())
    found["`Annealed()`"] = by_smc(nd.Annealed())
    return found


def with_all_steps():
    """Twists whose covariance costs derivatives of the score, with 200 steps whatever they cost."""
    found = {}
    for weights in ("none", "exact"):
        scheme = nd.Twisted(BUDGET)
        for name, twist, each in (
            ("Moments", nd.twists.Moments(), 17),
            ("MatrixFree", nd.twists.MatrixFree(), 6),
        ):
            found[f"`{name}()`, {weights}"] = by_smc(scheme, twist, each * BUDGET, weights)
    return found


def with_full_steps():
    """Twists under a matrix of covariance, measured without data: few steps, many particles."""
    found = {}
    for name, twist, conjugate, factors in (
        ("`Tweedie()`, DPS", nd.Tweedie(), False, (1, 10)),
        ("`Widened()`, PiGDM", nd.Widened(), False, (1, 10)),
        ("`Moments()`, TMPD", nd.twists.Moments(), False, (1, 2)),
        ("`MatrixFree()`, MMPS", nd.twists.MatrixFree(), False, (1, 4)),
        ("`NoisedObservation()`, FPS", nd.twists.NoisedObservation(), False, (1, 10, 20)),
        (
            "`NoisedObservation()`, conjugate, MCGDiff",
            nd.twists.NoisedObservation(),
            True,
            (1, 10, 20),
        ),
        ("`BlackBox()`, FK steering", nd.twists.BlackBox(), False, (1, 10, 20)),
    ):
        for factor in factors:
            scheme = nd.Twisted(BUDGET, covariance=nd.schemes.Full(), conjugate=conjugate)
            run = by_smc(scheme, twist, BUDGET // factor)
            found[f"{name}, {factor},000 draws"] = lambda key, case, size, run=run, many=factor: (
                run(key, case, many * size)
            )
    scheme = nd.Twisted(BUDGET)
    run = by_smc(scheme, nd.twists.BlackBox(), BUDGET // 20)
    name = "`BlackBox()`, FK steering, `Diagonal()`, 20,000 draws"
    found[name] = lambda key, case, size: run(key, case, 20 * size)
    return found


def restoration():
    """Methods of image restoration, an ensemble without derivatives, and chains."""
    alone = _restoration_methods.alone(PRIOR, SEEN, SIGMA, BUDGET)
    return _restoration_methods.for_twisted(by_smc, BUDGET) | alone


def distance(mean, covariance, other_mean, other_covariance):
    """2-Wasserstein distance of two Gaussians."""
    root = np.real(sqrtm(other_covariance))
    cross = np.real(sqrtm(root @ covariance @ root))
    square = np.sum((mean - other_mean) ** 2)
    return float(np.sqrt(max(square + np.trace(covariance + other_covariance - 2 * cross), 0.0)))


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=20)
    options.add_argument("--peers", action="store_true", help="run azula and diffuse-jax too")
    options.add_argument("--steps", action="store_true", help="200 steps for costly twists")
    options.add_argument("--full", action="store_true", help="few steps of full covariance")
    options.add_argument("--restoration", action="store_true", help="DDRM and its relatives")
    options.add_argument("--only", default="", help="methods whose name holds this")
    options = options.parse_args()
    size, seeds = (100, 1) if options.tiny else (1000, options.seeds)
    rng, data = np.random.default_rng(5), []
    for _ in range(seeds):
        x = rng.multivariate_normal(np.zeros(SIZE), COVARIANCE)
        data.append(x[SEEN] + SIGMA * rng.normal(size=len(SEEN)))
    all_methods, notes = {"exact draws": exact_draws, **methods()}, []
    if options.steps:
        all_methods = with_all_steps()
    if options.full:
        all_methods = {"exact draws": exact_draws, **with_full_steps()}
    if options.restoration:
        all_methods = {"exact draws": exact_draws, **restoration()}
    if options.peers:
        peers, notes = _heuristic_peers.methods(COVARIANCE, OPERATOR, SIGMA, BUDGET)
        all_methods |= peers
    rows = []
    for name, method in all_methods.items():
        if options.only not in name:
            continue
        found, begin = [], time.perf_counter()
        for i, y in enumerate(data):
            answer = method(jax.random.key(i), Case(model, (y,)), size)
            draws, weights, log_evidence, count, tail = answer
            x = np.asarray(draws["x"])
            mean, covariance, truth = exact(y)
            sd, at = np.sqrt(np.diag(covariance)), weights @ x
            spread = (x - at).T @ ((x - at) * weights[:, None])
            row = (
                distance(at, spread, mean, covariance),
                np.mean(np.abs(at - mean) / sd),
                np.mean(np.sqrt(np.diag(spread)) / sd),
                abs(log_evidence - truth),
                count,
                tail,
            )
            found.append(row)
        w2, off, ratio, evidence, count, tail = np.array(found).T
        shown = lambda value, text: "" if np.isnan(value) else text
        rows.append(
            [
                name,
                f"{w2.mean():.2f} ({w2.max():.2f})",
                f"{off.mean():.2f}",
                f"{ratio.mean():.2f}",
                shown(evidence.mean(), f"{evidence.mean():.2f} ({evidence.max():.2f})"),
                f"{count.mean():.0f}" if count.mean() else "",
                shown(tail.mean(), f"{tail.mean():.2f}"),
            ]
        )
        print(
            "|",
            *(f"{cell} |" for cell in rows[-1]),
            f"{time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    columns = ["method", "W2 (worst)", "mean", "sd", "log evidence (worst)", "evaluations", "k-hat"]
    table = "heuristics" + "-200-steps" * options.steps + "-full" * options.full
    table += "-restoration" * options.restoration
    table += f"-{options.only}" if options.only else ""
    _table.emit(table, __doc__, columns, rows, options.save, tuple(notes))


if __name__ == "__main__":
    main()
