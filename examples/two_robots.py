"""Two robots whose planners are scores and nothing more, a term that keeps them apart, and a speed limit.

Each planner knows two ways around an obstacle, one robot drives to the right and one to the left. All that is
known of them is a score, as of most networks. Projected coupled diffusion, as published, guides the reverse
diffusion of both by the coupling and moves every state to the nearest one within the limit: all draws are
feasible, and follow another distribution. The same steps with weights, and the limit as a restriction, follow
the product of planners, coupling and limit. Weighted draws of the planners themselves, 200,000 of them, say
what that is.

    python examples/two_robots.py            about two minutes on two cores
    python examples/two_robots.py --tiny     a check that everything runs
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

import numpyro_diffusion as nd
from numpyro_diffusion.factors.mmd_kernels import distance

STEPS, REACH, STRENGTH, LIMIT = 8, 0.9, 12.0, 0.78
COLOURS = "#30506d", "#c8553d"
WAYS = {"both above": (1, 1), "both below": (0, 0), "first above": (1, 0), "first below": (0, 1)}


def planner(start: float, goal: float, above: float) -> nd.GaussianMixture:
    """Paths of shape (2 * STEPS,) above or below the origin: what hides behind the score."""
    time = np.linspace(0, 1, STEPS)
    x = start + (goal - start) * time
    arch = 1.1 * np.sin(np.pi * time)
    kernel = lambda a, b: 0.3**2 * np.exp(-0.5 * (a[:, None] - b) ** 2 / 0.3**2)
    ends = np.array([0.0, 1.0])
    gain = kernel(time, ends) @ np.linalg.inv(kernel(ends, ends) + 1e-4 * np.eye(2))
    covariance = kernel(time, time) - gain @ kernel(ends, time) + 0.05**2 * np.eye(STEPS)
    covariance = np.kron(0.5 * (covariance + covariance.T), np.eye(2))
    means = [np.stack([x, side * arch], -1).ravel() for side in (1, -1)]
    return nd.GaussianMixture([above, 1 - above], means, [covariance] * 2)


PLANNERS = planner(-1.5, 1.5, 0.5), planner(1.5, -1.5, 0.7)


def score_alone(energy: nd.GaussianMixture) -> nd.ScoreFunction:
    mean, variance = energy.data_moments(jnp.asarray(energy.t_min))
    score = lambda energy, x, t: energy.score(x, t)
    settings = {"mean": mean, "variance": variance, "t_min": 0.02, "t_max": energy.t_max}
    return nd.ScoreFunction(score, energy.shape, energy.schedule, params=energy, **settings)


def as_path(x):
    return x.reshape(*x.shape[:-1], STEPS, 2)


def collision(first, second):
    """How much nearer than REACH the robots come, squared and summed over the time they are."""
    apart = jax.vmap(distance)(as_path(first), as_path(second))
    return jnp.sum(jnp.maximum(REACH - apart, 0.0) ** 2)


LIMITED = nd.samplers.projections.VelocityBall(LIMIT)


def project(x):
    return LIMITED(as_path(x)).reshape(x.shape)


def slack(x):
    return LIMITED.slack(as_path(x))


def model(robots):
    first, second = (
        numpyro.sample(f"robot {k + 1}", nd.DiffusionPrior(robot)) for k, robot in enumerate(robots)
    )
    numpyro.factor("apart", -STRENGTH * collision(first, second))


def fastest(paths):
    """The longest step of each path, shape (num, 2)."""
    return np.linalg.norm(np.diff(paths, axis=-2), axis=-1).max(-1)


def shares(paths, weights=None):
    """How often the robots go which way, by the middle of their paths."""
    above = paths[:, :, STEPS // 2 - 1 : STEPS // 2 + 1, 1].mean(-1) > 0
    weights = np.full(len(paths), 1 / len(paths)) if weights is None else weights
    return {name: float(weights @ (above == way).all(-1)) for name, way in WAYS.items()}


def reference(key, num: int):
    """Draws of the planners themselves, weighed by coupling and limit."""
    t = jnp.asarray(0.02)
    alpha, _ = PLANNERS[0].schedule(t)

    def one(key):
        keys = jax.random.split(key)
        x = jnp.stack([p.draw(k, t) for p, k in zip(PLANNERS, keys, strict=True)]) / alpha
        inside = jnp.all(jnp.stack([jnp.all(slack(path) >= 0) for path in x]))
        return x, jnp.where(inside, -STRENGTH * collision(*x), -jnp.inf)

    paths, log_w = jax.lax.map(one, jax.random.split(key, num), batch_size=10_000)
    weights = np.exp(np.asarray(log_w, float) - float(log_w.max()))
    weights /= weights.sum()
    print(f"reference: {1 / (weights**2).sum():.0f} draws' worth of {num}")
    return as_path(np.asarray(paths)), weights


def sample(robots, scheme, num: int):
    smc = nd.SMC(model, scheme, num_particles=num, num_chains=2, progress_bar=False)
    smc.run(jax.random.key(1), robots)
    print(nd.diagnostics.verdict(smc.result))
    draws = smc.get_samples()
    return as_path(np.stack([np.asarray(draws[f"robot {k}"]) for k in (1, 2)], 1))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few particles, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    levels, num = (6, 20) if options.tiny else (60, 500)

    scores = [score_alone(p) for p in PLANNERS]
    published = nd.schemes.unweighted(nd.Twisted(levels=levels, pilot=64), project)
    limited = [score + nd.factors.Restrict(slack) for score in scores]
    found = {
        "projected": sample(scores, published, num),
        "weighted": sample(limited, nd.Twisted(levels=levels, pilot=64), num),
    }
    exact, weights = reference(jax.random.key(2), 2_000 if options.tiny else 200_000)
    chosen = np.random.default_rng(0).choice(len(exact), num, p=weights)

    at_limit = lambda paths: (fastest(paths).max(-1) > LIMIT * (1 - 1e-4)).mean()
    rows = {name: (shares(x), fastest(x), at_limit(x)) for name, x in found.items()}
    rows["reference"] = shares(exact, weights), fastest(exact[chosen]), at_limit(exact[chosen])
    for name, (ways, steps, wall) in rows.items():
        words = ", ".join(f"{way} {share:.3f}" for way, share in ways.items())
        print(f"{name}: {words}; mean fastest step {steps.mean():.4f}, {wall:.2f} on the limit")

    paths = found | {"reference": exact[chosen]}
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.0), layout="constrained")
    for axis, (name, x) in zip(axes, paths.items(), strict=True):
        for pair in x[:40]:
            for path, colour in zip(pair, COLOURS, strict=True):
                axis.plot(*path.T, color=colour, linewidth=0.6, alpha=0.5)
        axis.set(title=name, xlim=(-2, 2), ylim=(-2.2, 2.2), aspect="equal")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "two_robots.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
