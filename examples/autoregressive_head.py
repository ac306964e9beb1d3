"""The denoising loss of an autoregressive head is a likelihood, once its weights are right.

The next value of a series has two humps, depending on the last: x' ~ 1/2 N(a(x) + b(x), v) +
1/2 N(a(x) - b(x), v). A small conditional denoiser learns x' given x by its denoising loss, as the heads of
autoregressive image models do. With `likelihood_weight` a difference in loss is a difference in
log-likelihood, so early stopping and model choice by the loss are by likelihood; and the score-based density
formula gives the log-likelihood itself, here beside that of the truth.

    python examples/autoregressive_head.py            about two minutes on two cores
    python examples/autoregressive_head.py --tiny     a check that everything runs
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import numpyro_diffusion as nd

VARIANCE = 0.04


def humps(x):
    """Centres of the two humps of the next value."""
    centre, half = 0.6 * jnp.tanh(1.5 * x), 0.35 + 0.3 * jnp.cos(2 * x)
    return centre + half, centre - half


def log_density(x, following):
    upper, lower = humps(x)
    parts = jnp.stack([(following - upper) ** 2, (following - lower) ** 2])
    constant = 0.5 * jnp.log(2 * jnp.pi * VARIANCE) + jnp.log(2.0)
    return jax.nn.logsumexp(-0.5 * parts / VARIANCE, axis=0) - constant


def series(key, length: int):
    def step(x, key):
        key_hump, key_noise = jax.random.split(key)
        upper, lower = humps(x)
        mean = jnp.where(jax.random.bernoulli(key_hump), upper, lower)
        following = mean + VARIANCE**0.5 * jax.random.normal(key_noise)
        return following, following

    return jax.lax.scan(step, jnp.asarray(0.0), jax.random.split(key, length))[1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    length, steps = (400, 20) if options.tiny else (8000, 3000)
    key_data, key_net, key_fit, key_density = jax.random.split(jax.random.key(options.seed), 4)
    x = series(key_data, length + 1)
    last, following = x[:-1, None], x[1:, None]
    train, held_out = slice(None, int(0.8 * length)), slice(int(0.8 * length), None)

    net = nd.nets.ResidualMLP(key_net, (1,), width=64, condition=nd.nets.Vectors(key_net))
    energy = nd.InnerProductEnergy.from_data(
        net, np.asarray(following[train]), noise_min=0.02, noise_max=5.0
    )
    head = nd.NetworkDenoiser(energy)
    loss = partial(nd.train.denoising_loss, weight=nd.train.likelihood_weight)
    fitted = nd.fit(
        key_fit,
        head,
        following[train],
        condition=last[train],
        null_rate=0.0,
        validation=(following[held_out], last[held_out]),
        steps=steps,
        loss=loss,
        trainable=lambda head: head.base.net,
        progress_bar=not options.tiny,
    )

    def log_likelihood(model, x, y, key):
        """Log density of each next value given the last, with nothing random."""
        rule = nd.density.ScoreFormula(nd.density.GaussLegendre(24), nd.density.GaussHermite(24))
        return jax.jit(jax.vmap(lambda x, y: rule(model.given(x), y).value))(x, y)

    some = slice(held_out.start, held_out.start + (20 if options.tiny else 1000))
    found = {
        name: log_likelihood(model, last[some], following[some], key_density)
        for name, model in {"trained": fitted.energy, "untrained": head}.items()
    }
    truth = log_density(last[some], following[some])[:, 0]
    print("mean log-likelihood of a held-out value, in nats")
    print(f"  truth      {truth.mean():.3f}")
    for name, value in found.items():
        gap = truth - value
        error = gap.std() / len(gap) ** 0.5
        print(
            f"  {name:10} {value.mean():.3f}   below the truth by {gap.mean():.3f} +- {error:.3f}"
        )

    # The same difference from the losses: dimension times log range of the noise, times the loss.
    keys = jax.random.split(jax.random.key(9), 2 if options.tiny else 50)
    of = jax.jit(
        lambda model: jax.lax.map(
            lambda key: loss(model, key, following[some], condition=last[some]), keys
        )
    )
    log_range = np.log(5.0 / 0.02)
    difference = log_range * np.asarray(of(head) - of(fitted.energy))
    print(
        f"trained less untrained: {np.mean(found['trained'] - found['untrained']):.3f} by the formula, "
        f"{difference.mean():.3f} +- {difference.std() / len(keys) ** 0.5:.3f} by the losses"
    )

    grid = jnp.linspace(-2, 2, 161)[:, None]
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
    for axis, at in zip(axes, (-0.8, 0.0, 0.8), strict=True):
        here = jnp.full_like(grid, at)
        axis.plot(grid, np.exp(log_density(here, grid)), color="#c8553d", label="truth")
        density = np.exp(log_likelihood(fitted.energy, here, grid, key_density))
        axis.plot(grid, density, color="#30506d", label="head")
        axis.set(title=f"p(x' | x = {at})", xlabel="x'")
    axes[0].legend(frameon=False)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "autoregressive_head.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
