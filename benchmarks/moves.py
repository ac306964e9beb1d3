"""What moves, transports and drifts buy per second.

A blurred digit with unknown noise level under the shipped prior (as in `efficiency.py`), 16 clouds of 128
particles for each seed. `sd` is the spread of the log evidence over all clouds, `stated` the error that a
cloud gives for itself, `seconds` the time of a run without pilot and compilation, and `cost` the product of
`sd` squared and seconds: how long a run must be for a unit of precision. `reuse_score` replaces the second
derivative of the network in a drift by that of a Gaussian. Waste-free clouds keep all states of chains of 8;
`rank 8` gives moves eight directions beside the scale of every pixel.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
from efficiency import digits

import numpyro_diffusion as nd

CHAINS = 8
SCHEMES = {
    "Annealed: 2 x hmc(2), the default": nd.Annealed(),
    "Annealed: 5 x mala": nd.Annealed(moves=nd.schemes.Moves(joint=nd.moves.mala(), num=5)),
    "Annealed: 1 x hmc(4)": nd.Annealed(moves=nd.schemes.Moves(joint=nd.moves.hmc(4), num=1)),
    "Annealed: 2 x hmc(2), reuse_score": nd.Annealed(),
    "Annealed: number of moves by the pilot": nd.Annealed(moves="pilot"),
    "Annealed: 2 x hmc(2), rank 8": nd.Annealed(moves=nd.schemes.Moves(rank=8)),
    "Annealed: waste-free, 1 x hmc(2)": nd.Annealed(moves=1),
    "Annealed: waste-free, 1 x hmc(2), steps of 0.9": nd.Annealed(
        moves=1, pilot=nd.schemes.Pilot(conditional_ess=0.9)
    ),
    "ReverseDiffusion: 1 x hmc(2), the default": nd.ReverseDiffusion(),
    "ReverseDiffusion: Isotropic": nd.ReverseDiffusion(covariance=nd.schemes.Isotropic()),
    "ReverseDiffusion: Full": nd.ReverseDiffusion(covariance=nd.schemes.Full()),
    "ReverseDiffusion: 2 x hmc(2)": nd.ReverseDiffusion(moves=2),
}


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    seeds, size, clouds = (1, 16, 2) if options.tiny else (options.seeds, 128, 16)
    schemes = dict(list(SCHEMES.items())[3:5]) if options.tiny else SCHEMES
    model, operator, data = digits()
    rows = []
    for name, scheme in schemes.items():
        twist = nd.Tweedie(reuse_score="reuse" in name)
        bridge = nd.from_model(model, jnp.asarray(operator), y=jnp.asarray(data[0]), twist=twist)
        evidence, stated, seconds, levels = [], [], [], []
        for seed in range(seeds):
            steps = scheme(bridge, jax.random.key(seed))
            chain = CHAINS if "waste-free" in name else None
            run = lambda key, steps=steps, chain=chain: jax.block_until_ready(
                nd.run_smc(key, steps, size, num_chains=clouds, chain_length=chain)
            )
            run(jax.random.key(99))
            started = time.perf_counter()
            result = run(jax.random.key(100 + seed))
            seconds.append(time.perf_counter() - started)
            evidence += list(np.asarray(result.log_evidence))
            stated.append(np.sqrt(np.mean(np.asarray(result.log_evidence_error) ** 2)))
            levels.append(len(steps.levels.clock))
        sd = np.std(evidence, ddof=1)
        rows.append(
            [
                name,
                round(np.mean(levels)),
                round(scheme.evaluations_per_level(bridge, steps.levels), 1),
                f"{np.mean(evidence):.2f} +- {sd / len(evidence) ** 0.5:.2f}",
                f"{sd:.2f} +- {sd / (2 * len(evidence)) ** 0.5:.2f}",
                f"{np.mean(stated):.2f}",
                f"{np.mean(seconds):.1f}",
                f"{sd**2 * np.mean(seconds):.2f}",
            ]
        )
    columns = ["scheme", "levels", "evaluations a level", "log evidence", "sd", "stated", "seconds"]
    _table.emit("moves", __doc__, [*columns, "cost"], rows, options.save)


if __name__ == "__main__":
    main()
