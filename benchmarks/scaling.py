"""Time and memory against the number of particles.

A 2-D mixture and one datum; `Annealed` with levels from one pilot, one cloud, with and without `batch_size`.
`ms a level` is the wall time of a level, the median of `--seeds` runs over 8 levels; `us a particle` is that
time over the number of particles. `bytes a particle` are those of everything that the engine carries between
levels: position, density, gradient, weight and ancestor. Memory is in units of these:

- `compiled`: the compiler's account of one chunk of levels: arguments, outputs and temporaries, less what
  is aliased.
- `temporaries`: the part of it that is neither argument nor output.
- `peak`: by how much the resident memory of a process that does this run alone exceeds that of the same
  process with two batches of particles; 0 where it stays below what compilation took.

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
from numpyro_diffusion.smc.chunks import level_step, run_chunk, start_clouds
from numpyro_diffusion.smc.resampling import systematic

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


def measure(model, size: int, batch_size: int | None, repeats: int):
    """Seconds a level; bytes of the state, of one chunk, and of its temporaries."""
    state, _ = start_clouds(jax.random.key(1), 1, model.init, size, batch_size, False)
    one_level = level_step(model, size, systematic, 0.5, None, batch_size, False)
    fixed = one_level, jax.tree.map(np.asarray, model.levels), np.asarray(CHUNK)
    chunk = run_chunk.lower(fixed, state).compile()
    bytes_of_state = size_of(state)
    state = jax.block_until_ready(chunk(fixed, state))[0]  # pages are touched for the first time
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        state = jax.block_until_ready(chunk(fixed, state))[0]
        seconds.append((time.perf_counter() - started) / CHUNK)
    found = chunk.compiled.memory_analysis()
    total = found.argument_size_in_bytes + found.output_size_in_bytes
    total += found.temp_size_in_bytes - found.alias_size_in_bytes
    return float(np.median(seconds)), bytes_of_state, total, found.temp_size_in_bytes


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
            seconds, state, total, temporaries = found
            peak = ""  # only the largest cloud stands out from what a process holds anyway
            if size == sizes[-1] and size > 2 * batch:
                more = state * (1 - 2 * batch / size)
                peak = f"{(peak_memory(size, batch_size) - base) / more:.1f}"
            rows.append(
                [
                    f"{size:,}",
                    "none" if batch_size is None else f"{batch_size:,}",
                    f"{1e3 * seconds:.2f}",
                    f"{1e6 * seconds / size:.2f}",
                    state // size,
                    *(f"{value / state:.2f}" for value in (total, temporaries)),
                    peak,
                ]
            )
            print(*rows[-1], sep=" | ", flush=True)
    columns = ["particles", "batch_size", "ms a level", "us a particle", "bytes a particle"]
    _table.emit(
        "scaling",
        __doc__,
        [*columns, "compiled", "temporaries", "peak"],
        rows,
        options.save,
    )


if __name__ == "__main__":
    main()
