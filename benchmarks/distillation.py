"""Energies distilled from a denoiser beside energies trained on data: errors of the score.

An asymmetric 2-D mixture whose score is known. Same backbone (two blocks of 64), 20,000 examples, 3,000
steps of 128, a seed for data, weights and noise. `exact` teachers are the mixture itself; a `turned` one
adds a field A grad log p with antisymmetric A, of 0.8 times the score at low noise, in which no gradient has
a part. The error is that of the score relative to the true one, at noise levels s of fresh data, mean +-
standard deviation over seeds; `loss` is the held-out denoising loss above the exact denoiser's.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
from test_distill import MIXTURE, turned

import numpyro_diffusion as nd
from numpyro_diffusion.train import denoising_loss

LEVELS = (0.15, 0.3, 1.0, 3.0)
KINDS = {
    "inner product": nd.InnerProductEnergy,
    "proper": nd.ProperEnergy,
    "squared": nd.energies.SquaredEnergy,
    "autoencoder": nd.energies.AutoencoderEnergy,
    "scalar head": nd.energies.ScalarEnergy,
}
ROWS = [(name, "distilled, exact") for name in KINDS] + [
    ("inner product", "distilled, turned"),
    ("inner product", "trained on data"),
    ("proper", "distilled, turned"),
    ("proper", "trained on data"),
]


def score(model, u, s):
    """Score of the data noised to level s, in units of the data."""
    t = model.schedule.time(-2 * jnp.log(jnp.asarray(s, u.dtype))).astype(u.dtype)
    alpha, _ = model.schedule(t)
    return jax.vmap(lambda u: (model.denoise(alpha * u, t) - u) / s**2)(u)


def errors(model, fresh):
    found = []
    for s in LEVELS:
        u = fresh + s * jax.random.normal(jax.random.key(9), fresh.shape, fresh.dtype)
        exact = score(MIXTURE, u, s)
        gap = score(model, u, s) - exact
        found.append(float(jnp.sqrt(jnp.mean(gap**2) / jnp.mean(exact**2))))
    return found


def draws(key, num):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: MIXTURE.draw(key, jnp.asarray(0.0)))(keys)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    steps, size, seeds = (20, 500, 1) if options.tiny else (3000, 20_000, options.seeds)
    fresh = draws(jax.random.key(1000), size // 5)
    spread = lambda values: f"{np.mean(values):.3f} +- {np.std(values):.3f}"
    rows = [
        ["teacher", name, *(f"{e:.3f}" for e in errors(teacher, fresh)), "", ""]
        for name, teacher in (("exact", MIXTURE), ("turned", turned()))
    ]
    for kind, how in ROWS[:2] if options.tiny else ROWS:
        found, extra, seconds = [], [], []
        for seed in range(seeds):
            keys = jax.random.split(jax.random.key(seed), 3)
            data = draws(keys[0], size)
            net = nd.nets.ResidualMLP(keys[1], (2,), width=64)
            student = KINDS[kind].from_data(net, data, noise_min=0.1, noise_max=20.0)
            patient = nd.train.EarlyStopping(patience=100)
            settings = {"steps": steps, "stopping": patient, "progress_bar": False}
            started = time.perf_counter()
            if "data" in how:
                result = nd.fit(keys[2], student, data, **settings)
            else:
                teacher = MIXTURE if "exact" in how else turned()
                result = nd.distill(keys[2], teacher, student, data, **settings)
            seconds.append((time.perf_counter() - started) / steps * 1e3)
            found.append(errors(result.energy, fresh))
            loss = lambda model: denoising_loss(model, jax.random.key(5), fresh)
            same = MIXTURE.with_horizon(t_min=student.t_min, t_max=student.t_max)
            extra.append(float(loss(result.energy) - loss(same)))
        columns = [spread(values) for values in np.array(found).T]
        rows.append([kind, how, *columns, f"{np.mean(extra):.4f}", f"{np.mean(seconds):.1f}"])
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["energy", "from", *(f"s = {s}" for s in LEVELS), "loss", "ms a step"]
    _table.emit("distillation", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
