r"""Two scores whose rotations are harmless alone, and their product.

Each of two asymmetric mixtures has a score turned by a field of its own, $(I + \Omega_i) \nabla \log p_i$
with $\Omega_i$ antisymmetric: since $\nabla \cdot (p_i \Omega_i \nabla \log p_i) = 0$, Langevin dynamics
with it still has the law $p_i$. Added, the two scores are those of no product. Langevin dynamics (4,000
chains from exact draws, 2,000 steps of .005) with the turned scores, the exact ones and those of energies
distilled from the turned ones; then the same energies composed, `e1 + e2`, and sampled with weights by
`Annealed` (4,000 particles).

- `mean error`: distance of the mean from quadrature, in standard deviations of the exact law.
- `SW1`: sliced Wasserstein-1 distance to 4,000 exact draws (`floor`: of other exact draws).
- `log Z error`: of $\log \int p_1 p_2$, in nats, the normaliser of each energy by a prior run of its own.

Everything at the noise level `t_min` = 0.1; mean +- standard error over seeds.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.smc import resample_equal

FIRST = nd.GaussianMixture(
    weights=(0.65, 0.35),
    means=((-0.8, 0.3), (1.1, -0.6)),
    covariances=(((0.6, 0.25), (0.25, 0.4)), ((0.3, -0.1), (-0.1, 0.5))),
)
SECOND = nd.GaussianMixture(
    weights=(0.4, 0.6),
    means=((0.9, 0.9), (-0.3, -0.7)),
    covariances=(((0.5, 0.0), (0.0, 0.7)), ((0.8, -0.3), (-0.3, 0.45))),
)
TURNS = (0.8, -1.2)
NOISE = 0.1


def turned(mixture, angle: float):
    turn = jnp.array([[0.0, -angle], [angle, 0.0]])

    def score(mixture, x, t):
        s = mixture.score(x, t)
        # At high noise a bounded error of the denoiser, as a network's is.
        return s + turn @ s / (1 + mixture.schedule.noise_level(t) ** 2)

    return nd.ScoreFunction(score, (2,), params=mixture)


def time_of(model):
    return model.schedule.time(jnp.asarray(-2 * np.log(NOISE)))


def score_in_data_units(model):
    """Score of $u = x_t / \\alpha_t$ at noise level `NOISE`, from the denoiser."""
    t = time_of(model)
    alpha, _ = model.schedule(t)
    return lambda u: (model.denoise(alpha * u, t) - u) / NOISE**2


def langevin(key, scores, start, steps=4000, step=0.005):
    drift = lambda u: sum(score(u) for score in scores)

    def one(key, u):
        def move(u, key):
            return u + step * drift(u) + jnp.sqrt(2 * step) * jax.random.normal(key, u.shape), None

        return jax.lax.scan(move, u, jax.random.split(key, steps))[0]

    return jax.jit(jax.vmap(one))(jax.random.split(key, len(start)), start)


class Exact:
    """A law on a grid."""

    def __init__(self, *mixtures):
        axis = jnp.linspace(-5, 5, 501)
        self.grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
        density = lambda u: sum(m.log_density(u, time_of(m)) for m in mixtures)
        log_p = np.asarray(jax.vmap(density)(self.grid), float)
        self.log_z = np.log(np.exp(log_p).sum()) + 2 * np.log(10 / 500)
        self.p = np.exp(log_p) / np.exp(log_p).sum()
        grid = np.asarray(self.grid)
        self.mean = self.p @ grid
        self.sd = np.sqrt(self.p @ (grid - self.mean) ** 2)

    def draw(self, rng, num):
        index = rng.choice(len(self.p), num, p=self.p)
        return np.asarray(self.grid)[index] + rng.uniform(-0.01, 0.01, (num, 2))

    def error(self, draws):
        return float(np.linalg.norm((np.asarray(draws).mean(0) - self.mean) / self.sd))


def sliced_w1(a, b):
    directions = np.random.default_rng(0).standard_normal((2, 200))
    directions /= np.linalg.norm(directions, axis=0)
    return np.abs(np.sort(np.asarray(a) @ directions, 0) - np.sort(b @ directions, 0)).mean()


def distilled(key, teacher, mixture, steps):
    key_data, key_net, key_fit = jax.random.split(key, 3)
    keys = jax.random.split(key_data, 10_000)
    data = np.asarray(jax.vmap(lambda k: mixture.draw(k, jnp.asarray(0.0)))(keys))
    net = nd.nets.ResidualMLP(key_net, (2,), width=64)
    student = nd.ProperEnergy.from_data(net, data, noise_min=NOISE, noise_max=20.0)
    return nd.distill(key_fit, teacher, student, data, steps=steps, progress_bar=False).energy


def one_seed(seed: int, tiny: bool) -> dict:
    size, steps, moves = (100, 5, 20) if tiny else (4000, 3000, 2000)
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 8)
    alone, product = Exact(FIRST), Exact(FIRST, SECOND)
    teachers = [turned(m, a) for m, a in zip((FIRST, SECOND), TURNS, strict=True)]
    energies = [
        distilled(k, t, m, steps)
        for k, t, m in zip(keys[:2], teachers, (FIRST, SECOND), strict=True)
    ]
    rows = {}

    def row(name, law, draws, log_z=np.nan):
        rows[name] = (law.error(draws), sliced_w1(draws, law.draw(rng, size)), log_z)

    runs = {
        "first alone: turned score": (alone, teachers[:1]),
        "product: exact scores": (product, (FIRST, SECOND)),
        "product: turned scores": (product, teachers),
        "product: scores of distilled energies": (product, energies),
    }
    row("first alone: floor", alone, alone.draw(rng, size))
    row("product: floor", product, product.draw(rng, size))
    for name, (law, models) in runs.items():
        scores = [score_in_data_units(m) for m in models]
        row(name, law, langevin(keys[2], scores, jnp.asarray(law.draw(rng, size)), moves))
    composed = energies[0] + energies[1]
    model = nd.Annealed(**({"pilot": 32} if tiny else {}))(nd.from_energy(composed), keys[3])
    result = nd.run_smc(keys[4], model, size)
    index = resample_equal(keys[5], result.log_weights, size)
    normalizers = [
        nd.prior_normalizer(e, k, num_particles=max(size // 4, 50)).value
        for e, k in zip(energies, keys[6:], strict=True)
    ]
    log_z = float(result.log_evidence) - sum(normalizers) - product.log_z
    draws = result.positions["x"][index]
    row("product: distilled energies, weighted", product, draws, log_z)
    return rows


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=3)
    options = options.parse_args()
    seeds = [one_seed(seed, options.tiny) for seed in range(1 if options.tiny else options.seeds)]
    rows = []
    for name in seeds[0]:
        values = np.array([seed[name] for seed in seeds])
        error = values.std(0, ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else 0 * values[0]
        cells = [
            "" if np.isnan(v) else f"{v:.3f} +- {e:.3f}"
            for v, e in zip(values.mean(0), error, strict=True)
        ]
        rows.append([name, *cells])
    columns = ["law and drift", "mean error", "SW1", "log Z error"]
    _table.emit("composed_scores", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
