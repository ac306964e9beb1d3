"""Robust training of a denoiser: what it costs, and what it gives when a sampler strays.

Eight Gaussian modes on a circle of radius 2 and standard deviation 0.15, 4,000 examples, a
`NetworkDenoiser` of width 64. `radius` 0 is the denoising loss. *Score*: relative root mean square error of
the score against the exact one, over noise levels 0.15 to 3, at noised data (`at data`), and at points
pushed off them by 0.3 in a random direction of the space of x_t (`off data`). *Draws*: squared energy
distance to the data, times 1,000, of 2,000 draws by the reverse diffusion with few equal steps in log
noise, where steps are too long and the sampler strays; that of exact data of the same number is `exact
draws`.
"""

import functools
import sys

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.train import robust_loss

RADII, STEPS = (0.0, 0.03, 0.1, 0.3), (5, 10, 40)
ANGLES = np.arange(8) * np.pi / 4
CENTERS = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
TRUTH = nd.GaussianMixture(np.ones(8) / 8, CENTERS, np.full((8, 2, 2), 0.15**2 * np.eye(2)))
LOW, HIGH = 0.05, 20.0


def examples(seed: int, num: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return CENTERS[rng.integers(8, size=num)] + 0.15 * rng.standard_normal((num, 2))


def trained(seed: int, data, radius: float, steps: int):
    net = nd.nets.ResidualMLP(jax.random.key(seed), (2,), width=64)
    base = nd.InnerProductEnergy.from_data(net, data, noise_min=LOW, noise_max=HIGH)
    loss = functools.partial(robust_loss, radius=radius, data_scale=float(data.std()))
    return nd.fit(
        jax.random.key(seed + 100), nd.NetworkDenoiser(base), data, loss=loss, steps=steps,
        trainable=lambda model: model.base.net, progress_bar=False,
    ).energy  # fmt: skip


@jax.jit
def score_errors(model, key, data):
    """Relative errors of the score at noised data and off them."""
    levels = jnp.exp(jnp.linspace(jnp.log(0.15), jnp.log(3.0), 8))

    def one(key, x_0, s):
        key_noise, key_push = jax.random.split(key)
        t = model.schedule.time_at_noise(s)
        alpha, _ = model.schedule(t)
        u = x_0 + s * jax.random.normal(key_noise, x_0.shape)
        push = jax.random.normal(key_push, x_0.shape)
        off = u + 0.3 / alpha * push / jnp.linalg.norm(push)

        def errors(u):
            exact = TRUTH.data_score(u, TRUTH.schedule.time_at_noise(s))
            found = model.data_score(u, t)
            return s**2 * jnp.sum((found - exact) ** 2), s**2 * jnp.sum(exact**2)

        return jnp.stack(errors(u) + errors(off))

    over_levels = jax.vmap(one, (None, None, 0))
    sums = jax.vmap(over_levels, (0, 0, None))(jax.random.split(key, len(data)), data, levels)
    sums = jnp.mean(sums, (0, 1))
    return jnp.sqrt(sums[0] / sums[1]), jnp.sqrt(sums[2] / sums[3])


@functools.partial(jax.jit, static_argnames=("num", "steps"))
def drawn(model, key, num: int, steps: int):
    """Draws by Euler's scheme of the reverse diffusion of u = x_t / alpha_t, in equal steps of log noise."""
    levels = jnp.exp(jnp.linspace(jnp.log(HIGH), jnp.log(LOW), steps + 1))
    key, key_start = jax.random.split(key)
    u = HIGH * jax.random.normal(key_start, (num, 2))
    score = jax.vmap(model.data_score, (0, None))

    def step(u, now):
        s, after, key = now
        variance = s**2 - after**2
        noise = jax.random.normal(key, u.shape)
        u = (
            u
            + variance * score(u, model.schedule.time_at_noise(s))
            + jnp.sqrt(variance) * noise * (after / s)
        )
        return u, None

    return jax.lax.scan(step, u, (levels[:-1], levels[1:], jax.random.split(key, steps)))[0]


def energy_distance(x, y) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|."""
    mean = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1).mean()
    own = lambda a: mean(a, a) * len(a) / (len(a) - 1)
    return 2 * mean(x, y) - own(x) - own(y)


def main():
    """Train at each radius and print one table."""
    options = _table.parser(__doc__)
    options.set_defaults(seeds=3)
    options.add_argument("--steps", type=int, default=4000)
    options = options.parse_args()
    seeds, steps, num = (1, 20, 200) if options.tiny else (options.seeds, options.steps, 2000)
    cells = {}
    for seed in range(seeds):
        data, fresh = examples(seed, 2 * num), examples(seed + 50, num)
        for radius in RADII:
            model = trained(seed, data.astype(np.float32), radius, steps)
            errors = score_errors(
                model, jax.random.key(seed), jnp.asarray(fresh[:500], jnp.float32)
            )
            keys = jax.random.key(seed + 1)
            gaps = [
                1000 * energy_distance(np.asarray(drawn(model, keys, num, k)), fresh) for k in STEPS
            ]
            cells[radius, seed] = [*map(float, errors), *gaps]
            print(seed, radius, np.round(cells[radius, seed], 3), file=sys.stderr, flush=True)
        gap = 1000 * energy_distance(examples(seed + 70, num), fresh)
        cells["exact draws", seed] = [np.nan, np.nan, gap, gap, gap]
    rows = []
    for name in (*RADII, "exact draws"):
        table = np.array([cells[name, seed] for seed in range(seeds)])
        spread = lambda v, digits: f"{v.mean():.{digits}f} ± {v.std():.{digits}f}"
        rows.append(
            [
                name,
                *(
                    "" if np.isnan(v).any() else spread(v, 3 if i < 2 else 1)
                    for i, v in enumerate(table.T)
                ),
            ]
        )
    columns = ["radius", "score at data", "score off data", *(f"draws, {k} steps" for k in STEPS)]
    _table.emit("robust", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
