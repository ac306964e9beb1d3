"""Energies by recovery likelihood and by denoising on a checkerboard: is the mass where it belongs?

Eight unit squares of equal mass on [-2, 2]^2. Same backbone (two blocks of 64), 20,000 examples, as many
steps of 256 of either kind, a seed for data, weights and noise. `law` is exp(-E) at the lowest noise level
(0.02, which alone carries 3 % of the mass over the edges), summed on a grid; `ladder` is a run of `Annealed`
down the noise levels with 4,000 particles; `rungs` are as many draws of `recovery_process`. The numbers are
the mass inside the squares and the largest error of the share of one square, mean +- standard deviation over
seeds. Samples have a standard error of 0.005 a square. Recovery likelihood has `level_weight=1`: a nat of
levels counts as much as one a dimension of the contrast. `then levels`: its energy after a closing stage of
`level_loss` alone with 2,048 examples a step, in groups that all spread over all levels: the masses of far
regions are known at high noise, and narrow groups say little of them.
"""

import time
from functools import partial
from typing import Any

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.train import denoising_loss, recovery_process


def checkerboard(key, num):
    """Points uniform on eight of the sixteen unit squares, shape `(num, 2)`."""
    key_square, key_inside = jax.random.split(key)
    square = jax.random.randint(key_square, (num,), 0, 8)
    row = square // 2
    column = 2 * (square % 2) + row % 2
    corner = jnp.stack([column, row], -1) - 2.0
    return corner + jax.random.uniform(key_inside, (num, 2))


def shares(u, weights):
    """Mass inside the squares and in each of the eight, of weighted points."""
    u, weights = np.asarray(u), np.asarray(weights)
    row, column = (np.floor(u[:, i] + 2).astype(int) for i in (1, 0))
    inside = (row >= 0) & (row < 4) & (column >= 0) & (column < 4) & ((row + column) % 2 == 0)
    square = np.where(inside, 2 * row + column // 2, 8)
    found = np.bincount(square, weights, 9)
    return float(found[:8].sum()), float(np.abs(found[:8] - 0.125).max())


def law(energy, per_unit=50):
    """Points of a grid over [-4, 4]^2 and their probabilities at `t_min`."""
    axis = (np.arange(8 * per_unit) + 0.5) / per_unit - 4
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    log_p = jax.jit(jax.vmap(lambda u: energy.log_density(u, jnp.asarray(energy.t_min))))(grid)
    return grid, jax.nn.softmax(log_p)


def ladder(key, energy, num):
    result = nd.run_smc(key, nd.Annealed()(nd.from_energy(energy)), num)
    alpha, _ = energy.schedule(jnp.asarray(energy.t_min))
    return result.positions["x"] / alpha, jax.nn.softmax(result.log_weights)


def rungs(key, energy, initializer, num):
    keys = jax.random.split(key, num)
    draw = jax.jit(jax.vmap(lambda key: recovery_process(energy, initializer, key)))
    return draw(keys), jnp.full(num, 1 / num)


def picture(data, samples, path):
    import matplotlib.pyplot as plt

    columns = [("data", data), *samples.items()]
    size = (2.5 * len(columns), 2.7)
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained")
    for axis, (name, points) in zip(axes, columns, strict=True):
        axis.plot(*np.asarray(points[:4000]).T, ".", markersize=1, alpha=0.5)
        axis.set(title=name, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
        axis.set_aspect("equal")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--num-moves", type=int, default=15)
    parser.add_argument("--level-weight", type=float, default=1.0, help="of recovery likelihood")
    parser.add_argument("--levels-steps", type=int, default=1000, help="steps of the closing stage")
    parser.add_argument("--window", type=float, default=1.0, help="of its narrow groups")
    options = parser.parse_args()
    steps, size, num, seeds = options.steps, 20_000, 4_000, options.seeds
    if options.tiny:
        steps, size, num, seeds = 20, 500, 100, 1
    recovery = partial(
        nd.train.fit_recovery, num_moves=options.num_moves, level_weight=options.level_weight
    )
    level_loss = partial(nd.train.level_loss, window=options.window)
    fits = {"recovery likelihood": recovery, "then levels": None, "denoising": nd.fit}
    found, samples, notes = {name: [] for name in fits}, {}, []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed), 4)
        data, held_out = checkerboard(keys[0], size), checkerboard(jax.random.key(99), size)
        net = nd.nets.ResidualMLP(keys[1], (2,), width=64)
        energy = nd.ProperEnergy.from_data(net, data, noise_min=0.02, noise_max=15.0)
        result: Any = None
        for name, fit in fits.items():
            started = time.perf_counter()
            settings = {
                "optimizer": nd.train.Optimizer(weight_decay=0.0), "progress_bar": False,
                "stopping": nd.train.EarlyStopping(patience=1000, validation_repeats=4),
            }  # fmt: skip
            if fit is None:  # goes on from the energy before
                num_steps = options.levels_steps if not options.tiny else steps
                result = nd.fit(
                    keys[3], result.energy, data, loss=level_loss, steps=num_steps,
                    batch_size=2048, learning_rate=1e-3, **settings,
                )  # fmt: skip
            else:
                num_steps = steps
                result = fit(
                    keys[2],
                    energy,
                    data,
                    steps=steps,
                    batch_size=256,
                    learning_rate=5e-3,
                    **settings,
                )
            seconds = (time.perf_counter() - started) / num_steps * 1e3
            draws = ladder(keys[3], result.energy, num)
            alone = (np.nan, np.nan)
            if name == "recovery likelihood":
                alone = shares(*rungs(keys[3], result.energy, result.initializer, num))
            loss = float(
                denoising_loss(result.energy, jax.random.key(9), held_out, data_scale=1.15)
            )
            row = [*shares(*law(result.energy)), *shares(*draws), *alone, loss, seconds]
            found[name].append(row)
            if name not in samples:
                index = jax.random.choice(keys[3], num, (num,), p=draws[1])
                samples[name] = draws[0][index]
            if name == "recovery likelihood":
                last = {n: result.history[n][-1] for n in ("acceptance", "energy_gap")}
                notes.append(last)
            print(seed, name, *(f"{value:.4f}" for value in row), sep=" | ", flush=True)
    rows = []
    for name, values in found.items():
        mean, sd = np.mean(values, 0), np.std(values, 0)
        cells = [
            "" if np.isnan(m) else f"{m:.3f} +- {s:.3f}"
            for m, s in zip(mean[:6], sd[:6], strict=True)
        ]
        rows.append([name, *cells, f"{mean[6]:.3f}", f"{mean[7]:.1f}"])
    columns = [
        "energy by", "law: inside", "law: worst", "ladder: inside", "ladder: worst",
        "rungs: inside", "rungs: worst", "denoising loss", "ms a step",
    ]  # fmt: skip
    means = {n: np.mean([note[n] for note in notes]) for n in notes[0]}
    note = (
        f"At the end of training {means['acceptance']:.2f} of the moves were accepted, and data lay "
        f"{means['energy_gap']:+.3f} nats above the negatives."
    )
    _table.emit("recovery", __doc__, columns, rows, options.save, (note,))
    if options.save:
        picture(data, samples, _table.ROOT / "docs" / "images" / "recovery.png")


if __name__ == "__main__":
    main()
