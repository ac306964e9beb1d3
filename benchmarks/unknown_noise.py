"""An unknown noise level: its posterior and coverage, and mode probabilities, by particles inside MCMC.

*Noise.* An autoregressive Gaussian in 16 dimensions, every fourth coordinate seen, noise level half-normal
and unknown; 100 data sets from the model, all run at once. The posterior of the noise level is one
integral. `error of mean` is the root mean square error of its posterior mean, in posterior standard
deviations, `sd` the mean ratio of standard deviations, `coverage` how many of the true noise levels lie in
central intervals of 50 and 90 per cent (standard errors 5 and 3), `exact` that of the integral itself. Each
chain has 1,000 draws after 200 of warm-up, `SMC` four clouds of 256 particles. `8 levels` are of
`ReverseDiffusion` with full covariances and the twist `Moments`, which one Gaussian allows; `Local()` with
those of each particle, and so of the noise level that it is run at. `evaluations` are network evaluations,
gradients included, of sampling alone, in thousands, a data set; `ESS` is the mean effective sample size of
the logarithm of the noise level.

*Modes.* The problem of `mode_probabilities.py`: eight dimensions, four far modes, one datum, unknown noise
level; `TV` is the total variation distance to the exact mode probabilities, mean +- sd over seeds.
"""

import time

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_form import ambiguous
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs, init_to_sample
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from scipy.special import logsumexp
from scipy.stats import halfnorm, multivariate_normal

import numpyro_diffusion as nd

jax.config.update("jax_enable_x64", True)

SIZE, SEEN, SCALE = 16, np.arange(1, 16, 4), 0.5
LEVELS = (
    170  # what the pilot chooses for most data sets; the same for all, so that they run at once
)
COVARIANCE = 0.75 ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))
PRIOR = nd.Gaussian(np.zeros(SIZE), COVARIANCE)


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    sigma = numpyro.sample("sigma", dist.HalfNormal(SCALE))
    numpyro.sample("y", dist.Normal(x[SEEN], sigma).to_event(1), obs=y)


def simulate(count: int):
    rng = np.random.default_rng(5)
    sigma = np.abs(SCALE * rng.standard_normal(count))
    x = rng.multivariate_normal(np.zeros(SIZE), COVARIANCE, count)[:, SEEN]
    return sigma, x + sigma[:, None] * rng.standard_normal(x.shape)


def by_quadrature(y):
    """Grid and cumulated posterior of the noise level."""
    t = jnp.asarray(PRIOR.t_min)
    noise = float(PRIOR.schedule.noise_level(t)) ** 2
    log_sigma = np.linspace(-9.0, 1.2, 1500)
    grid, seen = np.exp(log_sigma), COVARIANCE[np.ix_(SEEN, SEEN)]
    log_p = [
        multivariate_normal.logpdf(y, np.zeros(len(y)), seen + (noise + s**2) * np.eye(len(y)))
        for s in grid
    ]
    log_p = np.array(log_p) + halfnorm.logpdf(grid, scale=SCALE) + log_sigma
    return grid, np.exp(log_p - logsumexp(log_p))


def interval(values, weights, share):
    order = np.argsort(values)
    total = np.cumsum(weights[order]) / weights.sum()
    low, high = np.searchsorted(total, [0.5 - share / 2, 0.5 + share / 2])
    return values[order][[low, min(high, len(values) - 1)]]


def by_chains(kernel, data, num_warmup: int, num_samples: int, particles=None):
    """One chain a data set, all at once: draws of the noise level, and leapfrog steps if it makes any.

    A kernel of particles measures its levels for each data set, as it would for a user.
    """
    kernel.init(jax.random.key(0), num_warmup, None, (data[0],), {})
    stacked = static = None
    if particles is not None:
        others = {} if particles(kernel) is kernel else {"sigma": jnp.ones(())}  # another block's
        kwargs, problems = {GIBBS_SITES_KWARG: others} if others else {}, []
        for y in data:
            problem = particles(kernel).make((jnp.asarray(y),), kwargs)
            arrays, static = eqx.partition(problem, eqx.is_array)
            problems.append(arrays)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)

    @jax.jit
    @jax.vmap
    def run(key, y, problem):
        if particles is not None:
            particles(kernel)._problem = eqx.combine(problem, static)

        def step(state, _):
            state = kernel.sample(state, (y,), {})
            return state, (state.z["sigma"], getattr(state, "num_steps", jnp.zeros(())))

        state = kernel.init(key, num_warmup, None, (y,), {})
        state, _ = jax.lax.scan(step, state, length=num_warmup)
        return jax.lax.scan(step, state, length=num_samples)[1]

    keys = jax.random.split(jax.random.key(1), len(data))
    kept = None if particles is None else particles(kernel).problem
    log_sigma, steps = run(keys, jnp.asarray(data), stacked)
    if particles is not None:
        particles(kernel)._problem = kept  # not the traced one
    return np.exp(np.asarray(log_sigma)), np.asarray(steps).sum(1).mean()


def evaluations_of(particles, num_samples: int, passes: int) -> float:
    """Network evaluations of runs of particles, with `passes` evaluations for the path that is kept."""
    levels, bridge = particles.problem.levels, particles.problem.kernels.bridge
    count = int(np.sum(np.asarray(levels.next_clock) < np.asarray(levels.clock)))
    each = particles.scheme.evaluations_per_level(bridge)  # derivatives included
    return num_samples * each * (count + 1) * (particles.num_particles + passes)


def kernels_of(kind: str) -> dict:
    """Kernels that know the prior's covariance need few levels."""
    if kind == "default":  # with as many levels for each data set
        return {"scheme": nd.ReverseDiffusion(levels=LEVELS, moves=0)}
    covariance = nd.schemes.Full() if kind == "full" else nd.schemes.Local()
    scheme = nd.ReverseDiffusion(levels=8, covariance=covariance, moves=0)
    return {"scheme": scheme, "twist": nd.twists.Moments()}


def by_gibbs(data, num_warmup, num_samples, num_particles, kind="default"):
    particles = nd.ParticleGibbs(model, num_particles=num_particles, **kernels_of(kind))
    kernel = Gibbs([(particles, ["x"]), (NUTS(model), None)])
    block = lambda kernel: kernel.blocks[0][0]
    sigma, _ = by_chains(kernel, data, num_warmup, num_samples, block)
    return sigma, evaluations_of(block(kernel), num_samples, 1)


def by_marginal(data, num_warmup, num_samples, num_particles, kind="default"):
    kernel = nd.ParticleMarginal(model, num_particles=num_particles, **kernels_of(kind))
    sigma, _ = by_chains(kernel, data, num_warmup, num_samples, lambda kernel: kernel)
    return sigma, evaluations_of(kernel, num_samples, 0)


def by_nuts(data, num_warmup, num_samples, num_steps=None):
    """NUTS as it is, or in noise; a step of the flow and one of its derivative count two each."""
    sampled = model
    if num_steps is not None:
        sampled = handlers.reparam(model, config={"x": nd.NoiseReparam(num_steps=num_steps)})
    kernel = NUTS(sampled, init_strategy=init_to_sample)
    sigma, steps = by_chains(kernel, data, num_warmup, num_samples)
    return sigma, steps * (1 if num_steps is None else 4 * num_steps)


def by_smc(data, num_particles):
    draws, evaluations = [], []
    for k, y in enumerate(data):
        smc = nd.SMC(model, num_particles=num_particles, num_chains=4, progress_bar=False)
        smc.run(jax.random.key(k), y)
        draws.append(smc.get_samples()["sigma"])
        evaluations.append(smc.network_evaluations)
    return np.stack(draws), np.mean(evaluations)


def noise_rows(tiny: bool, rows_with: str):
    truth, data = simulate(3 if tiny else 100)
    exact = [by_quadrature(y) for y in data]
    mean = np.array([(g * p).sum() for g, p in exact])
    sd = np.array([(g**2 * p).sum() for g, p in exact]) - mean**2
    warmup, size, few, many = (5, 10, 2, 2) if tiny else (200, 1000, 8, 16)
    methods = {
        "`SMC`": lambda: by_smc(data, 16 if tiny else 256),
        f"`ParticleGibbs`, {few} particles, and NUTS": lambda: by_gibbs(data, warmup, size, few),
        f"`ParticleGibbs`, {few} particles, 8 levels, and NUTS": lambda: by_gibbs(
            data, warmup, size, few, "full"
        ),
        f"`ParticleMarginal`, {many} particles, 8 levels": lambda: by_marginal(
            data, warmup, size, many, "full"
        ),
        "`ParticleMarginal`, 4 particles, 8 levels, `Local()`": lambda: by_marginal(
            data, warmup, size, 4, "local"
        ),
        f"`ParticleMarginal`, {many} particles": lambda: by_marginal(data, warmup, size, many),
        "NUTS": lambda: by_nuts(data, warmup, size),
        "NUTS on `NoiseReparam`, 8 steps": lambda: by_nuts(data, warmup, size, 8),
    }
    rows = [["exact", "0", "1", *coverage(truth, exact), "", "", ""]]
    for name, method in methods.items():
        if rows_with not in name:
            continue
        started = time.perf_counter()
        sigma, evaluations = method()
        seconds = time.perf_counter() - started
        equal = np.full(sigma.shape[1], 1.0)
        error = np.sqrt(np.mean((sigma.mean(1) - mean) ** 2 / sd))
        ratio = np.mean(sigma.std(1) / np.sqrt(sd))
        size_of = "" if name == "`SMC`" else f"{np.mean([_ess(s) for s in sigma]):.0f}"
        cells = [f"{error:.2f}", f"{ratio:.2f}", *coverage(truth, [(s, equal) for s in sigma])]
        rows.append([name, *cells, f"{evaluations / 1000:.0f}", size_of, f"{seconds:.0f}"])
        print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    return rows


def _ess(sigma) -> float:
    if np.ptp(sigma) == 0:  # the chain has not moved
        return 1.0
    return float(effective_sample_size(np.log(sigma)[None]))


def coverage(truth, laws):
    """Share of true noise levels in central intervals."""
    found = []
    for share in (0.5, 0.9):
        ends = np.array([interval(values, weights, share) for values, weights in laws])
        found.append(f"{np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])):.2f}")
    return found


def mode_rows(tiny: bool, seeds: int):
    """Total variation of mode probabilities; 16 chains of particle Gibbs."""
    problem = ambiguous()
    exact, args = problem.exact().modes, (problem.operator, problem.data)
    warmup, size, seeds = (2, 4, 1) if tiny else (50, 200, seeds)

    def smc(seed):
        run = nd.SMC(problem.model, num_particles=50 if tiny else 1000, progress_bar=False)
        return run.run(jax.random.key(seed), *args).get_samples()["x"]

    particles = nd.ParticleGibbs(problem.model, num_particles=2 if tiny else 16)
    mcmc = MCMC(
        Gibbs([(particles, ["x"]), (NUTS(problem.model), None)]),
        num_warmup=warmup,
        num_samples=size,
        num_chains=16,
        chain_method=jax.vmap,
        progress_bar=False,
    )

    def gibbs(seed):
        mcmc.run(jax.random.key(seed), *args)
        return mcmc.get_samples()["x"]

    rows = [["exact", " ".join(f"{p:.3f}" for p in exact), "0", ""]]
    for name, method in {"`SMC`": smc, "`ParticleGibbs`, 16 particles, and NUTS": gibbs}.items():
        started, found = time.perf_counter(), []
        for seed in range(seeds):
            modes = problem.component(np.asarray(method(seed)))
            found.append(np.bincount(modes, minlength=4) / len(modes))
        distance = 0.5 * np.abs(np.array(found) - exact).sum(1)
        shares = " ".join(f"{p:.3f}" for p in np.mean(found, 0))
        seconds = (time.perf_counter() - started) / seeds
        cells = [f"{distance.mean():.3f} +- {distance.std():.3f}", f"{seconds:.0f}"]
        rows.append([name, shares, *cells])
        print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--only", choices=("noise", "modes"), help="one of the two tables")
    parser.add_argument("--rows", default="", help="methods of the first whose name holds this")
    options = parser.parse_args()
    if options.only != "modes":
        columns = ["method", "error of mean", "sd", "coverage 50 %", "coverage 90 %"]
        columns += ["evaluations / 1000", "ESS", "s in all"]
        rows = noise_rows(options.tiny, options.rows)
        name = "unknown_noise" + "-rows" * bool(options.rows)
        _table.emit(name, __doc__, columns, rows, options.save)
    if options.only != "noise":
        columns = ["method", "mode probabilities", "TV", "s a run"]
        rows = mode_rows(options.tiny, options.seeds)
        _table.emit("unknown_noise-modes", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
