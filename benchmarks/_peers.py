"""Runs one peer on the problems of `peers25.py`, in the peers' own environment.

`python _peers.py versions` prints what is importable; `python _peers.py METHOD FOLDER` reads problems there
and writes draws, with process seconds and evaluations of the prior.
"""

import importlib.metadata
import importlib.util
import json
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from _peer_methods import Counter, by_azula, by_diffusionjax, by_mcg_diff, by_particles

METHODS = {
    "particles": by_particles,
    "MCGDiff": by_mcg_diff,
    "diffusionjax PiGDM": by_diffusionjax,
    **{f"azula {name}": partial(by_azula, name=name) for name in ("TDS", "MMPS", "PGDM", "DPS")},
}
MODULES = {
    "particles": ("particles",),
    "MCGDiff": ("torch", "mcg_diff"),
    "azula": ("azula",),
    "diffusionjax": ("diffusionjax",),
}


def versions() -> dict:
    """What is importable here, with its version; `None` for a peer that is missing."""
    found = {}
    for peer, modules in MODULES.items():
        there = all(importlib.util.find_spec(module) for module in modules)
        found[peer] = importlib.metadata.version(modules[-1]) if there else None
    return found


def main() -> None:
    if sys.argv[1] == "versions":
        print(json.dumps(versions()))
        return
    method, folder = sys.argv[1], Path(sys.argv[2])
    data = dict(np.load(folder / "problems.npz"))
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
    names = ("operator", "y", "sigma", "weights")
    problems = [
        {"means": data["means"], **{name: data[name][i] for name in names}}
        for i in range(len(data["y"]))
    ]
    for i, settings in enumerate(json.loads(str(data["settings"]))):
        run = partial(METHODS[method], **settings)
        np.savez(folder / f"draws{i}.npz", **run_all(run, problems, int(data["size"])))


def run_all(run, problems, size: int) -> dict:
    """Draws and costs on every problem; a failure is a result too."""
    count = len(problems)
    found = {
        "draws": np.full((count, size, problems[0]["means"].shape[1]), np.nan, np.float32),
        **{name: np.full(count, np.nan) for name in ("log_evidence", "cpu", "evaluations")},
        "failures": np.full(count, "", "U200"),
    }
    with suppress(Exception):  # what fails here fails below, and is told there
        run(problems[0], size, 99, Counter())  # what is loaded or compiled at first use
    for i, problem in enumerate(problems):
        counter, started = Counter(), time.process_time()
        try:
            draws, log_evidence = run(problem, size, i, counter)
        except Exception as error:
            found["failures"][i] = f"{type(error).__name__}: {error}"
            continue
        found["cpu"][i] = time.process_time() - started
        found["draws"][i], found["log_evidence"][i] = draws, log_evidence
        found["evaluations"][i] = counter.rows / size
    return found


if __name__ == "__main__":
    main()
