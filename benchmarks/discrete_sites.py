"""The probability of a sign that is not known: summed out, in blocked draws, and by Gibbs sampling.

A flag turns the sign of a vector with a prior of two modes; P(flag) has a closed form. `SMC` sums the flag
out (4 clouds). A blocked draw is one of the flag and the vector together: a particle of a cloud of 16 of its
own, the flag summed out there too; 400 of them, of equal weight or weighed by the evidence of their clouds.
Gibbs sampling draws the flag given the vector, and by `ParticleGibbs` the vector given the flag, 400 times in
4 chains from the prior. P(flag) is the mean +- the spread over `--seeds` runs, `error` the root of the mean
square to the exact value. Evaluations are of the prior's density, in thousands a run, pilots apart.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC, DiscreteGibbs, Gibbs
from test_discrete_sites import sign, truth

import numpyro_diffusion as nd

Y = jnp.array([0.9, -0.1])
PARTICLES, CHAINS, DRAWS, WARMUP = 16, 4, 100, 20


def chains(kernel, tiny):
    return MCMC(
        kernel,
        num_warmup=5 if tiny else WARMUP,
        num_samples=10 if tiny else DRAWS,
        num_chains=CHAINS,
        chain_method=jax.vmap,
        progress_bar=False,
    )


def in_blocks(weighed, num_draws):
    """One draw of each of many clouds: independent, and each of the flag and the vector together."""
    smc = nd.SMC(sign, num_particles=PARTICLES, num_chains=num_draws, progress_bar=False)

    def run(seed):
        smc.run(jax.random.key(seed), Y)
        draws, weights = smc.get_weighted_samples()
        weights = np.asarray(weights, float)
        weights /= weights.sum(1, keepdims=True)
        each = [np.random.default_rng(seed).choice(PARTICLES, p=w) for w in weights]
        flags = np.asarray(draws["flag"])[np.arange(num_draws), each]
        logs = np.asarray(smc.result.log_evidence, float)
        chance = np.average(flags, weights=np.exp(logs - logs.max()) if weighed else None)
        return chance, smc.network_evaluations

    return run


def by_smc(scheme, num_particles):
    smc = nd.SMC(sign, scheme, num_particles=num_particles, progress_bar=False)

    def run(seed):
        smc.run(jax.random.key(seed), Y)
        return float(smc.discrete_probabilities()["flag"][1]), smc.network_evaluations

    return run


def by_gibbs(tiny):
    particles = nd.ParticleGibbs(sign, num_particles=PARTICLES)
    given = nd.ParticleGibbs(
        handlers.condition(sign, {"flag": 0})
    )  # its levels are those of the block
    levels = len(np.asarray(given.make((Y,), {}).levels.clock))
    mcmc = chains(Gibbs([(DiscreteGibbs(sign), ["flag"]), (particles, ["x"])]), tiny)

    def run(seed):
        mcmc.run(jax.random.key(seed), Y)
        draws = CHAINS * (mcmc.num_samples + mcmc.num_warmup)
        return float(mcmc.get_samples()["flag"].mean()), draws * PARTICLES * (levels + 1)

    return run


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--without-gibbs", action="store_true", help="leave the slow row out")
    options.set_defaults(seeds=10)
    options = options.parse_args()
    tiny, exact = options.tiny, float(truth(np.asarray(Y))[0])
    size = 50 if tiny else 2000
    runs = {
        f"SMC, LikelihoodTempered, {4 * size} particles": by_smc(nd.LikelihoodTempered(), size),
        f"SMC, Annealed, {4 * size // 4} particles": by_smc(nd.Annealed(), size // 4),
        "400 blocked draws": in_blocks(False, 10 if tiny else 400),
        "400 blocked draws, weighed": in_blocks(True, 10 if tiny else 400),
    }
    if not options.without_gibbs:
        runs["400 draws by Gibbs sampling"] = by_gibbs(tiny)
    rows = []
    for name, run in runs.items():
        run(1000)  # compiles
        begin = time.perf_counter()
        found = np.array([run(seed) for seed in range(2 if tiny else options.seeds)], float)
        seconds = (time.perf_counter() - begin) / len(found)
        p, error = found[:, 0], np.sqrt(np.mean((found[:, 0] - exact) ** 2))
        evaluations = f"{found[:, 1].mean() / 1000:.0f}"
        row = [name, f"{p.mean():.3f} +- {p.std():.3f}", f"{error:.3f}", evaluations]
        rows.append([*row, f"{seconds:.2f}"])
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["sampler", f"P(flag) ({exact:.4f})", "error", "evaluations / 1000", "seconds"]
    _table.emit("discrete_sites", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
