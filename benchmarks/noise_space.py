"""NUTS in x against NUTS in the noise of the probability flow.

The same models, sampled by NUTS as written and with `NoiseReparam` at the diffusion site, chains started
from the prior. In `x` a gradient of the model is one evaluation of the score; in noise it is four a step of
the flow (8 steps, for the digit 4), and as many derivatives of them, which are not counted.

Effective samples on the mixtures are the posterior variance over the mean squared error in `--seeds` runs,
so that lost modes and bias count; test functions are the coordinates of x, sigma, and the indicator of each
mode. On the digit (the model of `examples/restore_digit.py`) nothing is known exactly: effective samples
there are those of the chains' autocorrelations, over pixels, contrast and sigma, and say nothing of modes
that all chains miss; the last column is the largest R-hat. Median and, behind the slash, worst test function.
"""

import sys
import time
from pathlib import Path

import _table
import jax
import numpy as np
import numpyro
from closed_form import ambiguous
from effective_samples import Run, estimates, truth, unimodal
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

NUM_STEPS, DIGIT_STEPS = 8, 4


def in_noise(model, num_steps=NUM_STEPS):
    return numpyro.handlers.reparam(model, config={"x": nd.NoiseReparam(num_steps)})


def nuts(model, size, num_chains, arguments, data):
    """A compiled function of a key: draws, leading axes `(num_chains, size)`, and leapfrog steps."""
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=8)

    def chain(key):
        mcmc = MCMC(kernel, num_warmup=size, num_samples=size, progress_bar=False)
        fields = dict(extra_fields=("num_steps",), **data)
        mcmc.warmup(key, *arguments, collect_warmup=True, **fields)
        steps = mcmc.get_extra_fields()["num_steps"].sum()
        mcmc.run(mcmc.post_warmup_state.rng_key, *arguments, **fields)
        return mcmc.get_samples(), steps + mcmc.get_extra_fields()["num_steps"].sum()

    chains = jax.jit(lambda key: jax.lax.map(chain, jax.random.split(key, num_chains)))
    return chains.lower(jax.random.key(0)).compile()


def timed(run, seeds):
    """Results, and seconds and leapfrog steps of a run."""
    found, started = [], time.perf_counter()
    for seed in range(seeds):
        found.append(jax.tree.map(np.asarray, run(jax.random.key(seed))))
    seconds = (time.perf_counter() - started) / seeds
    return found, seconds, np.mean([steps.sum() for _, steps in found])


def cells(effective, steps, seconds, iterations, per_step):
    """`iterations` of NUTS, warm-up included, with so many evaluations of the score a leapfrog step."""
    evaluations = steps * per_step / 1000
    both = np.array([np.median(effective), np.min(effective)])
    pair = lambda values, digits: " / ".join(f"{value:.{digits}f}" for value in values)
    return [
        pair(both, 0),
        f"{steps / iterations:.0f}",
        f"{evaluations:.0f}",
        pair(both / evaluations, 3),
        f"{seconds:.1f}",
    ]


def mixture_row(name, problem, space, seeds, size):
    model = problem.model if space == "x" else in_noise(problem.model)
    run = nuts(model, size, 4, (problem.operator,), {"y": problem.data})
    found, seconds, steps = timed(run, seeds)
    means, variances = truth(problem)
    weights = np.full(4 * size, 1 / (4 * size))
    flat = lambda a: a.reshape(4 * size, *a.shape[2:])
    runs = [Run(flat(d["x"]), flat(d["sigma"]), weights, 0.0) for d, _ in found]
    errors = np.array([estimates(problem, one) - means for one in runs])
    effective = variances / np.mean(errors**2, 0)
    per_step = 1 if space == "x" else 4 * NUM_STEPS
    return [name, space, *cells(effective, steps, seconds, 8 * size, per_step), ""]


def digit_row(space, seeds, size):
    import restore_digit

    model = restore_digit.model
    model = model if space == "x" else in_noise(model, DIGIT_STEPS)
    _, visible, y = restore_digit.damaged_digit(3)
    blur = restore_digit.gaussian_blur(restore_digit.BLUR_WIDTH)
    run = nuts(model, size, 2, (blur, visible), {"y": y})
    found, seconds, steps = timed(run, seeds)
    effective, worst = [], 0.0
    for draws, _ in found:
        others = [draws[name][..., None] for name in ("contrast", "sigma")]
        values = np.concatenate([draws["x"].reshape(2, size, -1), *others], -1)
        effective.append(effective_sample_size(values))
        worst = max(worst, split_gelman_rubin(values).max())
    per_step = 1 if space == "x" else 4 * DIGIT_STEPS
    numbers = cells(np.mean(effective, 0), steps, seconds, 4 * size, per_step)
    return ["digit, 64 pixels", space, *numbers, f"{worst:.2f}"]


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    seeds, size = (2, 20) if options.tiny else (options.seeds, 250)
    rows = []
    for name, make in {"8-D, four modes": ambiguous, "8-D, one mode": unimodal}.items():
        for space in ("x", "noise"):
            rows.append(mixture_row(name, make(), space, seeds, size))
            print(*rows[-1], sep=" | ", flush=True)
    for space in ("x", "noise"):
        rows.append(digit_row(space, min(seeds, 2), 10 if options.tiny else 150))
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["model", "NUTS in", "effective samples", "leapfrog steps a draw"]
    columns += ["thousand evaluations", "per thousand", "s a run", "R-hat"]
    _table.emit("noise_space", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
