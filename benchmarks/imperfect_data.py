"""Priors from imperfect data: a Gaussian population and handwritten digits, masked and noisy.

*Gaussian.* Five correlated quantities of 1,000 members of a population, a quarter of the readings missing,
noise of half a unit. `known`: one reading of each. `unknown`: two readings of each, with the same noise,
whose level is estimated from twice its value. Errors are the largest over means (in standard deviations),
covariances (in products of them) and the noise (relative), against the maximum of the exact observed-data
likelihood by L-BFGS.

*Digits.* Of 1,297 digits of 8 x 8 pixels (grey values in [-1, 1]) 30 per cent of the pixels are hidden, each
digit's own, and the others have noise of 0.1, nearly a grey step, which is not known. A Gaussian is fitted
first, with noise that starts at the least standard deviation of a pixel; then a network on its draws, with
the noise that was found. `clean` is the same network with as many updates on the clean digits. Log densities
are those of 500 clean digits that neither saw, by the score formula, with noise of four resolutions added,
the same for all; in brackets how far they are from `clean`. The priors are read at 0.0625.
"""

import sys
import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize

import numpyro_diffusion as nd
from numpyro_diffusion.pretrained import load_digits
from numpyro_diffusion.train import UnknownNoise, fit_imperfect

NOISE_MIN, NOISE_MAX, NOISE, HIDDEN = 0.0625, 10.0, 0.1, 0.3
RESOLUTIONS = (0.0625, 0.125, 0.25, 0.5)


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- Gaussian


def population(seed: int, count: int, readings: int):
    """Examples with missing readings, of shape `(count, readings, 5)`."""
    rng = np.random.default_rng(seed)
    root = 0.6 * rng.standard_normal((5, 5))
    clean = rng.normal(0.0, 2.0, 5) + rng.standard_normal((count, 5)) @ root.T
    clean = clean + np.sqrt(0.2) * rng.standard_normal(clean.shape)
    y = clean[:, None] + 0.5 * rng.standard_normal((count, readings, 5))
    hidden = rng.random(y.shape) < 0.25
    hidden[:, 0, 0] &= ~hidden.all((1, 2))
    return np.where(hidden, np.nan, y)


def largest_likelihood(examples, floor: float, sigma: float | None):
    """The exact maximum, with no sampler and no EM."""
    size = examples.shape[-1]
    operator = np.tile(np.eye(size), (examples.shape[1], 1))
    flat = examples.reshape(len(examples), -1)
    seen, lower = ~np.isnan(flat), np.tril_indices(size)
    y, both = jnp.where(seen, flat, 0.0), seen[:, :, None] & seen[:, None]

    def parts(theta):
        root = jnp.zeros((size, size)).at[lower].set(theta[size:-1])
        return theta[:size], root @ root.T, jnp.exp(theta[-1]) if sigma is None else sigma

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        mean, covariance, noise = parts(theta)
        whole = operator @ (covariance + floor**2 * jnp.eye(size)) @ operator.T
        variances = jnp.where(seen[:, None], noise**2, 1.0)
        whole = jnp.where(both, whole, 0.0) + jnp.eye(seen.shape[1]) * variances
        gap = jnp.where(seen, y - operator @ mean, 0.0)
        quadratic = jnp.einsum("ni,ni->n", gap, jnp.linalg.solve(whole, gap[..., None])[..., 0])
        return 0.5 * jnp.mean(quadratic + jnp.linalg.slogdet(whole)[1])

    start = np.concatenate([np.nanmean(flat.reshape(-1, size), 0), np.eye(size)[lower], [-1.0]])
    options = {"maxiter": 1000, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return tuple(np.asarray(part, float) for part in parts(jnp.asarray(found.x)))


def gaussian(seed: int, unknown: bool, tiny: bool):
    """Largest errors of mean, covariance and noise; rounds and seconds."""
    examples = population(seed, 100 if tiny else 1000, 2 if unknown else 1)
    rows = examples.reshape(-1, 5)
    start = nd.Gaussian(np.nanmean(rows, 0), np.diag(np.nanvar(rows, 0)))
    floor = float(start.schedule.noise_level(jnp.asarray(start.t_min)))
    begin = time.perf_counter()
    result = fit_imperfect(
        jax.random.key(seed),
        start,
        examples,
        observe=(lambda x: jnp.stack([x, x])) if unknown else (lambda x: x[None]),
        noise=UnknownNoise(1.0) if unknown else 0.5,
        rounds=2 if tiny else 60,
        patience=5,
        num_particles=32,
        progress_bar=False,
    )
    seconds = time.perf_counter() - begin
    mean, covariance, sigma = largest_likelihood(examples, floor, None if unknown else 0.5)
    scale = np.sqrt(np.diag(covariance))
    vectors = np.asarray(result.energy.eigenvectors)
    found = vectors * np.asarray(result.energy.eigenvalues) @ vectors.T
    return (
        np.abs((np.asarray(result.energy.mean) - mean) / scale).max(),
        np.abs((found - covariance) / np.outer(scale, scale)).max(),
        abs(result.noise / sigma - 1),
        len(result.history["round"]) - 1,
        seconds,
    )


# ---- digits


def damaged(seed: int, images):
    """Digits with hidden pixels and noise."""
    rng = np.random.default_rng(seed)
    y = images + NOISE * rng.standard_normal(images.shape)
    return np.where(rng.random(images.shape) < HIDDEN, np.nan, y).astype(np.float32)


def untrained(seed: int, data):
    net = nd.nets.ResidualMLP(jax.random.key(seed), (8, 8), width=64, depth=2)
    base = nd.InnerProductEnergy.from_data(net, data, noise_min=NOISE_MIN, noise_max=NOISE_MAX)
    return nd.NetworkDenoiser(base)


def digits(seed: int, options):
    """Log densities of held-out digits under each prior, and what was found of the noise."""
    train = load_digits("train")[0]
    rest = np.concatenate([load_digits("validation")[0], load_digits("test")[0]])
    if options.tiny:
        train, rest = train[:40], rest[:10]
    y = damaged(seed, train)
    flat = y.reshape(len(y), -1)
    clock = time.perf_counter()
    most = float(np.nanstd(flat, 0).min())  # noise cannot exceed the spread of any pixel
    # Wide directions shrink in a few rounds; narrow ones would take long to widen.
    start = nd.Gaussian(
        np.nanmean(flat, 0), np.diag(np.maximum(np.nanvar(flat, 0) - most**2, 2e-4))
    )
    first = fit_imperfect(
        jax.random.key(seed),
        start,
        flat,
        noise=UnknownNoise(most, prior=(1e-3, 1e-3)),
        rounds=2 if options.tiny else options.first_rounds,
        patience=5,
        num_particles=4,
        num_levels=1,
        progress_bar=False,
    )
    say(f"Gaussian: {first.verdict} noise {first.noise:.4f}, {time.perf_counter() - clock:.0f} s")
    filled = first.draws.reshape(-1, 8, 8)
    rounds, steps = (1, 10) if options.tiny else (options.rounds, options.steps)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, max(201, rounds * steps), 2e-5)
    clock = time.perf_counter()
    noise = max(first.noise**2 - NOISE_MIN**2, (0.3 * NOISE) ** 2) ** 0.5
    result = fit_imperfect(
        jax.random.key(seed + 100),
        untrained(seed, filled),
        y,
        noise=UnknownNoise(noise),
        rounds=rounds,
        num_particles=options.particles,
        num_levels=4 if options.tiny else options.levels,
        steps=steps,
        learning_rate=rate,
        optimizer=nd.train.Optimizer(weight_decay=1.0),
        progress_bar=False,
    )
    say(f"network: {result.verdict} {time.perf_counter() - clock:.0f} s")
    say({k: np.round(v, 3).tolist() for k, v in result.history.items()})
    clean = nd.fit(
        jax.random.key(seed + 200),
        untrained(seed, train),
        train,
        steps=rounds * steps,
        stopping=nd.train.EarlyStopping(check_every=min(250, rounds * steps)),
        learning_rate=rate,
        optimizer=nd.train.Optimizer(weight_decay=1.0),
        trainable=lambda denoiser: denoiser.base.net,
        progress_bar=False,
    )
    priors = {
        "clean": clean.energy,
        "imperfect": result.energy,
        "Gaussian, clean": untrained(seed, train),
        "Gaussian, imperfect": untrained(seed, filled),
    }
    white, table = np.random.default_rng(9).standard_normal(rest.shape), {}
    for level in RESOLUTIONS:
        at = {n: p.with_horizon(t_min=time_of(p, level)) for n, p in priors.items()}
        found = nd.density.compare_priors(at, jnp.asarray(rest + level * white, jnp.float32))
        say(level, found)
        values = zip(found.names, np.asarray(found.log_density), strict=True)
        table |= {(name, level): float(value) for name, value in values}
    return table, (result.noise**2 + NOISE_MIN**2) ** 0.5


def time_of(prior, level: float) -> float:
    return max(float(prior.schedule.time(jnp.asarray(-2 * np.log(level)))), prior.t_min)


def main():
    """Run both and print one table for each."""
    parser = _table.parser(__doc__)
    parser.add_argument("--digit-seeds", type=int, default=1)
    parser.add_argument("--first-rounds", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--levels", type=int, default=32)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--part", choices=["gaussian", "digits", "both"], default="both")
    options = parser.parse_args()
    seeds = 1 if options.tiny else options.seeds
    spread = lambda values: f"{np.mean(values):.4f} ± {np.std(values):.4f}"
    rows, notes = [], []
    if options.part != "digits":
        for unknown in (False, True):
            with jax.enable_x64(True):
                found = np.array([gaussian(seed, unknown, options.tiny) for seed in range(seeds)])
            name = "Gaussian, unknown noise" if unknown else "Gaussian, known noise"
            errors, worst = found[:, :3].T, found[:, :3].max()
            rows += [
                [
                    name,
                    *map(spread, errors),
                    f"{worst:.4f}",
                    f"{found[:, 3].mean():.0f}",
                    f"{found[:, 4].mean():.0f}",
                ]
            ]
            say(rows[-1])
    columns = ["population", "mean", "covariance", "noise", "worst", "rounds", "seconds"]
    if options.part != "gaussian":
        every = [
            digits(seed, options) for seed in range(1 if options.tiny else options.digit_seeds)
        ]
        names = list(dict.fromkeys(name for name, _ in every[0][0]))
        heads = [f"resolution {level}" for level in RESOLUTIONS]
        table = "| log density of held-out digits [nats an image] | " + " | ".join(heads)
        table += " |\n|" + "---|" * (1 + len(RESOLUTIONS))
        for name in names:
            cells = []
            for level in RESOLUTIONS:
                values = np.array([values[name, level] for values, _ in every])
                clean = np.array([values["clean", level] for values, _ in every])
                share = 100 * np.mean((values - clean) / np.abs(clean))
                cells.append(f"{values.mean():.2f} ({share:+.1f} %)")
            table += f"\n| {name} | " + " | ".join(cells) + " |"
        notes += [table]
        notes += [
            f"Noise found, with the prior's resolution: {spread([t for _, t in every])}; true {NOISE}."
        ]
    _table.emit("imperfect_data", __doc__, columns, rows, options.save, tuple(notes))


if __name__ == "__main__":
    main()
