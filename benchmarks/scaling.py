"""Time and memory against the number of particles.

A 2-D mixture of 25 components and one datum; `Annealed` with levels from one pilot, one cloud, with and
without `batch_size`. `ms a level` is the wall time of a level in a later run, the median of `--seeds` runs
over 8 levels; `us a particle` is that time over the number of particles. Memory is given in units of the
particles, the bytes of all arrays that travel with one: position, density and what was evaluated there.

- `state`: everything that the engine carries between levels, with weights, ancestors and families.
- `compiled`: the compiler's account of one chunk of levels: arguments, outputs and temporaries, less what
  is aliased.
- `temporaries`: the part of it that is neither argument nor output.
- `peak`: by how much the resident memory of a process that does this run alone exceeds that of the same
  process with two batches of particles. Allocators round up and keep what they had.

The bar: time a particle constant once fixed costs are gone, memory at most twice the particles plus a batch.
"""

import os
import resource
import subprocess
import sys
import time

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import smc

BATCH, CHUNK = 16_384, 8


def log_likelihood(x):
    """One datum, the sum of the coordinates."""
    return -0.5 * ((x[0] + x[1] - 3.0) / 0.5) ** 2


def problem():
    """The Feynman-Kac model, cut to one chunk of levels in the middle of the path."""
    steps = nd.Annealed()(nd.from_energy(nd.GaussianMixture(), log_likelihood), jax.random.key(0))
    middle = len(steps.levels.clock) // 2
    cut = lambda leaf: jnp.asarray(leaf)[middle - CHUNK // 2 : middle + CHUNK // 2]
    return steps._replace(levels=jax.tree.map(cut, steps.levels))


def size_of(tree) -> int:
    """Bytes of all arrays; a key counts as its words."""
    leaves = jax.tree.leaves(tree)
    words = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    return sum(words(leaf).nbytes for leaf in leaves)


def cloud(model, size: int, batch_size: int | None):
    """The engine's state before a chunk, and its arguments."""
    keys = jax.random.key(1)[None]
    state, _ = smc._start_clouds(keys, model.init, size, batch_size)
    resample, share = smc.resampling.systematic, np.asarray(0.5)
    levels = jax.tree.map(np.asarray, model.levels)
    active = np.ones(CHUNK, bool)
    return model.step, resample, share, batch_size, state, levels, active


def measure(model, size: int, batch_size: int | None, repeats: int):
    """Seconds a level; bytes of the particles, of the state, of one chunk, and of its temporaries."""
    arguments = cloud(model, size, batch_size)
    chunk = smc._run_chunk.lower(*arguments).compile()
    run = lambda: jax.block_until_ready(chunk(*arguments))
    run()  # pages are touched for the first time
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - started) / CHUNK)
    found, state = chunk.compiled.memory_analysis(), arguments[4]
    total = found.argument_size_in_bytes + found.output_size_in_bytes
    total += found.temp_size_in_bytes - found.alias_size_in_bytes
    bytes_of = size_of(state.particles), size_of(state), total, found.temp_size_in_bytes
    return float(np.median(seconds)), *bytes_of


def peak_memory(size: int, batch_size: int | None) -> int:
    """Largest resident memory of a process that does one run alone, in bytes."""
    command = [sys.executable, __file__, "--child", str(size), str(batch_size or 0)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return int(found.stdout.split()[-1])


def child(size: int, batch_size: int) -> None:
    nd.run_smc(jax.random.key(2), problem(), size, batch_size=batch_size or None)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    if "--child" in sys.argv:
        return child(*(int(value) for value in sys.argv[-2:]))
    options = _table.parser(__doc__).parse_args()
    sizes = [1000, 4000] if options.tiny else [10**3, 10**4, 10**5, 10**6]
    batch = 1024 if options.tiny else BATCH
    repeats = 1 if options.tiny else options.seeds
    model, rows = problem(), []
    for batch_size in (None, batch):
        base = peak_memory(2 * batch, batch_size)
        for size in sizes:
            found = measure(model, size, batch_size, repeats)
            seconds, particles, state, total, temporaries = found
            peak = ""  # only the largest cloud stands out from what a process holds anyway
            if size == sizes[-1] and size > 2 * batch:
                more = particles * (1 - 2 * batch / size)
                peak = f"{(peak_memory(size, batch_size) - base) / more:.1f}"
            rows.append(
                [
                    f"{size:,}",
                    "none" if batch_size is None else f"{batch_size:,}",
                    f"{1e3 * seconds:.2f}",
                    f"{1e6 * seconds / size:.2f}",
                    particles // size,
                    *(f"{value / particles:.1f}" for value in (state, total, temporaries)),
                    peak,
                ]
            )
            print(*rows[-1], sep=" | ", flush=True)
    columns = ["particles", "batch_size", "ms a level", "us a particle", "bytes a particle"]
    _table.emit(
        "scaling",
        __doc__,
        [*columns, "state", "compiled", "temporaries", "peak"],
        rows,
        options.save,
    )


if __name__ == "__main__":
    main()
