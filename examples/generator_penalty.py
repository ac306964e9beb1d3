"""A generator trained against a diffusion prior: the penalty alone, and with the generator's entropy.

The prior, three ridges in the plane, is seen through its scores alone. A generator z -> x is pushed towards
it by the score matching penalty, which is the cross-entropy -E log p of what it makes. With its own entropy
beside it (these generators know their volume) that is the whole divergence KL(generator || prior);
without it the generator collapses onto a mode, however good the scores.

    python examples/generator_penalty.py            about a minute on two cores
    python examples/generator_penalty.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import numpyro_diffusion as nd

prior = nd.GaussianMixture(
    [0.3, 0.3, 0.4],
    [[-1.8, 0.0], [0.0, 1.2], [1.6, -0.6]],
    [[[0.3, 0.25], [0.25, 0.5]], [[0.5, -0.2], [-0.2, 0.2]], [[0.2, 0.1], [0.1, 0.4]]],
)


class Generator(eqx.Module):
    """Eight affine couplings: one to one, so that the volume it makes is its entropy."""

    nets: list[eqx.nn.MLP]

    def __init__(self, key):
        keys = jax.random.split(key, 8)
        self.nets = [eqx.nn.MLP(1, 2, 32, 2, jax.nn.silu, key=key) for key in keys]

    def __call__(self, z):
        """The point made of `z`, and the logarithm of the volume made of a unit volume."""
        log_volume = 0.0
        for net in self.nets:
            shift, log_scale = net(z[:1])
            log_scale = 2 * jnp.tanh(0.5 * log_scale)
            z = jnp.stack([z[1] * jnp.exp(log_scale) + shift, z[0]])
            log_volume += log_scale
        return z, log_volume


def divergence(generator, key, entropy_weight, num=256):
    """Penalty less entropy: KL(generator || prior) in nats, where `entropy_weight` is 1."""
    key_z, key_penalty = jax.random.split(key)
    z = jax.random.normal(key_z, (num, 2))
    x, log_volume = jax.vmap(generator)(z)
    penalty = nd.density.score_matching_penalty(prior, x, key_penalty)
    return penalty - entropy_weight * (jnp.mean(log_volume) + jnp.log(2 * jnp.pi) + 1)


def train(entropy_weight: float, steps: int, seed: int = 0):
    generator = Generator(jax.random.key(seed))
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = optimiser.init(eqx.filter(generator, eqx.is_array))

    @eqx.filter_jit
    def run(generator, state, keys):
        arrays, rest = eqx.partition(generator, eqx.is_array)

        def step(carry, key):
            arrays, state = carry
            slope = jax.grad(
                lambda arrays: divergence(eqx.combine(arrays, rest), key, entropy_weight)
            )(arrays)
            updates, state = optimiser.update(slope, state)
            return (optax.apply_updates(arrays, updates), state), None

        (arrays, state), _ = jax.lax.scan(step, (arrays, state), keys)
        return eqx.combine(arrays, rest)

    return run(generator, state, jax.random.split(jax.random.key(seed + 1), steps))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    steps = 20 if options.tiny else 4000
    made = {}
    for name, weight in {"penalty alone": 0.0, "penalty and entropy": 1.0}.items():
        generator = train(weight, steps, options.seed)
        gap = [divergence(generator, jax.random.key(90 + i), 1.0, 2000) for i in range(4)]
        print(f"{name}: KL to the prior {np.mean(gap):.2f} +- {np.std(gap) / 2:.2f} nats")
        z = jax.random.normal(jax.random.key(7), (1500, 2))
        made[name] = np.asarray(jax.vmap(generator)(z)[0])

    side = np.linspace(-4, 4, 120)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1))
    log_p = jax.vmap(jax.vmap(lambda u: prior.log_density(u, jnp.asarray(prior.t_min))))(grid)
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True, layout="constrained")
    for axis, (name, x) in zip(axes, made.items(), strict=True):
        axis.contour(side, side, np.exp(log_p), levels=6, colors="#c8553d", linewidths=0.7)
        axis.scatter(*x.T, s=3, color="#30506d", alpha=0.5, linewidths=0)
        axis.set(title=name, xlim=(-4, 4), ylim=(-3, 4), aspect="equal")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "generator_penalty.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
