"""Runs as large as the machine: many data sets in one program, weak scaling, kills.

- `data sets`: `--data-sets` posteriors of an 8-D mixture with unknown noise level, one cloud of 256 particles
  each: seconds a data set of `nd.SMC`, one by one, and of `nd.ppl.Sampler` in one `vmap` (compilation apart),
  and the error of the log evidences against the closed form.
- `weak scaling`: the digits energy, one cloud of 512 particles on one device of one thread, and two clouds
  on two; the result is the ratio of their times, median of `--seeds` pairs with its range. Meant for a
  machine with two idle cores.
- `kills`: a filter that writes a checkpoint after every two levels is killed (SIGKILL) at `--kills` random
  instants and started again; how many results have the bits of the run that was not killed. The same for a
  posterior whose pilot writes after every level, killed at `--pilot-kills` instants from its first file on;
  and for replica exchange, a split sampler and NUTS by `CheckpointedMCMC`, at `--chain-kills` each.
- `memory`: what the compiler counts for a chunk of levels in batches (arguments, results and temporaries,
  less what is shared), over the particles themselves: position, density, gradient, weight, ancestor.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import numpy as np

TESTS = Path(__file__).parent.parent / "tests"
CHAINS = ["replica", "split", "mcmc"]
PARTS = ["kills", "chains", "memory", "devices", "data"]


def data_sets(number: int) -> list[list]:
    from closed_form import eight_dimensional

    import numpyro_diffusion as nd

    problem = eight_dimensional()
    rng = np.random.default_rng(0)
    ys = [
        jnp.asarray(problem.data + 0.3 * rng.normal(size=problem.data.shape)) for _ in range(number)
    ]
    exact = np.array([problem._replace(data=np.asarray(y)).exact(401).log_evidence for y in ys])
    new = lambda: nd.SMC(problem.model, num_particles=256, num_chains=1, progress_bar=False)
    operator = jnp.asarray(problem.operator)
    smc = new().run(jax.random.key(0), operator, ys[0])
    started, one = time.perf_counter(), []
    some = ys[: max(2, number // 10)]
    for i, y in enumerate(some):
        one.append(new().run(jax.random.key(i), operator, y).log_evidence)
    each = (time.perf_counter() - started) / len(some)
    sample = nd.ppl.Sampler(smc)
    started = time.perf_counter()
    data = sample.stack((operator, y) for y in ys)
    stacked = (time.perf_counter() - started) / number
    keys = jax.random.split(jax.random.key(1), number)
    run = jax.jit(jax.vmap(sample)).lower(keys, data).compile()
    started = time.perf_counter()
    together = np.asarray(jax.block_until_ready(run(keys, data)).log_evidence)[:, 0]
    mapped = (time.perf_counter() - started) / number
    told = lambda errors: f"{np.mean(errors):+.3f} (sd {np.std(errors):.3f})"
    return [
        ["data sets", "one by one", f"{each:.2f} s", told(np.array(one) - exact[: len(one)])],
        ["data sets", f"{number} in one vmap", f"{mapped:.2f} s", told(together - exact)],
        ["data sets", "looking at the model", f"{stacked:.2f} s", ""],
    ]  # fmt: skip


def child(devices: int) -> None:
    import numpyro_diffusion as nd

    energy = nd.load_pretrained("digits-8x8")
    model = nd.Annealed()(nd.from_energy(energy), jax.random.key(0))
    run = lambda key: nd.run_smc(key, model, 512, num_chains=devices, devices=jax.devices())
    run(jax.random.key(1))
    for line in sys.stdin:
        started = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(int(line))).log_evidence)
        print(time.perf_counter() - started, flush=True)


def weak_scaling(seeds: int) -> list[list]:
    """Pairs of runs, one after the other, in two processes that live on."""

    def started(devices):
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
        )
        settings = {**os.environ, "XLA_FLAGS": flags + " intra_op_parallelism_threads=1"}
        command = [sys.executable, __file__, "--child", str(devices)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=settings, stdin=pipe, stdout=pipe, text=True)

    processes = [started(1), started(2)]

    def seconds(process, seed):
        process.stdin.write(f"{seed}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    pairs = np.array([[seconds(p, seed) for p in processes] for seed in range(seeds)])
    for process in processes:
        process.stdin.close()
        process.wait()
    ratio = pairs[:, 0] / pairs[:, 1]
    times = ", ".join(f"{t:.2f}" for t in np.median(pairs, 0))
    said = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
    return [["weak scaling", "two clouds on two devices against one on one", f"{times} s", said]]


def kills(number: int, what: str, first: str) -> list[list]:
    """From the first appearance of a file, which ends in `first`, a process is killed at any instant."""
    settings = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    rng, same, tries, in_pilot = np.random.default_rng(0), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path, out = (Path(folder) / name for name in ("run.safetensors", "run.npz"))
        command = [sys.executable, str(TESTS / "filtering.py"), what, str(path), str(out)]

        def start():
            process = subprocess.Popen(command, env=settings)
            while not Path(f"{path}{first}").exists():
                assert process.poll() in (None, 0)
                time.sleep(0.01)
            return process, time.perf_counter()

        process, began = start()
        assert process.wait() == 0
        seconds = time.perf_counter() - began
        whole = {name: value for name, value in np.load(out).items()}
        out.unlink()
        while tries < number:
            for old in Path(folder).glob("*run.safetensors*"):
                old.unlink()
            process, _ = start()
            time.sleep(rng.uniform(0.0, 0.9 * seconds))
            process.kill()
            process.wait()
            if out.exists():  # too late
                out.unlink()
                continue
            tries += 1
            in_pilot += not path.exists()
            assert start()[0].wait() == 0
            again = np.load(out)
            same += all(
                np.array_equal(again[name], value, equal_nan=True) for name, value in whole.items()
            )
            out.unlink()
    place = f", {in_pilot} of them in the pilot" if first else ""
    told = f"SIGKILL at random instants{place}"
    return [["kills", f"{what}: {told}", f"{tries}", f"{same} with the same bits"]]


def memory(tiny: bool) -> list[list]:
    """The compiler's account of a chunk of levels over the particles, for `scaling.py`'s model and digits."""
    import scaling

    import numpyro_diffusion as nd

    digits = nd.Annealed(levels=16)(
        nd.from_energy(nd.load_pretrained("digits-8x8")), jax.random.key(0)
    )
    middle = jax.tree.map(lambda leaf: jnp.asarray(leaf)[4:12], digits.levels)
    rows = []
    for name, model, size, batch in (
        ("2-D mixture", scaling.problem(), 10**6, 16_384),
        ("64-D digits", digits._replace(levels=middle), 20_000, 128),
    ):
        size = 40 * batch if tiny else size
        _, state, total, _ = scaling.measure(model, size, batch, 1)
        told = f"{name}: {size:,} particles of {state // size} bytes, {batch:,} at a time"
        rows.append(["memory", told, "", f"{total / state:.2f} times the particles"])
    return rows


def main() -> None:
    if "--child" in sys.argv:
        return child(int(sys.argv[-1]))
    parser = _table.parser(__doc__)
    parser.add_argument("--data-sets", type=int, default=200)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--pilot-kills", type=int, default=10)
    parser.add_argument("--chain-kills", type=int, default=10)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some parts")
    options = parser.parse_args()
    tiny = options.tiny
    parts = {
        "kills": lambda: (
            kills(1 if tiny else options.kills, "checkpointed", "")
            + kills(1 if tiny else options.pilot_kills, "posterior", ".pilot")
        ),
        "chains": lambda: sum(
            (kills(1 if tiny else options.chain_kills, what, "") for what in CHAINS), []
        ),
        "memory": lambda: memory(tiny),
        "devices": lambda: weak_scaling(1 if tiny else options.seeds),
        "data": lambda: data_sets(4 if tiny else options.data_sets),
    }
    rows = [row for name in options.only for row in parts[name]()]
    name = "scale" if options.only == PARTS else "-".join(["scale", *options.only])
    _table.emit(name, __doc__, ["what", "how", "seconds or number", "result"], rows, options.save)


if __name__ == "__main__":
    main()
