"""Two priors over paths, trained apart, that must not collide and have a speed limit.

One prior knows how someone walks from left to right, the other from bottom to top, each in twelve steps. Side
by side they meet in the middle. A coupling keeps them apart, and a restriction keeps every step under the
limit: a law, sampled exactly, with the probability that both priors give to it. Projecting onto the limit
after every Langevin step obeys it as well, but puts almost half of the fastest steps *on* the limit.

    python examples/coupled_priors.py            about two minutes on two cores
    python examples/coupled_priors.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import numpyro_diffusion as nd

STEPS, REACH, LIMIT = 12, 0.8, 0.55
COLOURS = "#30506d", "#c8553d"


def walk(start, goal) -> nd.Gaussian:
    """Paths of shape (2 * STEPS,) between two points: a Gaussian process tied at both ends."""
    time = np.linspace(0, 1, STEPS)
    kernel = lambda a, b: 0.6**2 * np.exp(-0.5 * (a[:, None] - b) ** 2 / 0.25**2)
    ends = np.array([0.0, 1.0])
    gain = kernel(time, ends) @ np.linalg.inv(kernel(ends, ends) + 1e-4 * np.eye(2))
    covariance = kernel(time, time) - gain @ kernel(ends, time) + 1e-4 * np.eye(STEPS)
    mean = np.asarray(start) + time[:, None] * (np.asarray(goal) - np.asarray(start))
    covariance = 0.5 * (covariance + covariance.T)
    return nd.Gaussian(mean.ravel(), np.kron(covariance, np.eye(2)))


def as_path(x):
    return x.reshape(*x.shape[:-1], STEPS, 2)


def collision(first, second):
    """How much nearer than REACH two walkers come, squared and summed over the time they are."""
    distances = jax.vmap(nd.factors.mmd_kernels.distance)(as_path(first), as_path(second))
    return jnp.sum(jnp.maximum(REACH - distances, 0.0) ** 2)


LIMITED = nd.samplers.projections.VelocityBall(LIMIT)


def project(x):
    return jax.vmap(LIMITED)(as_path(x)).reshape(x.shape)


def slack(x):
    return jax.vmap(LIMITED.slack)(as_path(x))


def sample(energy, particles: int, clouds: int):
    """Equally weighted draws of shape (num, 2, STEPS, 2), and the log evidence of each cloud."""
    model = nd.Annealed(pilot=128)(nd.from_energy(energy), jax.random.key(0))
    found = nd.run_smc(jax.random.key(1), model, particles, num_chains=clouds)
    print(nd.diagnostics.verdict(found))
    log_weights = jnp.ravel(found.log_weights + found.log_evidence[:, None])
    chosen = nd.smc.resample_equal(jax.random.key(2), log_weights, particles)
    x = np.asarray(found.positions["x"]).reshape(-1, 2, 2 * STEPS)[np.asarray(chosen)]
    return as_path(x), np.asarray(found.log_evidence)


def report(name: str, paths, log_evidence=None) -> np.ndarray:
    """Print how often they collide and run; return the fastest step of each pair."""
    gap = np.linalg.norm(paths[:, 0] - paths[:, 1], axis=-1).min(-1)
    fastest = np.linalg.norm(np.diff(paths, axis=2), axis=-1).max((1, 2))
    text = f"{name}: nearest {gap.mean():.2f} on average, {np.mean(fastest > LIMIT * 1.00001):.0%} too fast, "
    text += f"{np.mean(np.abs(fastest - LIMIT) < 1e-4):.0%} on the limit"
    if log_evidence is not None:
        error = log_evidence.std(ddof=1) / len(log_evidence) ** 0.5
        text += f", log evidence {log_evidence.mean():.2f} ± {error:.2f} nats"
    print(text, flush=True)
    return fastest


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    particles, clouds = (32, 2) if options.tiny else (400, 4)

    priors = nd.energies.Joint([walk((-2, 0), (2, 0)), walk((0, -2), (0, 2))])
    coupled = priors + nd.factors.Coupling(collision, 30.0)
    t = jnp.asarray(priors.t_min)
    alone = jax.vmap(lambda key: priors.draw(key, t))(
        jax.random.split(jax.random.key(3), particles)
    )
    paths = {"side by side": as_path(np.asarray(alone))}
    fastest = {"side by side": report("side by side", paths["side by side"])}
    for name, energy in {
        "coupled": coupled,
        "coupled, with a limit": coupled + nd.factors.Restrict(slack),
    }.items():
        paths[name], log_evidence = sample(energy, particles, clouds)
        fastest[name] = report(name, paths[name], log_evidence)
    draws = nd.samplers.projections.projected_langevin(
        jax.random.key(4),
        coupled,
        project,
        step_size=1e-4,
        num_steps=20 if options.tiny else 4000,
        num_samples=particles,
    )
    fastest["projected"] = report("projected", as_path(np.asarray(draws.positions)))

    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.3), layout="constrained")
    for axis, (name, x) in zip(axes, paths.items(), strict=False):
        for pair in x[:40]:
            for path, colour in zip(pair, COLOURS, strict=True):
                axis.plot(*path.T, color=colour, linewidth=0.6, alpha=0.5)
        for path, colour in zip(x[0], COLOURS, strict=True):
            axis.plot(*path.T, "o-", color=colour, linewidth=1.6, markersize=3)
        axis.set(title=name, xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal")
    bins = np.linspace(0.3, 1.0, 36)
    for name, colour in {
        "coupled": "#9a9a9a",
        "coupled, with a limit": COLOURS[0],
        "projected": COLOURS[1],
    }.items():
        axes[3].hist(fastest[name], bins, histtype="step", density=True, color=colour, label=name)
    axes[3].axvline(LIMIT, color="black", linewidth=0.7, linestyle=":")
    axes[3].set(title="fastest step", xlabel="length")
    axes[3].legend(frameon=False, fontsize=7)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "coupled_priors.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
