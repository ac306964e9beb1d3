"""A NumPyro posterior by diffusion, without data: its density, smoothed by the noise of each level.

Two sources at unknown places are heard by four microphones, and who is who cannot be told: the posterior of
their places has two modes, or more. Its density at high noise is one hump; the picture shows how it falls
apart into the modes on the way down, and the particles that came with it. The inner integral is a sum over a
thousand frozen points; weights make the end exact whatever its error.

    python examples/without_data.py            about a minute on two cores
    python examples/without_data.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

PLACES = jnp.array([-2.0, -0.5, 1.0, 2.5])
SIDE = np.linspace(-4, 4, 90)


def loudness(sources):
    """What each microphone hears of two sources on a line."""
    return jnp.sum(1 / (0.3 + (PLACES[:, None] - sources) ** 2), 1)


def model(heard):
    sources = numpyro.sample("sources", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("heard", dist.Normal(loudness(sources), 0.5).to_event(1), obs=heard)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    heard = loudness(jnp.array([-1.2, 0.6])) + jnp.array([0.2, -0.1, 0.25, 0.1])

    found = nd.model_energy(model, heard, num_draws=16 if options.tiny else 1024)
    energy = found.energy
    scheme = nd.ReverseDiffusion(levels=6 if options.tiny else 40)
    prepared = scheme(nd.from_energy(energy), jax.random.key(0))
    result = nd.run_smc(
        jax.random.key(1), prepared, num_particles=50 if options.tiny else 500, num_chains=4
    )
    spread = np.std(result.log_evidence, ddof=1)
    print(f"log evidence {np.mean(result.log_evidence):.3f} +- {spread:.3f}")
    print(nd.diagnostics.verdict(result))

    grid = jnp.asarray(np.stack(np.meshgrid(SIDE, SIDE), -1))
    at_level = jax.jit(lambda t: jax.lax.map(jax.vmap(lambda u: energy.log_density(u, t)), grid))
    exact = np.asarray(at_level(jnp.asarray(energy.t_min)), float)
    total = np.log(np.sum(np.exp(exact)) * (SIDE[1] - SIDE[0]) ** 2)
    print(f"by quadrature on a grid  {total:.3f}")

    figure, axes = plt.subplots(
        1, 4, figsize=(10.4, 2.9), sharex=True, sharey=True, layout="constrained"
    )
    for axis, noise in zip(axes, (2.0, 0.7, 0.25, 0.0), strict=True):
        t = energy.schedule.time(-2 * jnp.log(jnp.asarray(noise))) if noise else energy.t_min
        log_p = np.asarray(at_level(jnp.asarray(t)), float)
        axis.contourf(SIDE, SIDE, np.exp(log_p - log_p.max()), levels=12, cmap="Greys")
        counted = float(energy.effective_draws(jnp.array([-1.2, 0.6]), jnp.asarray(t)))
        axis.set(title=f"noise {noise:g}", aspect="equal", xlabel="first source")
        print(f"noise {noise:g}: {counted:.0f} of {len(energy.draws)} points count at a mode")
    axes[0].set(ylabel="second source")
    log_w = np.asarray(result.log_weights) + np.asarray(result.log_evidence)[:, None]
    weights = np.exp(log_w - log_w.max()).ravel()
    x = np.asarray(result.positions["x"]).reshape(-1, 2)
    chosen = np.random.default_rng(0).choice(len(x), 300, p=weights / weights.sum())
    axes[-1].scatter(*x[chosen].T, s=4, color="#c8553d", alpha=0.6, linewidths=0)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "without_data.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
