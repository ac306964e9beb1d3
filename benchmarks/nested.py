"""Evidence by nested sampling in the noise of the probability flow, beside SMC and the closed form.

Nested slice sampling (BlackJAX) of the models with `NoiseReparam`, 200 live points, `--steps` of the flow;
and `nd.SMC` with its defaults, 500 particles. Mean error and, in brackets, its standard deviation over
`--seeds` runs, and the mean of what each method says of its own error. Evaluations are of the score.

With 8 steps the law of the map is not yet that of the prior where its density is low, and the data of the 8-D
model lie there: see `flow_steps.py`.
"""

import _table
import jax
import numpy as np
import numpyro
from closed_form import eight_dimensional, three_modes, two_dimensional

import numpyro_diffusion as nd

EVIDENCES = {
    "2-D, two modes": lambda: two_dimensional(sigma=0.5),
    "2-D, three modes, offset": three_modes,
    "8-D, known noise": lambda: eight_dimensional(3, sigma=0.3),
}


def by_nested(problem, num_live, num_particles, steps):
    in_noise = numpyro.handlers.reparam(problem.model, config={"x": nd.NoiseReparam(steps)})
    bridge = nd.from_model(in_noise, problem.operator, y=problem.data)

    def run(key):
        found = nd.nested_sampling(key, bridge, num_live=num_live)
        return found.log_evidence, found.log_evidence_error, 4 * steps * found.num_evaluations

    return run


def by_smc(problem, num_live, num_particles, steps):
    smc = nd.SMC(problem.model, num_particles=num_particles, progress_bar=False)

    def run(key):
        smc.run(key, problem.operator, y=problem.data)
        return smc.log_evidence, smc.log_evidence_error, smc.network_evaluations

    return run


def evidence_rows(seeds, num_live, num_particles, models, steps):
    rows = []
    for name in models:
        problem = EVIDENCES[name]()
        exact = problem.exact().log_evidence
        for method, maker in {"nested, in noise": by_nested, "nd.SMC, Annealed": by_smc}.items():
            run = maker(problem, num_live, num_particles, steps)
            found = np.array([run(jax.random.key(seed)) for seed in range(seeds)])
            errors = found[:, 0] - exact
            row = [name, f"{exact:.3f}", method, f"{errors.mean():+.3f} ({errors.std(ddof=1):.3f})"]
            row += [f"{found[:, 1].mean():.3f}", f"{found[:, 2].mean() / 1000:.0f}"]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    return rows


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(EVIDENCES))
    options.add_argument("--steps", type=int, default=8, help="of the flow")
    options = options.parse_args()
    seeds, num_live, num_particles = (2, 50, 50) if options.tiny else (options.seeds, 200, 500)
    rows = evidence_rows(seeds, num_live, num_particles, options.models, options.steps)
    columns = ["model", "exact", "method", "error (sd)", "own error", "thousand evaluations"]
    name = "nested" if options.steps == 8 else f"nested-{options.steps}-steps"
    _table.emit(name, __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
