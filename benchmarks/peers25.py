"""Peers beside our schemes on the problems of `mixture25.py`, paired seed by seed.

Everything has the exact prior, 2,000 particles (unless said) and 2,000 draws. Our schemes run by default.
A peer with a free setting runs with each of a short list, and the setting with the smallest mean distance in
the cell is shown: a choice that needs the truth, made for peers only. Peers other than BlackJAX run in an
environment of their own, `--peer-python`, through `_peers.py`; one that is not there is left out by name.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import _table
import numpy as np
from mixture25 import SIZE, Problem, by_blackjax, by_scheme, sliced_w1, spread

import numpyro_diffusion as nd
from numpyro_diffusion.schemes.pilot import PilotError

STEP_SIZES = (0.03, 0.06, 0.1, 0.3)
# Name in the table, start, and the settings to choose from.
PEERS = {
    "particles": ("prior draws", [{}]),
    "MCGDiff": (
        "score, from noise",
        [
            {"eta": 0.85, "kappa": 1e-2},  # the paper's
            {"eta": 1.0, "kappa": 1e-2},
            {"eta": 0.85, "kappa": 1e-4},
        ],
    ),
    "azula TDS": ("score, from noise", [{"wide": False}, {"wide": True}]),
    "azula MMPS": ("score, from noise", [{}]),
    "azula PGDM": ("score, from noise", [{}]),
    "azula DPS": ("score, from noise", [{"zeta": zeta} for zeta in (0.1, 0.3, 1.0)]),
    "diffusionjax PiGDM": ("score, from noise", [{}]),
}
RIVALS = ("LikelihoodTempered", "ReverseDiffusion", "Twisted")
COLUMNS = ["(d, dy)", "method", "SW", "median", "TV", "evidence", "CPU s", "evaluations", *RIVALS]
NOTES = (
    "`SW`: mean Wasserstein-1 distance over 1,000 random projections to 2,000 exact draws, "
    "the same draws and projections for all (`floor`: between two sets of exact draws). `TV`: "
    "total variation of the component probabilities. Mean +- 1.96 standard errors over the "
    "seeds that ran, `n` where some did not. `evidence`: root mean square error of the log "
    "evidence and, behind the slash, the largest on nine of ten seeds. `CPU s`: process time "
    "without compilation, one thread for the peers. `evaluations`: those of the prior's "
    "gradient a draw (`particles`: of its density). Last columns: seeds on which that scheme "
    "of ours has the smaller SW.",
    "Ours run by default. Peers' settings are the best, by mean SW in the cell, of: BlackJAX "
    f"step size {', '.join(map(str, STEP_SIZES))} (5 HMC moves of 5 steps a stage; its second "
    "row takes the best for every seed); MCGDiff eta and kappa 0.85 and 0.01 (the paper's), 1 "
    "and 0.01, 0.85 and 0.0001, in one cloud and with its last weights applied; azula TDS "
    "twisted with the covariance of the data or with the singular values taken for 1 "
    "(`wide`), as released, so that its last weights are not applied; azula DPS zeta 0.1, 0.3 "
    "or 1, times the root of the batch's size, since its norm is over the batch. Without a "
    "choice: `particles`, waste-free with 200 chains of 50 random-walk states a stage; azula "
    "MMPS with as many iterations as data (with one datum it is TMPD). All from noise take "
    "100 steps but diffusionjax PiGDM, which takes 1,000.",
)


class Cell:
    """The problems of one cell, exact draws, and what every method found."""

    def __init__(self, cell: str, seeds: int, size: int):
        d, dy = map(int, cell.split(","))
        self.name, self.size = f"({cell})", size
        self.problems = [Problem(d, dy, seed) for seed in range(seeds)]
        rng = np.random.default_rng(0)
        self.truth = [p.exact(rng, size) for p in self.problems]
        self.others = [p.exact(rng, size) for p in self.problems]
        self.rows, self.failures, self.ours = [], [], {}

    def judge(self, seed: int, x) -> tuple[float, float]:
        if not np.isfinite(x).all():
            return np.nan, np.nan
        problem = self.problems[seed]
        x = np.asarray(x, float)
        return sliced_w1(np.random.default_rng(seed), x, self.truth[seed]), problem.tv(x)

    def blank(self) -> dict:
        columns = ("sw", "tv", "log_evidence", "cpu", "evaluations")
        return {name: np.full(len(self.problems), np.nan) for name in columns} | {"why": set()}

    def here(self, method, cap: float) -> dict:
        """Run a method in this process; no new seed begins after `cap` process seconds."""
        found, started = self.blank(), time.process_time()
        try:
            method(self.problems[0], 99, self.size)  # compiles
        except PilotError:
            pass  # the seeds below say so
        for seed, problem in enumerate(self.problems):
            if seed and time.process_time() - started > cap:
                found["why"].add(f"stopped after {cap:.0f} process seconds")
                break
            before = time.process_time()
            try:
                x, log_evidence, count = method(problem, seed, self.size)
            except PilotError as error:
                found["why"].add(str(error).split(":")[0])
                continue
            found["cpu"][seed] = time.process_time() - before
            found["sw"][seed], found["tv"][seed] = self.judge(seed, x)
            found["log_evidence"][seed], found["evaluations"][seed] = log_evidence, count
        return found

    def elsewhere(self, python: str, method: str, choices: list[dict]) -> list[dict]:
        """Run a method of `_peers.py` in the peers' environment, once for each choice of settings."""
        names = ("operator", "y", "sigma", "weights")
        problems = {n: np.stack([getattr(p, n) for p in self.problems]) for n in names}
        problems |= {"means": self.problems[0].means, "size": self.size}
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "problems.npz"), settings=json.dumps(choices), **problems)
            worker(python, method, folder)
            return [self.read(np.load(Path(folder, f"draws{i}.npz"))) for i in range(len(choices))]

    def read(self, result) -> dict:
        found = self.blank()
        for seed, x in enumerate(result["draws"]):
            found["sw"][seed], found["tv"][seed] = self.judge(seed, x)
        for name in ("log_evidence", "cpu", "evaluations"):
            found[name] = result[name]
        found["why"] = set(result["failures"].tolist()) - {""}
        if np.isnan(found["sw"]).any() and not found["why"]:
            found["why"] = {"draws not finite"}
        return found

    def best(self, runs: list[tuple[dict, dict]]) -> tuple[dict, dict]:
        """The settings with the fewest failures and then the smallest mean distance."""
        return min(
            runs, key=lambda run: (np.isnan(run[1]["sw"]).sum(), np.nan_to_num(run[1]["sw"]).mean())
        )

    def best_each(self, runs: list[dict]) -> dict:
        """The best settings of every seed: more than anybody could choose without the truth."""
        index = np.argmin([np.nan_to_num(run["sw"], nan=np.inf) for run in runs], axis=0)
        seeds = np.arange(len(index))
        columns = {k: np.stack([r[k] for r in runs])[index, seeds] for k in runs[0] if k != "why"}
        return columns | {"why": set()}

    def add(self, name: str, found: dict) -> None:
        ran = np.isfinite(found["sw"])
        count = "" if ran.all() else f" (n = {ran.sum()})"
        if found["why"]:
            missing = f"{(~ran).sum()} of {len(ran)} seeds without a result"
            self.failures.append(f"{self.name} {name}: {missing}; {'; '.join(found['why'])}.")
        row = [self.name, name, "no result", *[""] * (len(COLUMNS) - 3)]
        if ran.any():
            median = np.median(found["sw"][ran])
            row = [self.name, name, spread(found["sw"][ran]) + count, f"{median:.2f}"]
            row += [spread(found["tv"][ran]), self.evidence(found["log_evidence"])]
            evaluations = np.nanmean(found["evaluations"])
            row += [f"{np.nanmean(found['cpu']):.2f}", round(evaluations)]
            row += [self.closer(name, rival, found["sw"]) for rival in RIVALS]
        self.rows.append(row)
        print(*row, *found["why"], sep=" | ", file=sys.stderr, flush=True)

    def evidence(self, log_evidence) -> str:
        errors = np.abs(log_evidence - [p.log_evidence for p in self.problems])
        errors = np.sort(errors[np.isfinite(errors)])
        if not len(errors):
            return ""
        most = errors[: max(1, round(0.9 * len(errors)))].max()
        return f"{np.sqrt(np.mean(errors**2)):.2f} / {most:.2f}"

    def closer(self, name: str, rival: str, sw) -> str:
        if rival not in self.ours or name.split(" (")[0] in self.ours:
            return ""
        both = np.isfinite(sw) & np.isfinite(self.ours[rival])
        return f"{(self.ours[rival] < sw)[both].sum()} of {both.sum()}"


def worker(python: str, *arguments: str) -> str:
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    one |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
    command = [python, str(Path(__file__).with_name("_peers.py")), *arguments]
    environment = {**os.environ, **one}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def run_ours(cell: Cell, few: dict, tiny: bool, cap: float) -> None:
    schemes = {
        "LikelihoodTempered": ("prior draws", nd.LikelihoodTempered(**few)),
        "ReverseDiffusion": ("energy, from noise", nd.ReverseDiffusion(**few)),
        "Annealed": ("energy, from noise", nd.Annealed(**few)),
        "Twisted": ("score, from noise", nd.Twisted(levels=10 if tiny else 100, **few)),
    }
    for name, (start, scheme) in schemes.items():
        found = cell.here(by_scheme(scheme), cap)
        cell.ours[name] = found["sw"]
        cell.add(f"{name} ({start})", found)


def run_peers(cell: Cell, python: str, there: dict, tiny: bool, cap: float) -> None:
    steps = STEP_SIZES[:1] if tiny else STEP_SIZES
    runs = [({"step size": s}, cell.here(partial(by_blackjax, step_size=s), cap)) for s in steps]
    each = ({"best step size": "of every seed"}, cell.best_each([found for _, found in runs]))
    entries = [("BlackJAX tempering", "prior draws", r) for r in (runs, [each])]
    for name, (start, choices) in PEERS.items():
        version = there[name.split()[0]]
        if version is None:
            cell.rows.append([cell.name, name, "not installed", *[""] * (len(COLUMNS) - 3)])
            continue
        choices = choices[:1] if tiny else choices
        found = cell.elsewhere(python, name, choices)
        entries.append((name, start, list(zip(choices, found, strict=True))))
    for name, start, runs in entries:
        settings, found = cell.best(runs)
        chosen = "".join(f", {key} {value}" for key, value in settings.items())
        cell.add(f"{name}{chosen} ({start})", found)


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--cells", nargs="+", default=["8,1", "8,4", "80,1"])
    options.add_argument("--ours", action="store_true", help="no peers")
    options.add_argument("--table", default="peers25", help="name of the saved table")
    options.add_argument("--peer-python", default=sys.executable)
    options.add_argument(
        "--cap", type=float, default=300, help="process seconds a row of ours may take"
    )
    options = options.parse_args()
    size, seeds = (64, 1) if options.tiny else (SIZE, min(options.seeds, 10))
    there = {} if options.ours else json.loads(worker(options.peer_python, "versions"))
    rows, failures = [], []
    for name in ["8,1"] if options.tiny else options.cells:
        cell = Cell(name, seeds, size)
        floor = cell.blank()
        for seed, x in enumerate(cell.others):
            floor["sw"][seed], floor["tv"][seed] = cell.judge(seed, x)
        cell.rows.append([cell.name, "floor", spread(floor["sw"]), f"{np.median(floor['sw']):.2f}"])
        cell.rows[0] += [spread(floor["tv"]), *[""] * (len(COLUMNS) - 5)]
        run_ours(cell, {"pilot": 32} if options.tiny else {}, options.tiny, options.cap)
        if not options.ours:
            run_peers(cell, options.peer_python, there, options.tiny, options.cap)
        rows += cell.rows
        failures += cell.failures
    found = ", ".join(f"{peer} {version}" for peer, version in there.items() if version)
    notes = (NOTES[0], *failures) if options.ours else (*NOTES, f"Peers: {found}.", *failures)
    _table.emit(options.table, __doc__, COLUMNS, rows, options.save, notes)


if __name__ == "__main__":
    main()
