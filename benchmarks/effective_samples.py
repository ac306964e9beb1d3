"""Effective samples a second, against the truth, beside BlackJAX, particles and NUTS.

For a test function f, effective samples are the posterior variance of f over the mean squared error of its
estimate in `--seeds` independent runs: the number of independent exact draws that would do as well. A lost
mode or a bias counts, which an estimate from autocorrelations would not see. Test functions are the
coordinates of x, sigma, and the indicator of each mode. The table gives the median and, behind the slash,
the worst over test functions: of one run, per second, and per thousand evaluations of the density, with or
without its gradient. Ten runs leave a relative error of 0.45 on a single function, less on a median.

Seconds are wall time of a later run, compilation apart, pilot or warm-up included. All methods run the
same NumPyro model:

- `nd.SMC`, 4 clouds of 1,000 particles, three schemes with defaults, and `ReverseDiffusion` with longer
  moves that know how all nine coordinates move together, for precise data.
- BlackJAX's adaptive tempering, 4,000 exact draws of the prior, 5 moves of HMC a stage, 5 steps of 0.3
  each, the best on the first model of 10 steps of 0.1 to 0.5 and 2 to 5 moves of 0.3; half the effective
  sample size a stage.
- `particles` (left out if not installed): adaptive tempering without waste from 40 x 100 exact draws of the
  prior, its default random walk; the density is the compiled one.
- NUTS, 4 chains, 1,000 draws after 1,000 of warm-up, started from the prior, compiled as a whole.
"""

import time
from typing import NamedTuple

import _table
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from closed_form import Problem, ambiguous, eight_dimensional
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import log_density


class Run(NamedTuple):
    """Weighted draws of a run and its number of density evaluations."""

    x: np.ndarray
    sigma: np.ndarray
    weights: np.ndarray
    evaluations: float


def unimodal() -> Problem:
    """One correlated Gaussian in eight dimensions, six data, unknown noise level."""
    base = eight_dimensional(6)
    noise = 0.2 * np.random.default_rng(5).normal(size=6)
    return base._replace(
        weights=np.ones(1),
        means=base.means[:1],
        covariances=base.covariances[:1],
        data=base.operator @ (base.means[0] + 0.5) + noise,
    )


class Target:
    """The model's density in unconstrained space, and exact draws of its prior."""

    def __init__(self, problem: Problem):
        self.problem, self.bridge = (
            problem,
            nd.from_model(problem.model, problem.operator, y=problem.data),
        )
        zero, one = jnp.zeros(()), jnp.ones(())
        part = lambda power: lambda z: log_density(self.bridge, z, zero, power)[0]
        self.log_prior, self.log_posterior = part(zero), part(one)
        self.draw = jax.jit(jax.vmap(self.bridge.sample_prior))
        both = lambda t: (self.log_prior(self.named(t)), self.log_posterior(self.named(t)))
        self.both = jax.jit(jax.vmap(both))

    def named(self, theta):
        return {"x": theta[:-1], "sigma": theta[-1]}


def by_smc(problem, size, scheme):
    smc = nd.SMC(problem.model, scheme, num_particles=size, num_chains=4, progress_bar=False)

    def run(seed):
        smc.run(jax.random.key(seed), problem.operator, y=problem.data)
        draws, weights = smc.get_weighted_samples()
        flat = lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])
        kernels = scheme.kernels(smc.bridge)
        # What the pilot evaluates a level: its moves, up to 12 strides that it tries, and two ends.
        moves = max(kernels.moves.num, kernels.moves.num_other) * kernels.moves.joint.evaluations
        level = moves + 14 + 2 * kernels.transport.needs_curvature
        levels = smc.result.num_levels_run
        pilot = scheme.pilot.num_particles * (level * levels + 16 * kernels.moves.joint.evaluations)
        x, sigma = flat(draws["x"]), flat(draws["sigma"])
        return Run(x, sigma, flat(weights), smc.network_evaluations + pilot)

    return run


def by_nuts(problem, size):
    def chain(key):
        kernel = NUTS(problem.model, init_strategy=init_to_sample)
        mcmc = MCMC(kernel, num_warmup=size, num_samples=size, progress_bar=False)
        arguments = dict(y=problem.data, extra_fields=("num_steps",))
        mcmc.warmup(key, problem.operator, collect_warmup=True, **arguments)
        steps = mcmc.get_extra_fields()["num_steps"].sum()
        mcmc.run(mcmc.post_warmup_state.rng_key, problem.operator, **arguments)
        return mcmc.get_samples(), steps + mcmc.get_extra_fields()["num_steps"].sum()

    # Compiled as a whole: `MCMC.run` by itself compiles again for each key.
    chains = jax.jit(lambda key: jax.lax.map(chain, jax.random.split(key, 4)))

    def run(seed):
        draws, steps = jax.tree.map(np.asarray, chains(jax.random.key(seed)))
        count = 4 * size
        weights = np.full(count, 1 / count)
        return Run(draws["x"].reshape(count, -1), draws["sigma"].ravel(), weights, steps.sum())

    return run


def by_blackjax(problem, size, step_size=0.3, moves=5, leaps=5):
    target = Target(problem)
    algorithm = blackjax.adaptive_tempered_smc(
        target.log_prior,
        lambda z: target.log_posterior(z) - target.log_prior(z),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": jnp.array([step_size]),
            "inverse_mass_matrix": jnp.eye(9)[None],
            "num_integration_steps": jnp.array([leaps]),
        },
        blackjax.smc.resampling.systematic,
        0.5,
        num_mcmc_steps=moves,
    )
    step = jax.jit(algorithm.step)

    def run(seed):
        key, key_prior = jax.random.split(jax.random.key(seed))
        state, stages = algorithm.init(target.draw(jax.random.split(key_prior, 4 * size))), 0
        while float(state.tempering_param) < 1:
            key, key_step = jax.random.split(key)
            state, _ = step(key_step, state)
            stages += 1
        z = jax.tree.map(np.asarray, state.particles)
        evaluations = 4 * size * stages * (moves * leaps + 2)
        return Run(z["x"], np.exp(z["sigma"]), np.asarray(state.weights), evaluations)

    return run


def by_particles(problem, size):
    import particles
    from particles import smc_samplers

    target = Target(problem)

    class Prior:
        def rvs(self, size):
            z = target.draw(jax.random.split(jax.random.key(np.random.randint(2**31)), size))
            return np.concatenate([z["x"], z["sigma"][:, None]], 1).astype(float)

        def logpdf(self, theta):
            # Prior and likelihood share an evaluation; the sampler asks for both, in this order.
            self.evaluations = getattr(self, "evaluations", 0) + len(theta)
            prior, posterior = (np.asarray(v, float) for v in target.both(jnp.asarray(theta)))
            self.log_likelihood = posterior - prior
            return prior

    class Bridge(smc_samplers.TemperingBridge):
        def loglik(self, theta):
            return self.prior.log_likelihood

    def run(seed):
        np.random.seed(seed)
        prior, chains = Prior(), max(4, size // 25)
        steps = smc_samplers.AdaptiveTempering(Bridge(prior), len_chain=100)
        sampler = particles.SMC(fk=steps, N=chains)
        sampler.run()
        theta = sampler.X.theta
        return Run(theta[:, :-1], np.exp(theta[:, -1]), sampler.W, prior.evaluations)

    return run


def estimates(problem, run: Run) -> np.ndarray:
    """Estimates of the posterior means of all test functions."""
    values = [run.x, run.sigma[:, None]]
    if len(problem.weights) > 1:
        values.append(np.eye(len(problem.weights))[problem.component(run.x)])
    return run.weights @ np.concatenate(values, 1)


def truth(problem):
    """Exact means and variances of all test functions."""
    exact = problem.exact()
    means, variances = [*exact.mean, exact.sigma_mean], [*exact.variance, exact.sigma_sd**2]
    if len(problem.weights) > 1:
        means, variances = [*means, *exact.modes], [*variances, *(exact.modes * (1 - exact.modes))]
    return np.array(means), np.array(variances)


LONG = nd.ReverseDiffusion(moves=nd.schemes.Moves(joint=nd.moves.hmc(8), rank=9))
METHODS = {
    "nd.SMC, Annealed": lambda p, n: by_smc(p, n, nd.Annealed()),
    "nd.SMC, ReverseDiffusion": lambda p, n: by_smc(p, n, nd.ReverseDiffusion()),
    "nd.SMC, ReverseDiffusion, hmc(8), rank 9": lambda p, n: by_smc(p, n, LONG),
    "nd.SMC, LikelihoodTempered": lambda p, n: by_smc(p, n, nd.LikelihoodTempered()),
    "BlackJAX adaptive tempering": by_blackjax,
    "particles adaptive tempering": by_particles,
    "NumPyro NUTS": by_nuts,
}
PROBLEMS = {"8-D, four modes": ambiguous, "8-D, one mode": unimodal}


def measure(problem, method, seeds: int, size: int) -> list:
    run = method(problem, size)
    run(10_000)  # compiles
    means, variances = truth(problem)
    errors, seconds, evaluations = [], [], []
    for seed in range(seeds):
        started = time.perf_counter()
        found = run(seed)
        seconds.append(time.perf_counter() - started)
        evaluations.append(found.evaluations)
        errors.append(estimates(problem, found) - means)
    effective = variances / np.mean(np.square(errors), 0)
    both = np.array([np.median(effective), effective.min()])
    time_of_run, thousands = np.median(seconds), np.mean(evaluations) / 1000
    pair = lambda values, digits: " / ".join(f"{v:.{digits}f}" for v in values)
    cells = [pair(both, 0), f"{time_of_run:.2f}", pair(both / time_of_run, 0)]
    return [*cells, f"{thousands:.0f}", pair(both / thousands, 2)]


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=10)
    options = options.parse_args()
    seeds, size = (2, 50) if options.tiny else (options.seeds, 1000)
    rows = []
    for model, make in PROBLEMS.items():
        for name, method in METHODS.items():
            try:
                cells = measure(make(), method, seeds, size)
            except ImportError:
                cells = ["not installed", "", "", "", ""]
            rows.append([model, name, *cells])
            print(*rows[-1], sep=" | ", flush=True)
    columns = ["model", "method", "effective samples", "s a run", "per second"]
    columns += ["thousand evaluations", "per thousand"]
    _table.emit("effective_samples", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
