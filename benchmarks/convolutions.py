"""What a loop costs a U-Net on this device: convolutions of JAX against matrix products.

Milliseconds of one pass over a batch, alone and as one of five in `jax.lax.scan`, medians of runs in turn:
the value of the network, its gradient in the image (a score) and in the weights (a step of training). `jax`
is `jax.lax.conv_general_dilated`, `ours` is `nd.nets.convolve`.
"""

import time
from unittest import mock

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.nets import unet

SHAPES = {"8x8, batch of 128": ((8, 8), 128), "32x32, batch of 16": ((32, 32), 16)}
LENGTH = 5


def of_jax(x, weight, *, stride=1, padding=0):
    edges = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(x[None], weight, (stride, stride), edges)[0]


def passes(shape, batch):
    """By name, a function and what it is a function of; the output has the form of the input."""
    net = nd.nets.UNet(jax.random.key(0), shape, channels=(16, 32))
    weights, static = eqx.partition(net, eqx.is_inexact_array)
    images = jax.random.normal(jax.random.key(1), (batch, *shape))
    noise = jnp.linspace(-2.0, 2.0, batch)
    value = lambda w, x: jax.vmap(eqx.combine(w, static))(x, noise)
    loss = lambda w, x: jnp.sum(value(w, x) ** 2)
    return {
        "value": (lambda x: value(weights, x), images),
        "score": (jax.grad(lambda x: loss(weights, x)), images),
        "training": (jax.grad(lambda w: loss(w, images)), weights),
    }


def looped(function):
    def step(at, _):
        return jax.tree.map(lambda a, b: a - 1e-6 * b, at, function(at)), None

    return lambda at: jax.lax.scan(step, at, length=LENGTH)[0]


def milliseconds(program, at) -> float:
    started = time.perf_counter()
    jax.block_until_ready(program(at))
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    options = _table.parser(__doc__)
    options = options.parse_args()
    rows = []
    for name, (shape, batch) in SHAPES.items():
        for which in ("value", "score", "training"):
            programs = {}
            for way, function in (("jax", of_jax), ("ours", nd.nets.convolve)):
                with mock.patch.object(unet, "convolve", function):  # while it is traced
                    run, at = passes(shape, 2 if options.tiny else batch)[which]
                    for place, made in (("alone", run), ("in a loop", looped(run))):
                        programs[way, place] = jax.jit(made).lower(at).compile()
            times = {key: [] for key in programs}
            for _ in range(1 if options.tiny else 3 * options.seeds):
                for key, program in programs.items():
                    times[key].append(milliseconds(program, at))
            count = {"alone": 1, "in a loop": LENGTH}
            cells = [f"{np.median(v) / count[key[1]]:.3g}" for key, v in times.items()]
            rows.append([name, which, *cells])
    columns = ["images", "pass", "jax alone", "jax in a loop", "ours alone", "ours in a loop"]
    _table.emit("convolutions", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
