"""Sunspots, eight years ahead: do learned priors forecast better than Gaussians, and do coarse targets help?

The models of `examples/forecast.py`: a Gaussian process with a quasi-periodic kernel, the Gaussian of the
training windows, and two priors of 24 years, by denoising and with targets of four-year means beside
(MG-TSD). All see the same 13 of 16 years. Forecasts start every eighth year from 1916, so that no two
forecast the same year. The score is CRPS in sunspots, the lower the better. `+-` of a score is the standard
deviation over seeds, which change weights, noise of training and draws, but not the data; `less than the
process` is the mean difference over forecasts and seeds, and its standard error over the forecasts, each
averaged over seeds.
"""

import sys
from pathlib import Path

import _kept
import _table
import numpy as np

import numpyro_diffusion as nd

sys.path.insert(0, str(_table.ROOT / "examples"))
import forecast  # noqa: E402


def main() -> None:
    parser = _table.parser(__doc__)
    parser.set_defaults(seeds=3)
    parser.add_argument("--keep", type=Path, help="a file of finished seeds, to go on from")
    options = parser.parse_args()
    seeds, origins = range(options.seeds), range(1916, 2002, 8)
    settings = {"steps": 1500, "particles": 128}
    if options.tiny:
        seeds, origins = range(1), range(1916, 2002, 60)
        scheme = nd.Annealed(levels=4, moves=1, pilot=8)
        settings = {"steps": 20, "particles": 16, "scheme": scheme}
    kept = _kept.Kept(options.keep)

    def run(seed):
        found = forecast.forecasts(seed, origins, **settings)
        as_lists = lambda by_name: {name: values.tolist() for name, values in by_name.items()}
        return {"crps": as_lists(found.crps), "crps_sum": as_lists(found.crps_sum)}

    found = [kept(f"seed {seed}", lambda seed=seed: run(seed)) for seed in seeds]
    table = {  # seeds, origins, years
        name: np.array([one["crps"][name] for one in found]) for name in found[0]["crps"]
    }
    process = table["Gaussian process"].mean((0, 2))
    rows = []
    for name, scores in table.items():
        parts = scores, scores[..., :4], scores[..., 4:]
        cells = [part.mean((1, 2)) for part in parts]
        cells = [f"{cell.mean():.1f} +- {cell.std():.1f}" for cell in cells]
        gap = process - scores.mean((0, 2))
        error = gap.std(ddof=1) / len(gap) ** 0.5
        ahead = "" if name == "Gaussian process" else f"{gap.mean():.1f} +- {error:.1f}"
        total = np.mean([one["crps_sum"][name] for one in found])
        rows.append([name, *cells, ahead, f"{total:.3f}"])
    columns = [
        "forecast", "all eight years", "years 1 to 4", "5 to 8", "less than the process", "CRPS_sum",
    ]  # fmt: skip
    cost = (table["multi-granularity"] - table["denoising"]).mean((0, 2))
    note = (
        f"{len(origins)} forecasts, {len(found)} seeds. Coarse targets cost {cost.mean():+.1f} +- "
        f"{cost.std(ddof=1) / len(cost) ** 0.5:.1f} beside denoising alone, forecast by forecast."
    )
    _table.emit("forecasting", __doc__, columns, rows, options.save, (note,))


if __name__ == "__main__":
    main()
