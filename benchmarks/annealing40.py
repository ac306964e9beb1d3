"""Forty Gaussians to the power 2 and 3 (the mixture of Feynman-Kac correctors), against exact draws.

`q` is the mixture of 40 Gaussians of spread softplus(1) in [-40, 40]^2, noised by 0.05; the target is
`q^beta`, itself a mixture over multisets of components. 5,000 draws; means and standard deviations over
seeds. `energy W2` is the distance between the energies of draws and of exact draws on the line, `W2` that
of 2,000 points by the best assignment, `TV` the total variation of the shares of the nearest of the 40
means, `log Z` the error of the log normaliser. The first row compares exact draws with exact draws. An
evaluation is one of `q` with its gradient, counted by draw; those of pilots are left out.

`corrector` is the published rule (Skreta et al., 2025, proposition 3.2) in 1,000 steps from exact draws of
the noisiest law: drift `beta g^2 score` and noise `g` (target score), or `(beta + 1) / 2 g^2 score` and `g
/ sqrt(beta)` (tempered noise), log weights `beta (beta - 1) / 2 |g score|^2`, systematic resampling at
every step.
"""

import itertools
import math
import time
from collections import Counter

import _table
import jax
import jax.numpy as jnp
import numpy as np
from _distances import wasserstein, wasserstein_on_the_line
from scipy.special import logsumexp

import numpyro_diffusion as nd

SCHEDULE = nd.schedules.VarianceExploding(0.05, 60.0)
MEANS = np.loadtxt(_table.ROOT / "benchmarks" / "data" / "gmm40_means.csv", delimiter=",")
VARIANCE = math.log1p(math.e) ** 2
MIXTURE = nd.GaussianMixture(
    np.ones(40) / 40,
    MEANS,
    np.tile(VARIANCE * np.eye(2), (40, 1, 1)),
    SCHEDULE,
    t_min=0.0,
    t_max=1.0,
)


def to_the_power(beta, variance):
    """Log weights, means and variance of the mixture that is the power of one, not normalised."""
    sets = list(itertools.combinations_with_replacement(range(40), beta))
    orders = [
        math.factorial(beta) / math.prod(map(math.factorial, Counter(s).values())) for s in sets
    ]
    points = MEANS[np.array(sets)]
    centres = points.mean(1)
    squares = ((points - centres[:, None]) ** 2).sum((1, 2))
    log_weights = np.log(orders) - beta * np.log(40) - (beta - 1) * np.log(2 * np.pi * variance)
    log_weights += -np.log(beta) - 0.5 * squares / variance
    return log_weights, centres, variance / beta


class Exact:
    """Draws and normaliser of the power at a noise level."""

    def __init__(self, beta, noise):
        log_weights, self.centres, self.variance = to_the_power(beta, VARIANCE + noise**2)
        self.log_normalizer = logsumexp(log_weights)
        self.weights = np.exp(log_weights - self.log_normalizer)

    def draw(self, rng, num):
        which = rng.choice(len(self.weights), num, p=self.weights)
        return self.centres[which] + self.variance**0.5 * rng.normal(size=(num, 2))


def shares(x):
    near = ((x[:, None] - MEANS) ** 2).sum(-1).argmin(1)
    return np.bincount(near, minlength=40) / len(x)


def metrics(x, truth, beta, num_assigned, true_shares):
    energy = jax.jit(jax.vmap(lambda u: -beta * MIXTURE.log_density(u, jnp.asarray(0.0))))
    along = wasserstein_on_the_line(*(np.asarray(energy(jnp.asarray(p))) for p in (x, truth)))
    variation = 0.5 * np.abs(shares(x) - true_shares).sum()
    return along, wasserstein(x[:num_assigned], truth[:num_assigned]), variation


@jax.jit
def corrector(key, x, beta, tempered, weighted, times):
    """The published rule; returns positions and the log of the mean weight."""
    width = jnp.where(tempered, 1 / jnp.sqrt(beta), 1.0)  # of the noise, in g
    drift = jnp.where(tempered, 0.5 * (beta + 1), beta)

    def step(x, row):
        key, t, s = row
        key_noise, key_pick = jax.random.split(key)
        h = SCHEDULE.noise_level(t) ** 2 - SCHEDULE.noise_level(s) ** 2  # g^2 dt
        score = jax.vmap(lambda u: MIXTURE.score(u, t))(x)
        log_w = weighted * 0.5 * beta * (beta - 1) * h * jnp.sum(score**2, -1)
        noise = jax.random.normal(key_noise, x.shape)
        x = x + drift * h * score + width * jnp.sqrt(h) * noise
        pick = nd.smc.resample_equal(key_pick, log_w, len(x))
        return jnp.where(weighted > 0, x[pick], x), jax.nn.logsumexp(log_w) - jnp.log(len(x))

    keys = jax.random.split(key, len(times) - 1)
    x, gains = jax.lax.scan(step, x, (keys, times[:-1], times[1:]))
    return x, jnp.sum(gains)


def by_corrector(tempered, weighted, num_steps):
    def run(seed, beta, num):
        noisy = Exact(beta, 60.0)
        x = jnp.asarray(noisy.draw(np.random.default_rng([seed, 2]), num))
        times = jnp.linspace(1.0, 0.0, num_steps + 1)
        flags = jnp.asarray(tempered), jnp.asarray(float(weighted))
        x, gain = corrector(jax.random.key(seed), x, jnp.asarray(float(beta)), *flags, times)
        return x, noisy.log_normalizer + float(gain) if weighted else None, num_steps

    return run


def by_smc(scheme, times_particles=1):
    def run(seed, beta, num):
        key_pilot, key_run, key_pick = jax.random.split(jax.random.key(seed), 3)
        bridge = nd.from_energy(float(beta) * MIXTURE, bridge_type=scheme.bridge_type)
        model = scheme(bridge, key_pilot)
        found = nd.run_smc(key_run, model, num_particles=times_particles * num)
        pick = nd.smc.resample_equal(key_pick, found.log_weights, num)
        cost = scheme.evaluations_per_level(bridge, model.levels) * len(model.levels.clock)
        return found.positions["x"][pick], float(found.log_evidence), cost * times_particles

    return run


def by_exchange(thinning, num_chains=50):
    def run(seed, beta, num):
        bridge = nd.from_energy(float(beta) * MIXTURE)
        chains = min(num_chains, num // 2)
        sizes = {
            "num_chains": chains,
            "num_draws": num // chains,
            "num_burn_in": num // chains // 10,
        }
        found = nd.replica_exchange(jax.random.key(seed), bridge, thinning=thinning, **sizes)
        x = found.positions["x"].reshape(-1, 2)
        order = np.random.default_rng(seed).permutation(
            len(x)
        )  # the best assignment takes the first
        return x[order], found.log_evidence, found.num_evaluations / num

    return run


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=3)
    options = options.parse_args()
    num, assigned, seeds = (60, 40, 1) if options.tiny else (5000, 2000, options.seeds)
    steps, thinning = (10, 1) if options.tiny else (1000, 25)
    corrected = nd.ScoreComposition(steps, nd.schemes.FeynmanKacCorrection(1.0))
    samplers = {
        "exact draws": lambda seed, beta, num: (
            Exact(beta, 0.05).draw(np.random.default_rng([seed, 1]), num),
            None,
            0,
        ),
        "target score, no weights": by_corrector(False, False, steps),
        "target score, corrector": by_corrector(False, True, steps),
        "tempered noise, no weights": by_corrector(True, False, steps),
        "tempered noise, corrector": by_corrector(True, True, steps),
        "`ScoreComposition`, `FeynmanKacCorrection(1.0)`": by_smc(corrected),
        "`ScoreComposition`, `RadonNikodym()`": by_smc(nd.ScoreComposition(steps // 3)),
        "`ReverseDiffusion()`": by_smc(nd.ReverseDiffusion()),
        "`Annealed()`": by_smc(nd.Annealed()),
        "`ReverseDiffusion()`, 11 times the particles": by_smc(nd.ReverseDiffusion(), 11),
        "`Annealed()`, 6 times the particles": by_smc(nd.Annealed(), 6),
        "`replica_exchange`": by_exchange(thinning),
    }
    rows = []
    for beta in (2,) if options.tiny else (2, 3):
        law = Exact(beta, 0.05)
        true_shares = shares(
            law.draw(np.random.default_rng(99), 10_000 if options.tiny else 400_000)
        )
        for name, sampler in samplers.items():
            found, errors, costs, seconds = [], [], [], []
            for seed in range(seeds):
                start = time.perf_counter()
                x, log_z, cost = sampler(seed, beta, num)
                seconds.append(time.perf_counter() - start)
                truth = law.draw(np.random.default_rng([seed, 0]), num)
                found.append(metrics(np.asarray(x), truth, beta, assigned, true_shares))
                errors += [] if log_z is None else [log_z - law.log_normalizer]
                costs.append(cost)
            columns = [*np.array(found).T, *([np.array(errors)] if errors else [])]
            spread = lambda v: v.std(ddof=min(1, len(v) - 1))
            digits = (3, 1, 3, 2)
            cells = [
                f"{v.mean():.{n}f} ± {spread(v):.{n}f}"
                for v, n in zip(columns, digits, strict=False)
            ]
            cells += [""] * (4 - len(cells))
            rows.append([beta, name, *cells, round(float(np.mean(costs)))])
            print("|", *(f"{cell} |" for cell in rows[-1]), f"{min(seconds):.1f} s", flush=True)
    columns = ["power", "sampler", "energy W2", "W2", "TV", "log Z", "evaluations"]
    _table.emit("annealing40", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
