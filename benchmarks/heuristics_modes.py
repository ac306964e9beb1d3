"""Heuristics where they fail: four far modes, one ambiguous datum, and a noise level that nobody knows.

The problem of `mode_probabilities.py` and the samplers of `heuristics.py`, with at most 200 evaluations of
the score a draw, 1,000 draws. `TV` is the total variation distance of the mode probabilities, mean and worst
of the seeds; `sigma` the mean absolute error of the noise level's mean in its posterior standard deviations;
`log evidence` the mean absolute error in nats.
"""

import _restoration_methods
import _table
import jax
import numpy as np
from closed_form import ambiguous
from heuristics import BUDGET, TWISTS, Case, by_smc, methods

PROBLEM = ambiguous()
COLUMNS = ["method", "mode probabilities", "TV (worst)", "sigma", "log evidence", "evaluations"]


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--only", default="", help="methods whose name holds this")
    options.add_argument("--twists", action="store_true", help="only steps that a twist guides")
    options.add_argument("--restoration", action="store_true", help="DDRM and its relatives")
    options = options.parse_args()
    size, seeds = (100, 1) if options.tiny else (1000, options.seeds)
    exact, case = PROBLEM.exact(), Case(PROBLEM.model, (PROBLEM.operator, PROBLEM.data))
    truth = " ".join(f"{p:.3f}" for p in exact.modes)
    rows = [["exact", truth, "", "", "", ""]]
    chosen = methods()
    if options.restoration:
        chosen = _restoration_methods.for_twisted(by_smc, BUDGET)
    for name, method in reversed(chosen.items()):  # the quick ones first
        if options.only not in name or name.endswith("importance"):
            continue
        if options.twists and not name.startswith((*TWISTS, "`NoisedObservation()`")):
            continue
        found = []
        for seed in range(seeds):
            draws, weights, log_evidence, count, _ = method(jax.random.key(seed), case, size)
            mode, sigma = PROBLEM.component(np.asarray(draws["x"])), np.exp(draws["sigma"])
            shares = np.array([weights[mode == k].sum() for k in range(4)])
            distance = 0.5 * np.abs(shares - exact.modes).sum()
            off = abs(weights @ np.asarray(sigma) - exact.sigma_mean) / exact.sigma_sd
            found.append([distance, off, abs(log_evidence - exact.log_evidence), count, *shares])
        distance, off, evidence, count, *shares = np.array(found).T
        rows.append(
            [
                name,
                " ".join(f"{p.mean():.3f}" for p in shares),
                f"{distance.mean():.3f} ({distance.max():.3f})",
                f"{off.mean():.2f}",
                "" if np.isnan(evidence).any() else f"{evidence.mean():.2f}",
                f"{count.mean():.0f}",
            ]
        )
        # The table is kept as it grows.
        parts = ["twists" * options.twists, "restoration" * options.restoration, options.only]
        table = "-".join(["heuristics_modes", *filter(None, parts)])
        _table.emit(table, __doc__, COLUMNS, rows, options.save)


if __name__ == "__main__":
    main()
