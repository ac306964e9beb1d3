"""NUTS in x against NUTS in the noise of the probability flow, and evidence by nested sampling there.

The same models, sampled by NUTS as written and with `NoiseReparam` at the diffusion site, chains started
from the prior. In `x` a gradient of the model is one evaluation of the score; in noise it is four a step of
the flow, and as many derivatives of them, which are not counted.

Effective samples on the mixtures are the posterior variance over the mean squared error in `--seeds` runs,
so that lost modes and bias count; test functions are the coordinates of x, sigma, and the indicator of each
mode. On the digit (the model of `examples/restore_digit.py`) nothing is known exactly: effective samples
there are those of the chains' autocorrelations, over pixels, contrast and sigma, and say nothing of modes
that all chains miss; the last column is the largest R-hat. Median and, behind the slash, worst test function.

Evidence: mean error and, in brackets, its standard deviation over seeds, with the mean of what each method
says of its own error.
"""

import sys
import time
from pathlib import Path

import _table
import jax
import numpy as np
import numpyro
from closed_form import ambiguous, eight_dimensional, three_modes, two_dimensional
from effective_samples import Run, estimates, truth, unimodal
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

NUM_STEPS = 8


def in_noise(model):
    return numpyro.handlers.reparam(model, config={"x": nd.NoiseReparam(NUM_STEPS)})


def nuts(model, size, arguments, data):
    """A compiled function of a key: draws by chain, leading axes `(4, size)`, and leapfrog steps in all."""
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=8)

    def chain(key):
        mcmc = MCMC(kernel, num_warmup=size, num_samples=size, progress_bar=False)
        fields = dict(extra_fields=("num_steps",), **data)
        mcmc.warmup(key, *arguments, collect_warmup=True, **fields)
        steps = mcmc.get_extra_fields()["num_steps"].sum()
        mcmc.run(mcmc.post_warmup_state.rng_key, *arguments, **fields)
        return mcmc.get_samples(), steps + mcmc.get_extra_fields()["num_steps"].sum()

    return jax.jit(lambda key: jax.lax.map(chain, jax.random.split(key, 4)))


def timed(run, seeds):
    """Results, seconds of a run after the first, and leapfrog steps of a run."""
    jax.block_until_ready(run(jax.random.key(10_000)))
    found, started = [], time.perf_counter()
    for seed in range(seeds):
        found.append(jax.tree.map(np.asarray, run(jax.random.key(seed))))
    seconds = (time.perf_counter() - started) / seeds
    return found, seconds, np.mean([steps.sum() for _, steps in found])


def cells(effective, steps, seconds, size, space):
    evaluations = steps * (4 * NUM_STEPS if space == "noise" else 1) / 1000
    both = np.array([np.median(effective), np.min(effective)])
    pair = lambda values, digits: " / ".join(f"{value:.{digits}f}" for value in values)
    return [
        pair(both, 0),
        f"{steps / (8 * size):.0f}",
        f"{evaluations:.0f}",
        pair(both / evaluations, 2),
        f"{seconds:.1f}",
    ]


def mixture_row(name, problem, space, seeds, size):
    model = problem.model if space == "x" else in_noise(problem.model)
    run = nuts(model, size, (problem.operator,), {"y": problem.data})
    found, seconds, steps = timed(run, seeds)
    means, variances = truth(problem)
    weights = np.full(4 * size, 1 / (4 * size))
    flat = lambda a: a.reshape(4 * size, *a.shape[2:])
    runs = [Run(flat(d["x"]), flat(d["sigma"]), weights, 0.0) for d, _ in found]
    errors = np.array([estimates(problem, one) - means for one in runs])
    effective = variances / np.mean(errors**2, 0)
    return [name, space, *cells(effective, steps, seconds, size, space), ""]


def digit_row(space, seeds, size):
    import restore_digit

    model = restore_digit.model if space == "x" else in_noise(restore_digit.model)
    _, visible, y = restore_digit.damaged_digit(3)
    blur = restore_digit.gaussian_blur(restore_digit.BLUR_WIDTH)
    found, seconds, steps = timed(nuts(model, size, (blur, visible), {"y": y}), seeds)
    effective, worst = [], 0.0
    for draws, _ in found:
        parts = [draws["x"].reshape(4, size, -1)] + [
            draws[n][..., None] for n in ("contrast", "sigma")
        ]
        values = np.concatenate(parts, -1)
        effective.append(effective_sample_size(values))
        worst = max(worst, split_gelman_rubin(values).max())
    mean = np.mean(effective, 0)
    return ["digit, 64 pixels", space, *cells(mean, steps, seconds, size, space), f"{worst:.2f}"]


EVIDENCES = {
    "2-D, two modes": lambda: two_dimensional(sigma=0.5),
    "2-D, three modes, offset": three_modes,
    "8-D, known noise": lambda: eight_dimensional(3, sigma=0.3),
    "8-D, unknown noise": lambda: eight_dimensional(3),
}


def by_nested(problem, num_live, num_particles):
    bridge = nd.from_model(in_noise(problem.model), problem.operator, y=problem.data)

    def run(key):
        found = nd.nested_sampling(key, bridge, num_live=num_live)
        return found.log_evidence, found.log_evidence_error, 4 * NUM_STEPS * found.num_evaluations

    return run


def by_smc(problem, num_live, num_particles):
    smc = nd.SMC(problem.model, num_particles=num_particles, progress_bar=False)

    def run(key):
        smc.run(key, problem.operator, y=problem.data)
        return smc.log_evidence, smc.log_evidence_error, smc.network_evaluations

    return run


def evidence_rows(seeds, num_live, num_particles):
    rows = []
    for name, make in EVIDENCES.items():
        problem = make()
        exact = problem.exact().log_evidence
        for method, maker in {"nested, in noise": by_nested, "nd.SMC, Annealed": by_smc}.items():
            run = maker(problem, num_live, num_particles)
            found = np.array([run(jax.random.key(seed)) for seed in range(seeds)])
            errors = found[:, 0] - exact
            row = [name, f"{exact:.3f}", method, f"{errors.mean():+.3f} ({errors.std(ddof=1):.3f})"]
            row += [f"{found[:, 1].mean():.3f}", f"{found[:, 2].mean() / 1000:.0f}"]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    return rows


def main() -> None:
    options = _table.parser(__doc__)
    options = options.parse_args()
    seeds, size = (2, 20) if options.tiny else (options.seeds, 500)
    rows = []
    for name, make in {"8-D, four modes": ambiguous, "8-D, one mode": unimodal}.items():
        for space in ("x", "noise"):
            rows.append(mixture_row(name, make(), space, seeds, size))
            print(*rows[-1], sep=" | ", flush=True)
    for space in ("x", "noise"):
        rows.append(
            digit_row(space, 2 if options.tiny else min(seeds, 3), 10 if options.tiny else 200)
        )
        print(*rows[-1], sep=" | ", flush=True)
    evidences = evidence_rows(seeds, *((50, 50) if options.tiny else (500, 500)))
    head = ["model", "exact", "method", "error (sd)", "own error", "thousand evaluations"]
    lines = ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *evidences]]
    columns = ["model", "NUTS in", "effective samples", "leapfrog steps a draw"]
    columns += ["thousand evaluations", "per thousand", "s a run", "R-hat"]
    _table.emit(
        "noise_space", __doc__, columns, rows, options.save, ("Evidence:", "\n".join(lines))
    )


if __name__ == "__main__":
    main()
