"""The product of a ring of Gaussians and a box, which leaves two of eight modes (Reduce, Reuse, Recycle).

Eight Gaussians of spread 0.03 on a circle of radius 0.5, times the uniform law on |x| < 0.2, |y| < 1: both
energies in closed form at every noise level. 2,000 draws; means and standard deviations over seeds. `LL` is
the mean log density of the draws under the product, 99 % of it inside the box and 1 % spread out to 1.1 in
both directions; `W2` the distance to exact draws by the best assignment; `right` the share inside the box
within five standard deviations of one of the two modes; `upper` the share of the upper mode among them, one
half. An evaluation is one of both energies with their gradient, counted by draw; those of pilots are left
out.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
from _distances import wasserstein
from jax.scipy.special import log_ndtr

import numpyro_diffusion as nd

HALF = np.array([0.2, 1.0])  # of the sides of the box
ANGLES = 0.25 * np.pi * np.arange(8)
CENTRES = 0.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
RING = nd.GaussianMixture(np.full(8, 0.125), CENTRES, np.tile(0.03**2 * np.eye(2), (8, 1, 1)))
MODES = np.array([[0.0, 0.5], [0.0, -0.5]])
SPREAD = float(np.hypot(0.03, RING.schedule.noise_level(jnp.asarray(RING.t_min))))


def noised_box(x, t):
    """The uniform law on the box, noised: on each axis a difference of two normal distribution functions."""
    alpha_t, sigma_t = RING.schedule(t)
    far = log_ndtr((-alpha_t * HALF - jnp.abs(x)) / sigma_t)  # the lower tail has all digits
    near = log_ndtr((alpha_t * HALF - jnp.abs(x)) / sigma_t)
    log_p = near + jnp.log(-jnp.expm1(far - near)) - jnp.log(2 * alpha_t * HALF)
    return -jnp.sum(log_p)


BOX = nd.EnergyFunction(noised_box, 2, RING.schedule, variance=HALF**2 / 3, log_normalizer=0.0)
PRODUCT = RING + BOX


def exact(rng, num):
    return MODES[rng.integers(2, size=num)] + SPREAD * rng.normal(size=(num, 2))


def log_likelihood(x):
    inside = (np.abs(x) < HALF).all(1)
    squares = ((x[:, None] - MODES) ** 2).sum(-1) / SPREAD**2
    log_p = np.logaddexp(*(-0.5 * squares.T)) - np.log(4 * np.pi * SPREAD**2)
    outside = np.log(0.01 / (2.2**2 - 4 * HALF.prod()))
    return np.where(inside, np.log(0.99) + log_p, outside).mean()


def metrics(x, truth):
    near = ((x[:, None] - MODES) ** 2).sum(-1).min(1) < (5 * SPREAD) ** 2
    right = near & (np.abs(x) < HALF).all(1)
    upper = np.mean(x[right, 1] > 0) if right.any() else np.nan
    return log_likelihood(x), wasserstein(x, truth), right.mean(), upper


@jax.jit
def reverse(key, times, x):
    """Ancestral sampling with the sum of the scores, as if it were the score of a noised law."""
    level = RING.schedule.noise_level

    def step(x, row):
        key, t, s = row
        v, share = level(t) ** 2 - level(s) ** 2, level(s) / level(t)
        score = jax.vmap(lambda u: PRODUCT.log_density_and_score(u, t)[1])(x)
        noise = jax.random.normal(key, x.shape)
        return x + v * score + share * jnp.sqrt(v) * noise, None

    keys = jax.random.split(key, len(times) - 1)
    return jax.lax.scan(step, x, (keys, times[:-1], times[1:]))[0]


def by_scores(num_levels):
    def run(key, num):
        times = nd.schedules.log_snr_grid(RING.schedule, num_levels, PRODUCT.t_min, PRODUCT.t_max)
        key_start, key_run = jax.random.split(key)
        x = RING.schedule.noise_level(times[0]) * jax.random.normal(key_start, (num, 2))
        return reverse(key_run, times, x), num_levels, ""

    return run


def by_smc(scheme, times_particles=1):
    bridge = nd.from_energy(PRODUCT, bridge_type=scheme.bridge_type)

    def run(key, num):
        key_pilot, key_run, key_pick = jax.random.split(key, 3)
        model = scheme(bridge, key_pilot)
        found = nd.run_smc(key_run, model, num_particles=times_particles * num)
        pick = nd.smc.resample_equal(key_pick, found.log_weights, num)
        cost = scheme.evaluations_per_level(bridge, model.levels) * len(model.levels.clock)
        evidence = f"{float(found.log_evidence):.2f}" if found.exact else ""
        return found.positions["x"][pick], cost * times_particles, evidence

    return run


def by_exchange(thinning, num_chains=40):
    bridge = nd.from_energy(PRODUCT)

    def run(key, num):
        chains = min(num_chains, num // 2)
        sizes = {"num_chains": chains, "num_draws": num // chains, "num_burn_in": 10}
        found = nd.replica_exchange(key, bridge, thinning=thinning, **sizes)
        cost = found.num_evaluations / num
        return found.positions["x"].reshape(-1, 2), cost, f"{found.log_evidence:.2f}"

    return run


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=3)
    options = options.parse_args()
    num, seeds = (40, 1) if options.tiny else (2000, options.seeds)
    grid, moves, thinning = (5, 1, 1) if options.tiny else (100, 10, 25)
    annealed = lambda move: nd.schemes.unweighted(
        nd.Annealed(levels=grid, moves=nd.schemes.Moves(joint=move, num=moves))
    )
    samplers = {
        "exact draws": lambda key, num: (exact(np.random.default_rng(list(key)), num), 0, ""),
        "summed scores, reverse diffusion": by_scores(grid),
        "the same, more steps": by_scores(11 * grid),
        "annealed MALA, no weights": by_smc(annealed(nd.moves.mala())),
        "annealed HMC, no weights": by_smc(annealed(nd.moves.hmc(3))),
        "SMC, `Annealed()`": by_smc(nd.Annealed()),
        "SMC, `ReverseDiffusion()`": by_smc(nd.ReverseDiffusion()),
        "SMC, `ScoreComposition`": by_smc(nd.ScoreComposition(33 * grid // 10)),
        "SMC, `Annealed()`, 9 times the particles": by_smc(nd.Annealed(), 9),
        "SMC, `ReverseDiffusion()`, 10 times the particles": by_smc(nd.ReverseDiffusion(), 10),
        "`replica_exchange`": by_exchange(thinning),
    }
    rows = []
    for name, sampler in samplers.items():
        found, costs, seconds, evidences = [], [], [], []
        for seed in range(seeds):
            start = time.perf_counter()
            key = jax.random.key(seed) if name != "exact draws" else (seed, 1)
            x, cost, evidence = sampler(key, num)
            seconds.append(time.perf_counter() - start)
            found.append(
                metrics(np.asarray(x, float), exact(np.random.default_rng([seed, 0]), num))
            )
            costs.append(cost)
            evidences += [evidence] if evidence else []
        digits = (2, 3, 3, 2)
        cells = [
            f"{v.mean():.{n}f} ± {v.std(ddof=min(1, seeds - 1)):.{n}f}"
            for v, n in zip(np.array(found).T, digits, strict=True)
        ]
        rows.append([name, *cells, round(float(np.mean(costs))), ", ".join(evidences)])
        print("|", *(f"{cell} |" for cell in rows[-1]), f"{min(seconds):.1f} s", flush=True)
    columns = ["sampler", "LL", "W2", "right", "upper", "evaluations", "log evidence"]
    truth = np.log(2 / 8) - np.log(4 * HALF.prod())
    notes = (f"The log evidence is {truth:.3f}: two of eight modes, at the density of the box.",)
    _table.emit("composition2d", __doc__, columns, rows, options.save, notes)


if __name__ == "__main__":
    main()
