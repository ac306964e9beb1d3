"""A first run in a fresh process: what is compiled, how long that takes, and what a later run costs.

For each model `SMC(model, num_particles=256, num_chains=4).run(...)`, each repeat in its own process; for the
U-Net four levels of 8 particles, since it is untrained and only compilation is looked at.
`first` is the CPU time of the first run less that of a later one: tracing, lowering and compiling. `later` is
the wall time of a run with new data and key. `programs` are those compiled in the first run, `again` those
compiled for new data and key, `another` those for another model function of the same structure. `pilot` and
`run` are lines of StableHLO of the pilot's step and of the engine's.

With `--against FOLDER`, another checkout of this package, each repeat measures both trees in turn, and
`ratio` is the median over the repeats of this tree's `first` over the other's, with its range:

    git worktree add ../before 0fca698 && python benchmarks/cold_start.py --against ../before
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS = ("8-D mixture", "digits 8x8", "U-Net 16x16")


def problem(name: str):
    """Model function and data."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist

    import numpyro_diffusion as nd

    if name == "8-D mixture":
        rng = np.random.default_rng(3)
        factors = 0.4 * rng.normal(size=(4, 8, 8))
        covariances = factors @ np.swapaxes(factors, 1, 2) / 8 + 0.1 * np.eye(8)
        energy = nd.GaussianMixture(
            [0.2, 0.3, 0.35, 0.15], 2 * rng.normal(size=(4, 8)), covariances
        )
        operator, shape = rng.normal(size=(3, 8)) / np.sqrt(8), (8,)
    elif name == "digits 8x8":
        energy, shape = nd.load_pretrained("digits-8x8"), (8, 8)
        operator = np.random.default_rng(0).normal(size=(24, 64)) / 8
    else:
        shape = (16, 16)
        net = nd.nets.UNet(jax.random.key(0), shape, channels=(8, 16), depth=1)
        images = np.random.default_rng(0).normal(size=(64, *shape))
        limits = {"noise_min": 0.0625, "noise_max": 10.0, "diagonal": True}
        energy = nd.ProperEnergy.from_data(net, images, **limits)
        operator = np.random.default_rng(0).normal(size=(24, 256)) / 16
    data = np.random.default_rng(1).normal(size=(2, len(operator)))

    def model(operator, y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(operator @ x.ravel(), sigma).to_event(1), obs=y)

    return model, jnp.asarray(operator), jnp.asarray(data)


def child(name: str, num_particles: int) -> dict:
    """What one process measures."""
    start = time.perf_counter()
    import arviz  # noqa: F401
    import jax
    import numpyro  # noqa: F401

    parents = time.perf_counter()
    import numpyro_diffusion as nd

    imported = time.perf_counter() - parents
    lines = {}
    compiled = []

    def count(event, seconds, **more):
        del more
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    from jax._src import compiler  # to read the programs; the package itself needs nothing of it

    inner = compiler.backend_compile_and_load

    def read(backend, module, *args, **kwargs):
        label = str(module.operation.attributes["sym_name"]).strip('"')
        lines[label] = str(module).count("\n")
        return inner(backend, module, *args, **kwargs)

    compiler.backend_compile_and_load = read
    model, operator, data = problem(name)
    options = {"num_particles": num_particles, "num_chains": 4, "progress_bar": False}
    if name.startswith("U-Net"):  # four levels of few particles: what is compiled is the same
        now = hasattr(nd.schemes, "Pilot")
        pilot = {"pilot": 16} if now else {"num_pilot": 16}
        options |= {"scheme": nd.Annealed(levels=4, **pilot), "num_particles": 8}
    smc, times, counts = nd.SMC(model, **options), [], []
    for key, y in ((0, data[0]), (1, data[1]), (2, data[0])):
        wall, cpu, before = time.perf_counter(), time.process_time(), len(compiled)
        smc.run(jax.random.key(key), operator, y)
        jax.block_until_ready(smc.result.positions)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        counts.append(len(compiled) - before)
        evidence = float(smc.log_evidence)
    before = len(compiled)
    nd.SMC(lambda a, y: model(a, y), **options).run(jax.random.key(3), operator, data[1])
    return {
        "import": imported,
        "parents": parents - start,
        "first": times[0][1] - times[2][1],
        "wall": times[0][0],
        "later": times[2][0],
        "programs": counts[0],
        "again": counts[1] + counts[2],
        "another": len(compiled) - before,
        "pilot": lines.get("jit__advance", 0),
        "run": lines.get("jit_run_chunk", 0),
        "evidence": evidence,
    }


def measure(tree: Path, name: str, num_particles: int) -> dict:
    command = [sys.executable, __file__, "--child", name, "--particles", str(num_particles)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if out.returncode:
        raise RuntimeError(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    import _table
    import numpy as np

    options = _table.parser(__doc__)
    options.add_argument("--against", type=Path, help="another checkout, measured beside this one")
    options.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options.add_argument("--name", default="cold_start", help="of the saved table")
    args = options.parse_args()
    repeats, num_particles = (1, 16) if args.tiny else (args.seeds, 256)
    trees = {"this": ROOT} | ({"before": args.against.resolve()} if args.against else {})
    rows = []
    for name in args.models[:1] if args.tiny else args.models:
        found = {tree: [] for tree in trees}
        for _ in range(repeats):
            for tree, path in trees.items():
                found[tree].append(measure(path, name, num_particles))
        for tree, each in found.items():
            middle = lambda key, each=each: float(np.median([one[key] for one in each]))
            ratio = ""
            if tree == "this" and args.against:
                ratios = [
                    a["first"] / b["first"] for a, b in zip(each, found["before"], strict=True)
                ]
                ratio = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append(
                [name, tree, f"{middle('import'):.1f}", f"{middle('first'):.1f}", ratio]
                + [f"{middle('wall'):.1f}", f"{middle('later'):.2f}"]
                + [f"{middle(key):.0f}" for key in ("programs", "again", "another", "pilot", "run")]
            )
            print(*rows[-1], flush=True)
    columns = ["model", "tree", "import [s]", "first [s]", "ratio", "wall [s]", "later [s]"]
    columns += ["programs", "again", "another", "pilot", "run"]
    _table.emit(args.name, __doc__, columns, rows, args.save)


if __name__ == "__main__":
    simple = argparse.ArgumentParser(add_help=False)
    simple.add_argument("--child")
    simple.add_argument("--particles", type=int, default=256)
    known, _ = simple.parse_known_args()
    if known.child:
        print(json.dumps(child(known.child, known.particles)))
    else:
        main()
