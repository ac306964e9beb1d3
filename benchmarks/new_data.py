"""Ten batches of data by `SMC.update`, against one run on all of them and against a closed form.

Forty data of a linear model with a prior of two modes and an unknown noise level (`test_update.py`), in ten
batches of four; 4 clouds of `--particles` particles. Errors are to the closed form: of the log evidence in
nats, and of the means of the three unknowns, the largest of them, in posterior standard deviations; mean +-
spread over `--seeds` runs, and the largest. The last row is between the two.
"""

import time

import _table
import jax
import numpy as np
from test_update import BATCHES, NUM, exact, first, model

import numpyro_diffusion as nd


def means(smc):
    draws, weights = smc.get_weighted_samples()
    weights = np.asarray(weights, float)
    mean = lambda values: np.tensordot(weights, np.asarray(values, float), 2)
    return np.append(mean(draws["x"]), mean(draws["sigma"])) / weights.sum()


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--particles", type=int, default=4000)
    options.set_defaults(seeds=10)
    options = options.parse_args()
    size, seeds = (100, 2) if options.tiny else (options.particles, options.seeds)
    log_evidence, mean, sd = exact(NUM)
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(conditional_ess=0.9))
    smc = nd.SMC(model, scheme, num_particles=size, progress_bar=False)

    def batches(seed):
        smc.run(jax.random.key(seed), *first(BATCHES[0]))
        for n in BATCHES[1:]:
            smc.update(*first(n))

    def once(seed):
        smc.run(jax.random.key(500 + seed), *first(NUM))

    rows, found = [], {}
    for name, run in (("ten batches", batches), ("all at once", once)):
        run(1000)  # compiles
        logs, places, said, seconds = [], [], [], time.perf_counter()
        for seed in range(seeds):
            run(seed)
            logs.append(smc.log_evidence)
            said.append(smc.log_evidence_error)
            places.append((means(smc) - mean) / sd)
        seconds = (time.perf_counter() - seconds) / seeds
        found[name] = np.array(logs), np.array(places)
        cells = errors(np.array(logs) - log_evidence, np.array(places))
        rows.append([name, *cells, f"{np.mean(said):.3f}", f"{seconds:.1f}"])
        print(*rows[-1], sep=" | ", flush=True)
    (logs, places), (logs_once, places_once) = found.values()
    rows.append(["one from the other", *errors(logs - logs_once, places - places_once), "", ""])
    columns = ["run", "log evidence", "largest", "means", "largest", "said", "seconds"]
    _table.emit("new_data", __doc__, columns, rows, options.save)


def errors(logs, places):
    """Of the evidence, and of the worst mean; mean and spread, and the largest."""
    worst = np.abs(places).max(1)
    first = f"{logs.mean():+.3f} +- {logs.std():.3f}", f"{np.abs(logs).max():.3f}"
    return *first, f"{worst.mean():.3f} +- {worst.std():.3f}", f"{worst.max():.3f}"


if __name__ == "__main__":
    main()
