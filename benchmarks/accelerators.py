"""Throughput on the device at hand: particles a second, share of its peak, and waiting for the host.

For a residual network of `--width` and `--depth` on images of 32 x 32, untrained, in float32 and in bfloat16
(`nd.nets.LowPrecision`): evaluations of energy and score a second in one batch of `--particles`; their share
of the peak, that of a product of two large square matrices of the same type, measured here; particles
a second and level of `nd.run_smc`; and `host`, the share of its time that goes when all levels are run
as one program instead of in chunks of eight. Median of `--seeds` repeats. Floating-point operations are those
that the compiler counts.
"""

import time

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd


def seconds(function, *args, repeats: int) -> float:
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def peak(dtype, size: int, repeats: int) -> float:
    """Operations a second of a matrix product."""
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / seconds(jax.jit(lambda a: a @ a), a, repeats=repeats)


def row(dtype: str, options) -> list:
    shape, repeats = (32, 32), options.seeds
    net = nd.nets.ResidualMLP(jax.random.key(0), shape, width=options.width, depth=options.depth)
    energy = nd.ProperEnergy(nd.nets.LowPrecision(net, dtype), jnp.zeros(shape), jnp.ones(32 * 32))
    count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    x = jax.random.normal(jax.random.key(1), (options.particles, *shape))
    both = jax.jit(jax.vmap(lambda u: energy.energy_and_score(u, jnp.asarray(0.5))))
    operations = both.lower(x).compile().cost_analysis().get("flops", np.nan)
    once = seconds(both, x, repeats=repeats)
    top = peak(jnp.dtype(dtype), options.matrix, repeats)
    model = nd.Annealed(levels=16)(nd.from_energy(energy), jax.random.key(2))
    run = lambda chunk: (
        nd.run_smc(jax.random.key(3), model, options.particles, levels_per_chunk=chunk).log_evidence
    )
    chunks, whole = (seconds(run, chunk, repeats=repeats) for chunk in (8, 64))
    levels = len(np.asarray(model.levels.clock))
    return [
        jax.devices()[0].device_kind,
        f"{count:,}",
        dtype,
        f"{options.particles / once:,.0f}",
        f"{operations / once / top:.2f}",
        f"{options.particles * levels / chunks:,.0f}",
        f"{1 - whole / chunks:.2f}",
    ]


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--particles", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--matrix", type=int, default=4096)
    options = parser.parse_args()
    if options.tiny or jax.default_backend() == "cpu":
        options.particles, options.width, options.depth, options.matrix = 64, 64, 1, 256
    rows = [row(dtype, options) for dtype in ("float32", "bfloat16")]
    if jax.default_backend() == "cpu":
        rows.append(["GPU or TPU", *["not run: none at hand"] + [""] * 5])
    columns = ["device", "parameters", "type", "evaluations a second", "of the peak"]
    columns += ["particles and levels a second", "host"]
    _table.emit("accelerators", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
