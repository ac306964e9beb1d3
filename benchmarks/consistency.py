"""What losses beside denoising buy: scores, the density of the data, and normalisers of every level.

An asymmetric 2-D mixture in closed form. A proper energy (two blocks of 64), 20,000 examples, 2,000 steps of
128, a seed for data, weights and noise. `level` adds 0.1 of `level_loss`, `Bayes` 0.1 of `consistency_loss`,
`heat` 0.1 of `fokker_planck_loss`. Errors of the score are relative, at noise levels s of fresh data;
`density` is the standard deviation, in nats, of log p + E at the lowest level, over fresh data; `L` is the
largest difference between the log normalisers of the levels s, by importance sampling from the exact law.
Mean +- standard deviation over seeds.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
from distillation import draws, errors
from test_distill import MIXTURE

import numpyro_diffusion as nd
from numpyro_diffusion.train import (
    consistency_loss,
    denoising_loss,
    fokker_planck_loss,
    level_loss,
)

LEVELS = (0.15, 0.3, 1.0, 3.0)
EXTRAS = {
    "denoising alone": None,
    "level": level_loss,
    "Bayes": consistency_loss,
    "heat": fokker_planck_loss,
}


def loss_of(extra, scale):
    def loss(energy, key, batch):
        keys = jax.random.split(key)
        value = denoising_loss(energy, keys[0], batch, data_scale=scale)
        return value if extra is None else value + 0.1 * extra(energy, keys[1], batch)

    return loss


def gaps(energy, fresh, s):
    """log p + E at points of fresh data noised to level s."""
    t = energy.schedule.time(-2 * jnp.log(jnp.asarray(s, fresh.dtype)))
    alpha, _ = energy.schedule(t)
    u = fresh + s * jax.random.normal(jax.random.key(9), fresh.shape, fresh.dtype)
    return jax.vmap(lambda u: energy.energy(alpha * u, t) - MIXTURE.energy(alpha * u, t))(u)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    steps, size, seeds = (20, 500, 1) if options.tiny else (2000, 20_000, options.seeds)
    fresh = draws(jax.random.key(1000), size // 5)
    spread = lambda values: f"{np.mean(values):.3f} +- {np.std(values):.3f}"
    rows = []
    for name, extra in EXTRAS.items():
        found, seconds = [], []
        for seed in range(seeds):
            keys = jax.random.split(jax.random.key(seed), 3)
            data = draws(keys[0], size)
            net = nd.nets.ResidualMLP(keys[1], (2,), width=64)
            energy = nd.ProperEnergy.from_data(net, data, noise_min=0.1, noise_max=20.0)
            loss = loss_of(extra, float(jnp.sqrt(jnp.mean(jnp.var(data, 0)))))
            started = time.perf_counter()
            result = nd.fit(
                keys[2], energy, data, loss=loss, steps=steps, progress_bar=False,
                stopping=nd.train.EarlyStopping(patience=100, validation_repeats=4),
            )  # fmt: skip
            seconds.append((time.perf_counter() - started) / steps * 1e3)
            density = float(jnp.std(gaps(result.energy, fresh, 0.1)))
            normalizers = [float(jax.nn.logsumexp(-gaps(result.energy, fresh, s))) for s in LEVELS]
            found.append([*errors(result.energy, fresh), density, np.ptp(normalizers)])
        columns = [spread(values) for values in np.array(found).T]
        rows.append([name, *columns, f"{np.mean(seconds):.1f}"])
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["loss", *(f"s = {s}" for s in LEVELS), "density", "L", "ms a step"]
    _table.emit("consistency", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
