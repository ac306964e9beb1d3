"""One evidence by BlackJAX's samplers on our model and by our schemes, beside the closed form.

A mixture of three anisotropic normal laws as a diffusion prior, two data and a common offset with a prior of
its own (`three_modes` of the tests). BlackJAX's samplers run on `nd.to_blackjax(model, ...)` from exact draws
of the prior: 2,000 particles, at every power 4 trajectories of 5 leapfrog steps with fixed masses, a target
ESS of 0.7; nested slice sampling has 500 live points and 30 slice steps. `nd.SMC` has 4 clouds of 500
particles and the defaults of each scheme. Error: mean over `--seeds` runs and, in brackets, their spread;
`stated` is what a run says of its own error, where it does. Evaluations are of the prior's density, in
thousands, with a gradient but for nested sampling; seconds are of a run after the first, its pilot included.
"""

import time

import _table
import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.ns.utils import finalise, log_weights
from closed_form import three_modes

import numpyro_diffusion as nd

MOVES, LEAPFROG = 4, 5
PARAMETERS = {
    "step_size": jnp.array([0.35]),
    "inverse_mass_matrix": jnp.ones((1, 3)),
    "num_integration_steps": jnp.array([LEAPFROG]),
}
HMC = (blackjax.hmc.build_kernel(), blackjax.hmc.init)
COST = 1 + MOVES * LEAPFROG


def adaptive_tempered(target, number):
    smc = blackjax.adaptive_tempered_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        *HMC,
        PARAMETERS,
        resampling.systematic,
        0.7,
        num_mcmc_steps=MOVES,
    )
    step = jax.jit(smc.step)

    def run(key):
        state = smc.init(target.sample_prior(key, number))
        total, levels = 0.0, 0
        while float(state.tempering_param) < 1:
            state, info = step(jax.random.fold_in(key, levels), state)
            total, levels = total + float(info.log_likelihood_increment), levels + 1
        return total, np.nan, number * levels * COST

    return run


def adaptive_persistent(target, number):
    smc = blackjax.adaptive_persistent_sampling_smc(
        target.logprior_fn,
        target.loglikelihood_fn,
        20,
        *HMC,
        PARAMETERS,
        resampling.systematic,
        0.7,
        num_mcmc_steps=MOVES,
    )
    step = jax.jit(smc.step)

    def run(key):
        state, levels = smc.init(target.sample_prior(key, number)), 0
        while float(state.tempering_param) < 1:
            state, _ = step(jax.random.fold_in(key, levels), state)
            levels += 1
        return float(state.log_Z), np.nan, number * levels * COST

    return run


def nested(target, number):
    nss = blackjax.nss(
        target.logprior_fn,
        target.loglikelihood_fn,
        num_inner_steps=30,
        num_delete=max(1, number // 10),
    )
    init, step = jax.jit(nss.init), jax.jit(nss.step)

    def run(key):
        state, dead = init(target.sample_prior(key, number)), []
        while float(state.integrator.logZ_live - state.integrator.logZ) > np.log(1e-3):
            state, info = step(jax.random.fold_in(key, len(dead)), state)
            dead.append(info)
        slices = [info.update_info for info in dead]
        count = sum(int(np.sum(s.num_expansions + s.num_shrink + 2)) for s in slices)
        points = finalise(state, dead, update_info=False)
        found = jax.nn.logsumexp(log_weights(key, points, shape=100), 0)
        return float(found.mean()), float(found.std()), number + count

    return run


def by_smc(scheme):
    def made(problem, number):
        smc = nd.SMC(problem.model, scheme, num_particles=number // 4, progress_bar=False)

        def run(key):
            smc.run(key, problem.operator, problem.data)
            return smc.log_evidence, smc.log_evidence_error, smc.network_evaluations

        return run

    return made


SCHEMES = [
    nd.Annealed(),
    nd.LikelihoodTempered(),
    nd.ReverseDiffusion(),
    nd.Twisted(),
    nd.schemes.BlackJAXTempered(),
]


def main() -> None:
    options = _table.parser(__doc__)
    arguments = options.parse_args()
    number = 200 if arguments.tiny else 2000
    seeds = 2 if arguments.tiny else arguments.seeds
    problem = three_modes()
    exact = problem.exact().log_evidence
    target = nd.to_blackjax(problem.model, problem.operator, problem.data)
    runs = {
        "blackjax.adaptive_tempered_smc": adaptive_tempered(target, number),
        "blackjax.adaptive_persistent_sampling_smc": adaptive_persistent(target, number),
        "blackjax.nss": nested(target, number // 4),
    }
    runs |= {f"nd.SMC, {type(s).__name__}": by_smc(s)(problem, number) for s in SCHEMES}
    rows = []
    for name, run in runs.items():
        run(jax.random.key(1000))  # compiles
        begin = time.perf_counter()
        found = np.array([run(jax.random.key(seed)) for seed in range(seeds)], float)
        seconds = (time.perf_counter() - begin) / seeds
        errors, stated = found[:, 0] - exact, found[:, 1].mean()
        row = [name, f"{errors.mean():+.3f} ({errors.std(ddof=1):.3f})"]
        row += ["" if np.isnan(stated) else f"{stated:.3f}"]
        row += [f"{found[:, 2].mean() / 1000:.0f}", f"{seconds:.2f}"]
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    columns = [
        "sampler",
        f"error of log evidence ({exact:.3f})",
        "stated",
        "evaluations",
        "seconds",
    ]
    _table.emit("larger_models", __doc__, columns, rows, arguments.save)


if __name__ == "__main__":
    main()
