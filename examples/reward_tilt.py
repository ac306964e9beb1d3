"""A prior tilted towards a reward: by guidance alone, and with the weights that make it right.

The prior, three ridges in the plane, is to be high on a hill that sits between two of them. Guidance with
the reward of the denoised mean is what samplers of rewards do; it ends too near the top and shares its
particles out among the ridges as it happens to. Weights lead to p(x) exp(r(x) / alpha), whose normaliser
comes out with them; with a better value, of draws or learned beforehand, fewer particles are lost.

    python examples/reward_tilt.py            about two minutes on two cores
    python examples/reward_tilt.py --tiny     a check that everything runs
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

prior = nd.GaussianMixture(
    [0.3, 0.3, 0.4],
    [[-1.8, 0.0], [0.0, 1.2], [1.6, -0.6]],
    [[[0.3, 0.25], [0.25, 0.5]], [[0.5, -0.2], [-0.2, 0.2]], [[0.2, 0.1], [0.1, 0.4]]],
)
ALPHA = 0.25
SIDE = np.linspace(-4, 4, 160)
GRID = jnp.asarray(np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2))


def reward(x):
    """A hill around (0.9, 0.5)."""
    return -jnp.sum((x - jnp.array([0.9, 0.5])) ** 2)


def exact():
    """Density on the grid, log normaliser and mean reward of the tilted law."""
    t = jnp.asarray(prior.t_min)
    log_p = jax.vmap(lambda x: prior.log_density(x, t) + reward(x) / ALPHA)(GRID)
    log_p = np.asarray(log_p, float)
    area = (SIDE[1] - SIDE[0]) ** 2
    log_norm = np.log(np.sum(np.exp(log_p)) * area)
    p = np.exp(log_p - log_norm)
    return p.reshape(len(SIDE), -1), log_norm, np.sum(p * area * jax.vmap(reward)(GRID))


def sample(law, tiny, weighted=True):
    """Equally weighted particles, mean reward, and log evidence with its spread."""
    levels = 8 if tiny else 40 if weighted else 200
    scheme = nd.ReverseDiffusion(levels=levels, moves=0)
    if not weighted:
        scheme = nd.schemes.unweighted(scheme)
    model = scheme(nd.from_energy(law), jax.random.key(0))
    num = 100 if tiny else 1000
    found = nd.run_smc(jax.random.key(1), model, num_particles=num, num_chains=4)
    print(nd.diagnostics.verdict(found))
    x = np.asarray(found.positions["x"]).reshape(-1, 2)
    log_w = np.asarray(found.log_weights)
    if weighted:
        log_w = log_w + np.asarray(found.log_evidence)[:, None]
    w = np.exp(log_w - log_w.max()).ravel()
    w = w / w.sum()
    chosen = np.random.default_rng(0).choice(len(x), num, p=w)
    return x[chosen], np.sum(w * np.asarray(jax.vmap(reward)(jnp.asarray(x)))), found.log_evidence


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    density, log_norm, mean_reward = exact()
    print(f"exact: mean reward {mean_reward:.3f}, log normaliser {log_norm:.3f}")
    value = nd.train.fit_soft_value(
        jax.random.key(3), prior, reward, alpha=ALPHA, steps=20 if options.tiny else 2000,
        progress_bar=False,
    )  # fmt: skip
    tilt, draws = (
        nd.factors.Tilt(reward, ALPHA),
        nd.factors.Tilt(reward, ALPHA, nd.factors.MonteCarloValue(32)),
    )
    learned = nd.factors.Tilt(reward, ALPHA, value)
    runs = {
        "guidance alone": sample(prior + tilt, options.tiny, weighted=False),
        "weighted, value of draws": sample(prior + draws, options.tiny),
        "weighted, learned value": sample(prior + learned, options.tiny),
    }
    figure, axes = plt.subplots(
        1, 3, figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, (x, mean, log_evidence)) in zip(axes, runs.items(), strict=True):
        told = f"{name}: mean reward {mean:.3f}"
        if np.isfinite(log_evidence).all():
            spread = np.std(log_evidence, ddof=1)
            told += f", log normaliser {np.mean(log_evidence):.3f} +- {spread:.3f}"
        print(told)
        axis.contour(SIDE, SIDE, density, levels=6, colors="#c8553d", linewidths=0.8)
        axis.scatter(*x.T, s=4, color="#30506d", alpha=0.45, linewidths=0)
        axis.set(title=name, xlim=(-1.8, 2.6), ylim=(-1.5, 2.3), aspect="equal")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "reward_tilt.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
