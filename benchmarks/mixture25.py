"""A 25-component mixture prior and linear data: posterior and evidence against closed forms.

The problems of MCGDiff (see `data/README.md`), ten seeds a cell. All methods have the exact prior. From
prior draws: `LikelihoodTempered` and BlackJAX's adaptive tempering (5 HMC moves of 5 steps a stage, step
size 0.1, the best of 0.1, 0.3, 0.5, 0.8 and 1.2 at (8,1)). From noise, with the time-t energy: `Annealed`
and `ReverseDiffusion` (likelihoods averaged by `Widened` in 8 dimensions, where it is not the default);
with its score alone: `Twisted`. Every run has 2,000 particles and gives 2,000 draws.
`SW` is the mean Wasserstein-1 distance over 1,000 random projections to 2,000 exact draws (`floor`: between
two sets of exact draws), `TV` the total variation of the component probabilities; mean +- 1.96 standard
errors over seeds. `evidence` is the root mean square error of the log evidence and, behind the slash, the
largest on nine of ten seeds. `CPU s` is process time without compilation, `evaluations` those of the
density's gradient a draw.
"""

import time
from pathlib import Path

import _table
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc.tempered import TemperedSMCState
from equinox import Module, field, filter_jit
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import AbstractSchedule, VariancePreserving
from numpyro_diffusion.smc import resample_equal

DATA = np.load(Path(__file__).parent / "data" / "gmm25_inverse.npz")
GRID = np.array([(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
SIZE = 2000


class UnitMixture(nd.AbstractEnergy):
    """Mixture of Gaussians of unit covariance, noised exactly."""

    weights: jax.Array
    means: jax.Array
    schedule: AbstractSchedule
    t_min: float = field(static=True)
    t_max: float = field(static=True)
    log_normalizer: float | None = field(static=True)
    log_normalizer_error: float = field(static=True)

    def __init__(self, weights, means):
        self.weights, self.means = jnp.asarray(weights), jnp.asarray(means)
        self.schedule = VariancePreserving()
        self.t_min, self.t_max = self.schedule.horizon()
        self.log_normalizer, self.log_normalizer_error = 0.0, 0.0

    @property
    def shape(self):
        return self.means.shape[1:]

    def energy(self, x, t):
        alpha_t, sigma_t = self.schedule(t)
        variance = alpha_t**2 + sigma_t**2
        squares = jnp.sum((x - alpha_t * self.means) ** 2, -1) / variance
        constant = x.size * jnp.log(2 * jnp.pi * variance)
        return -jax.nn.logsumexp(jnp.log(self.weights) - 0.5 * (squares + constant))

    def moments(self, t):
        alpha_t, sigma_t = self.schedule(t)
        mean = self.weights @ self.means
        variance = self.weights @ (self.means - mean) ** 2 + 1
        return alpha_t * mean, alpha_t**2 * variance + sigma_t**2

    def draw(self, key, t):
        key_component, key_noise = jax.random.split(key)
        alpha_t, sigma_t = self.schedule(t)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        noise = jax.random.normal(key_noise, self.shape, self.means.dtype)
        return alpha_t * self.means[k] + jnp.sqrt(alpha_t**2 + sigma_t**2) * noise


class Problem:
    """One seed of one cell, its posterior and evidence."""

    def __init__(self, d: int, dy: int, seed: int):
        operator, y, sigma, weights = (
            np.asarray(DATA[f"d{d}_dy{dy}_s{seed}_{name}"], float)
            for name in ("A", "y", "sigma", "w")
        )
        self.means = np.tile(GRID, d // 2)
        self.operator, self.y, self.sigma, self.weights = operator, y, float(sigma), weights
        covariance = operator @ operator.T + self.sigma**2 * np.eye(dy)
        residual = y - self.means @ operator.T
        solved = np.linalg.solve(covariance, residual.T).T
        terms = (
            -0.5 * (residual * solved).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
        self.log_evidence = logsumexp(np.log(weights) + terms)
        self.modes = np.exp(np.log(weights) + terms - self.log_evidence)
        self.centres = self.means + solved @ operator
        # I - A' S^-1 A is contracted along the rows of A only: a square root of it without d x d work.
        _, values, rows = np.linalg.svd(operator, full_matrices=False)
        self.rows, self.shrink = rows, self.sigma / np.sqrt(values**2 + self.sigma**2) - 1

    def exact(self, rng, size: int):
        k = rng.choice(25, size, p=self.modes)
        noise = rng.standard_normal((size, self.means.shape[1]))
        return self.centres[k] + noise + ((noise @ self.rows.T) * self.shrink) @ self.rows

    def tv(self, x) -> float:
        nearest = ((x[:, None, :] - self.centres) ** 2).sum(-1).argmin(1)
        return 0.5 * np.abs(np.bincount(nearest, minlength=25) / len(x) - self.modes).sum()

    @property
    def energy(self):
        return UnitMixture(self.weights, self.means)

    @property
    def log_likelihood(self):
        return LogLikelihood(
            jnp.asarray(self.operator), jnp.asarray(self.y), jnp.asarray(self.sigma)
        )


class LogLikelihood(Module):
    """Gaussian data; arrays are leaves, so that a new seed compiles nothing."""

    operator: jax.Array
    y: jax.Array
    sigma: jax.Array

    def __call__(self, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(self.y, self.operator @ x, self.sigma))


def sliced_w1(rng, a, b) -> float:
    directions = rng.standard_normal((a.shape[1], 1000))
    directions /= np.linalg.norm(directions, axis=0)
    return np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean()


def by_scheme(scheme):
    reverse = isinstance(scheme, nd.ReverseDiffusion)
    twist = nd.twists.ByDimension(most=8) if reverse else scheme.twist

    def run(problem: Problem, seed: int, size: int):
        bridge = nd.from_energy(
            problem.energy,
            problem.log_likelihood,
            twist=twist,
            bridge_type=scheme.bridge_type,
        )
        model = scheme(bridge, jax.random.key(seed))
        result = nd.run_smc(jax.random.key(100 + seed), model, size)
        index = resample_equal(jax.random.key(seed), result.log_weights, size)
        evaluations = scheme.evaluations_per_level(bridge) * len(model.levels.clock)
        return np.asarray(result.positions["x"][index]), float(result.log_evidence), evaluations

    return run


@filter_jit
def _tempering_step(key, state, likelihood, energy, step_size):
    logprior = lambda u: energy.log_density(u, jnp.asarray(energy.t_min))
    algorithm = blackjax.adaptive_tempered_smc(
        logprior,
        likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": step_size[None],
            "inverse_mass_matrix": jnp.ones((1, energy.shape[0])),
            "num_integration_steps": jnp.array([5]),
        },
        blackjax.smc.resampling.systematic,
        0.5,
        num_mcmc_steps=5,
    )
    return algorithm.step(key, state)


def by_blackjax(problem: Problem, seed: int, size: int, step_size: float = 0.1):
    energy = problem.energy
    key, key_draw = jax.random.split(jax.random.key(seed))
    t_min = jnp.asarray(energy.t_min)
    draws = jax.vmap(lambda k: energy.draw(k, t_min))(jax.random.split(key_draw, size))
    state = TemperedSMCState(draws, jnp.full(size, 1 / size), jnp.asarray(0.0))
    log_evidence, stages = 0.0, 0
    while float(state.tempering_param) < 1:
        key, key_step = jax.random.split(key)
        state, info = _tempering_step(
            key_step, state, problem.log_likelihood, energy, jnp.asarray(step_size)
        )
        log_evidence += float(info.log_likelihood_increment)
        stages += 1
    return np.asarray(state.particles), log_evidence, 25 * stages


def methods(tiny: bool):
    few = {"pilot": 32} if tiny else {}
    return {
        "LikelihoodTempered (prior draws)": by_scheme(nd.LikelihoodTempered(**few)),
        "BlackJAX tempering (prior draws)": by_blackjax,
        "Annealed (energy, from noise)": by_scheme(nd.Annealed(**few)),
        "ReverseDiffusion (energy, from noise)": by_scheme(nd.ReverseDiffusion(**few)),
        "Twisted (score, from noise)": by_scheme(nd.Twisted(levels=10 if tiny else 100, **few)),
    }


def spread(values) -> str:
    values = np.asarray(values)
    return f"{values.mean():.2f} +- {1.96 * values.std() / len(values) ** 0.5:.2f}"


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument(
        "--cells", nargs="+", default=["8,1", "8,2", "8,4", "80,1", "80,2", "80,4"]
    )
    options = options.parse_args()
    size, seeds = (64, 1) if options.tiny else (SIZE, min(options.seeds, 10))
    cells = ["8,1"] if options.tiny else options.cells
    rows = []
    for cell in cells:
        d, dy = map(int, cell.split(","))
        problems = [Problem(d, dy, seed) for seed in range(seeds)]
        rng = np.random.default_rng(0)
        truth = [p.exact(rng, size) for p in problems]
        floor = [
            sliced_w1(rng, a, p.exact(rng, size)) for a, p in zip(truth, problems, strict=True)
        ]
        floor_tv = [p.tv(a) for a, p in zip(truth, problems, strict=True)]
        rows.append([f"({cell})", "floor", spread(floor), spread(floor_tv), "", "", ""])
        for name, method in methods(options.tiny).items():
            found, errors, cpu, evaluations = [], [], [], []
            method(problems[0], 99, size)  # compiles
            for seed, problem in enumerate(problems):
                started = time.process_time()
                x, log_evidence, count = method(problem, seed, size)
                cpu.append(time.process_time() - started)
                found.append((sliced_w1(rng, x, truth[seed]), problem.tv(x)))
                errors.append(log_evidence - problem.log_evidence)
                evaluations.append(count)
            sw, tv = np.array(found).T
            errors = np.sort(np.abs(errors))
            most = errors[: max(1, round(0.9 * len(errors)))].max()
            row = [f"({cell})", name, spread(sw), spread(tv)]
            row += [f"{np.sqrt(np.mean(errors**2)):.2f} / {most:.2f}"]
            rows.append([*row, f"{np.mean(cpu):.1f}", round(np.mean(evaluations))])
    columns = ["(d, dy)", "method", "SW", "TV", "evidence", "CPU s", "evaluations"]
    _table.emit("mixture25", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
