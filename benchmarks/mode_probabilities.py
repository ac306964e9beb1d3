"""Mode probabilities of a posterior with four far modes: sequential Monte Carlo beside NUTS.

An 8-D mixture prior with four far components, one datum that fits them to different degrees, unknown noise
level: `tests/closed_form.py`, `ambiguous`. The truth is a sum over components and one integral. The same
NumPyro model goes to `nd.SMC` (defaults, 1,000 particles, 4 clouds), to NUTS (4 chains, 1,000 draws after
1,000 of warm-up, started from NumPyro's default or from the prior) and to BlackJAX's adaptive tempering
(4,000 particles, 10 HMC steps a stage). `TV` is the total variation distance of the mode probabilities,
mean +- sd over seeds.
"""

import time
from functools import partial

import _table
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from closed_form import ambiguous
from numpyro.infer import MCMC, NUTS, init_to_sample, init_to_uniform

import numpyro_diffusion as nd

PROBLEM = ambiguous()


def by_smc(seed: int, size: int):
    smc = nd.SMC(PROBLEM.model, num_particles=size, progress_bar=False)
    smc.run(jax.random.key(seed), PROBLEM.operator, y=PROBLEM.data)
    samples, weights = smc.get_weighted_samples()
    return samples["x"], weights, smc.log_evidence


def by_nuts(seed: int, size: int, start=init_to_uniform):
    kernel = NUTS(PROBLEM.model, init_strategy=start)
    mcmc = MCMC(kernel, num_warmup=size, num_samples=size, num_chains=4, progress_bar=False)
    mcmc.run(jax.random.key(seed), PROBLEM.operator, y=PROBLEM.data)
    x = mcmc.get_samples()["x"]
    return x, np.full(len(x), 1 / len(x)), float("nan")


def by_tempering(seed: int, size: int):
    """BlackJAX's adaptive tempering from prior draws, with step size set by hand."""
    bridge = nd.from_model(PROBLEM.model, PROBLEM.operator, y=PROBLEM.data)
    zero, one = jnp.zeros(()), jnp.ones(())
    part = lambda power: lambda z: nd.bridge.log_density(bridge, z, zero, power)[0]
    logprior, logposterior = part(zero), part(one)
    prior = PROBLEM.prior
    key, key_x, key_sigma = jax.random.split(jax.random.key(seed), 3)
    draws = nd.DiffusionPrior(prior).sample(key_x, (4 * size,))
    sigma = jnp.abs(PROBLEM.sigma_scale * jax.random.normal(key_sigma, (4 * size,)))
    particles = {"x": draws, "sigma": jnp.log(sigma)}
    algorithm = blackjax.adaptive_tempered_smc(
        logprior,
        lambda z: logposterior(z) - logprior(z),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": jnp.array([0.1]),
            "inverse_mass_matrix": jnp.eye(9)[None],
            "num_integration_steps": jnp.array([10]),
        },
        blackjax.smc.resampling.systematic,
        0.5,
        num_mcmc_steps=10,
    )
    state, step, log_evidence = algorithm.init(particles), jax.jit(algorithm.step), 0.0
    while float(state.tempering_param) < 1:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        log_evidence += float(info.log_likelihood_increment)
    return state.particles["x"], state.weights, log_evidence


METHODS = {
    "nd.SMC, defaults": by_smc,
    "NumPyro NUTS, 4 chains": by_nuts,
    "NumPyro NUTS, 4 chains from the prior": partial(by_nuts, start=init_to_sample),
    "BlackJAX adaptive tempering": by_tempering,
}


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    seeds, size = (1, 50) if options.tiny else (options.seeds, 1000)
    exact = PROBLEM.exact()
    truth = " ".join(f"{p:.3f}" for p in exact.modes)
    rows = [["exact", truth, "0", f"{exact.log_evidence:.3f}", ""]]
    for name, method in METHODS.items():
        found, evidence, started = [], [], time.perf_counter()
        for seed in range(seeds):
            x, weights, log_evidence = method(seed, size)
            mode, weights = PROBLEM.component(np.asarray(x)), np.asarray(weights)
            found.append([weights[mode == k].sum() for k in range(4)])
            evidence.append(log_evidence)
        found = np.array(found)
        distance = 0.5 * np.abs(found - exact.modes).sum(1)
        rows.append(
            [
                name,
                " ".join(f"{p:.3f}" for p in found.mean(0)),
                f"{distance.mean():.3f} +- {distance.std():.3f}",
                "none"
                if np.isnan(evidence).any()
                else f"{np.mean(evidence):.3f} +- {np.std(evidence):.3f}",
                f"{(time.perf_counter() - started) / seeds:.1f}",
            ]
        )
    columns = ["method", "mode probabilities", "TV", "log evidence", "s a run"]
    _table.emit("mode_probabilities", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
