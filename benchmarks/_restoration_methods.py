"""Restoration, ensemble Kalman and Langevin rows of `heuristics.py` and `heuristics_modes.py`."""

import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

MANY = 10


def many(run, factor):
    """The same evaluations as fewer steps and more draws."""
    return lambda key, case, size: run(key, case, factor * size)


def for_twisted(by_smc, budget):
    """Rows of `Twisted`, which takes other latent sites too."""
    schemes, found = nd.schemes, {}
    few, full = budget // MANY, schemes.Full()
    black_box, noised = nd.twists.BlackBox(), nd.twists.NoisedObservation()

    def row(name, proposal, kind, covariance, steps, twist=noised):
        scheme = nd.Twisted(budget, covariance=covariance, proposal=proposal)
        found[name] = many(by_smc(scheme, twist, steps, kind), budget // steps)

    diagonal = schemes.Diagonal()
    for name, proposal in (
        ("DDRM()", schemes.DDRM()),
        ("DDNM()", schemes.DDNM()),
        ("DiffPIR()", schemes.DiffPIR()),
    ):
        row(f"`{name}`, {few - 1} steps, none", proposal, "none", diagonal, few)
        row(f"`{name}`, none", proposal, "none", diagonal, budget)
        if "DDRM" not in name:  # every level costs weight
            row(f"`{name}`, exact", proposal, "exact", diagonal, budget)
        row(f"`{name}`, `Full()`, {few - 1} steps, exact", proposal, "exact", full, few)
    zeta = schemes.DiffPIR(zeta=0.1)
    row("`DiffPIR(zeta=0.1)`, none", zeta, "none", diagonal, budget)
    # Each level costs as many evaluations as it has repeats.
    row(f"`RePaint()`, {few - 2} levels, none", schemes.RePaint(), "none", diagonal, budget)
    kalman = schemes.EnsembleKalman()
    for kind in ("none", "exact"):
        row(f"`EnsembleKalman()`, {kind}", kalman, kind, diagonal, budget, black_box)
    name = f"`EnsembleKalman()`, `Full()`, {few - 1} steps, exact"
    row(name, kalman, "exact", full, few, black_box)
    return found


def alone(prior, seen, sigma, budget):
    """Rows of samplers that take no other latent sites."""

    def answer(x, count):
        return {"x": np.asarray(x)}, np.full(len(x), 1 / len(x)), np.nan, count, np.nan

    def enkg(key, case, size):
        bridge = case.bridge(bridge_type=nd.bridge.PathBridge)
        draws = nd.samplers.ensemble_kalman(
            key, bridge, num_particles=size, num_steps=budget // 10, flow_steps=9
        )
        return answer(draws.positions["x"], budget)

    def unadjusted(key, case, size):
        fits = lambda x: -0.5 * jnp.sum((x[seen] - case.y) ** 2) / sigma**2
        draws = nd.samplers.unadjusted_langevin(
            key, prior, fits, step_size=0.1, num_steps=budget, num_samples=size
        )
        return answer(draws.positions, budget)

    def annealed(key, case, size):
        fits = lambda u, s: -0.5 * jnp.sum((u[seen] - case.y) ** 2) / (sigma**2 + s**2)
        draws = nd.samplers.annealed_langevin(
            key, prior, fits, num_levels=10, num_steps=budget // 10, num_samples=size
        )
        return answer(draws.positions, budget)

    return {
        "`ensemble_kalman()`, EnKG": enkg,
        "`unadjusted_langevin(step_size=0.1)`": unadjusted,
        "`annealed_langevin()`, 10 levels": annealed,
    }
