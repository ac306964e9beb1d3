"""Log densities from scores at equal cost: the score-based formula beside its usual estimators.

Mixtures of Gaussians in 1, 2, 16 and 128 dimensions, whose log density is known, at typical points. Every
estimator spends 256 evaluations of the score a point. `RMSE` is the root mean square error in nats over
independent repeats, mean and spread over points; `hit` the share of 95 % intervals (by Student's t over the
independent columns) that hold the truth. The usual estimators are the formula taken literally, with d/2t
in the place of the noise; uniform times with the noise matched; arcsine times with mirrored noises and a
Gaussian reference, the best of the simple ones.
"""

from functools import partial

import _table
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student

import numpyro_diffusion as nd
from numpyro_diffusion.density.reference import reference_of

jax.config.update(
    "jax_enable_x64", True
)  # or rounding at small t adds to the printed formula's errors
DIMENSIONS = (1, 2, 16, 128)
OURS = {
    "ours, 16 times x 8 pairs (default)": nd.density.ScoreFormula(),
    "ours, 32 times x 4 pairs": nd.density.ScoreFormula(
        nd.density.Stratified(32), nd.density.Mirrored(4)
    ),
    "ours, 16 nodes x 8 pairs": nd.density.ScoreFormula(nd.density.GaussLegendre(16)),
}
PAIRS = 128  # of mirrored noises, or twice as many single ones


def mixture(dimension: int) -> nd.GaussianMixture:
    """Unequal, anisotropic components."""
    if dimension == 1:
        return nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
    rng = np.random.default_rng(dimension)
    factors = rng.normal(size=(3, dimension, dimension)) / np.sqrt(dimension)
    covariances = 0.5 * factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(dimension)
    return nd.GaussianMixture([0.3, 0.25, 0.45], rng.normal(size=(3, dimension)), covariances)


def draws(prior, key, num: int):
    t = jnp.asarray(prior.t_min)
    alpha_t, _ = prior.schedule(t)
    return jax.vmap(lambda key: prior.draw(key, t) / alpha_t)(jax.random.split(key, num))


def last_time(prior):
    """The time t of the paper, noise variance over one plus itself, at the end of the prior's levels."""
    most = prior.schedule.noise_level(jnp.asarray(prior.t_max))
    return most**2 / (1 + most**2)


def literal(prior, x, key, matched: bool, num: int = 2 * PAIRS):
    """Uniform times; the formula with d/2t, or with the squared noise in its place."""
    d = x.size
    key_times, key_noises = jax.random.split(key)
    uniform = jax.random.uniform(key_times, (num,))
    end = last_time(prior)
    times = end * ((jnp.arange(num) + uniform) / num if matched else uniform)
    noises = jax.random.normal(key_noises, (num, d))
    least = prior.schedule.noise_level(jnp.asarray(prior.t_min))

    def term(t, epsilon):
        r = t / (1 - t)
        s = jnp.sqrt(least**2 + r)
        at = prior.schedule.time(-2 * jnp.log(s))
        score = prior.data_score(x + jnp.sqrt(r) * epsilon, at)
        # In units of x_t = sqrt(1 - t) u the score is longer by 1 / sqrt(1 - t).
        square = jnp.sum((epsilon / jnp.sqrt(t) + score / jnp.sqrt(1 - t)) ** 2)
        base = jnp.sum(epsilon**2) if matched else d
        return square / (2 * (1 - t)) - base / (2 * t)

    constant = -0.5 * d * (1 + jnp.log(2 * jnp.pi))
    return constant - end * jnp.mean(jax.vmap(term)(times, noises))


def arcsine(prior, x, key):
    """Arcsine times, stratified; mirrored independent noises; a Gaussian reference."""
    key_times, key_noises = jax.random.split(key)
    last = 2 / jnp.pi * jnp.arcsin(jnp.sqrt(last_time(prior)))
    u = last * (jnp.arange(PAIRS) + jax.random.uniform(key_times, (PAIRS,))) / PAIRS
    t = jnp.sin(0.5 * jnp.pi * u) ** 2
    weights = last * 0.5 * jnp.pi * jnp.sin(jnp.pi * u) / PAIRS / (1 - t) ** 2
    noises = jax.random.normal(key_noises, (PAIRS, x.size))
    least = prior.schedule.noise_level(jnp.asarray(prior.t_min))
    reference = reference_of(prior)

    def term(r, epsilon):
        s = jnp.sqrt(least**2 + r)
        at = prior.schedule.time(-2 * jnp.log(s))

        def one(epsilon):
            u = x + jnp.sqrt(r) * epsilon
            g, h = prior.data_score(u, at), reference.score(u, s)
            return 0.5 * jnp.sum((g - h) * (2 * epsilon / jnp.sqrt(r) + g + h))

        return 0.5 * (one(epsilon) + one(-epsilon))

    return reference.log_density(x, least) - weights @ jax.vmap(term)(t / (1 - t), noises)


USUAL = {
    "literal, uniform times": partial(literal, matched=False),
    "matched noise, uniform times": partial(literal, matched=True),
    "arcsine times, mirrored, reference": arcsine,
}


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    dimensions = DIMENSIONS[:2] if options.tiny else DIMENSIONS
    rows = {name: [name] for name in (*USUAL, *OURS)}
    for d in dimensions:
        prior = mixture(d)
        repeats = 20 if options.tiny else 500 if d < 100 else 100
        points = draws(prior, jax.random.key(d), 2 if options.tiny else options.seeds)
        exact = jax.vmap(lambda u, p=prior: p.log_density(u, jnp.asarray(p.t_min)))(points)
        for name, method in USUAL.items():
            one = jax.jit(
                lambda x, keys, m=method, p=prior: jax.lax.map(
                    lambda key: m(p, x, key), keys, batch_size=50
                )
            )
            values = [one(x, jax.random.split(jax.random.key(1), repeats)) for x in points]
            rows[name].append(cell(np.stack(values) - np.asarray(exact)[:, None]))
        for name, estimator in OURS.items():
            found = estimator(prior, jnp.repeat(points, repeats, 0), jax.random.key(2))
            errors = (
                np.asarray(found.value).reshape(len(points), repeats) - np.asarray(exact)[:, None]
            )
            width = student.ppf(0.975, estimator.noises.num_pairs - 1)
            hit = np.mean(np.abs(errors.ravel()) < width * np.asarray(found.standard_error))
            rows[name].append(cell(errors) + f", hit {hit:.3f}")
        print(f"{d} dimensions done", flush=True)
    columns = ["RMSE in nats at 256 evaluations", *(f"d = {d}" for d in dimensions)]
    note = (
        "Spread over points, in 64-bit numbers. The literal formula has no variance: its RMSE is that of "
        "these repeats and grows with their number."
    )
    _table.emit("density", __doc__, columns, list(rows.values()), options.save, (note,))


def cell(errors: np.ndarray) -> str:
    """RMSE over repeats, mean and spread over points."""
    rmse = np.sqrt(np.mean(errors**2, 1))
    return f"{rmse.mean():.3g} +- {rmse.std(ddof=1):.2g}"


if __name__ == "__main__":
    main()
