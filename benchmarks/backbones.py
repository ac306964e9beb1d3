"""What an energy and its score cost, in forward passes of the backbone.

One `value_and_grad` of the energy (value and score together) over one forward pass of its network, for a
batch of 256 examples: floating-point operations of the compiled programs, and seconds (median and 80 %
range of runs in turn).
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

NETS = {
    "MLP, 2 dimensions": ((2,), lambda key: nd.nets.ResidualMLP(key, (2,), width=64)),
    "MLP, 8x8 digits": ((8, 8), lambda key: nd.nets.ResidualMLP(key, (8, 8))),
    "U-Net, 8x8": ((8, 8), lambda key: nd.nets.UNet(key, (8, 8), channels=(16, 32))),
    "U-Net, 32x32": ((32, 32), lambda key: nd.nets.UNet(key, (32, 32), channels=(16, 32, 32))),
}


def compiled(function, x):
    program = jax.jit(jax.vmap(function)).lower(x).compile()
    return program, program.cost_analysis()["flops"]


def seconds(program, x) -> float:
    started = time.perf_counter()
    jax.block_until_ready(program(x))
    return time.perf_counter() - started


def main() -> None:
    options = _table.parser(__doc__)
    options = options.parse_args()
    batch, runs = (4, 2) if options.tiny else (256, 10 * options.seeds)
    rows, t = [], jnp.asarray(0.3)
    for name, (shape, make) in NETS.items():
        size = int(np.prod(shape))
        net = make(jax.random.key(0))
        for kind in (nd.InnerProductEnergy, nd.ProperEnergy):
            energy = kind(net, np.zeros(shape), np.linspace(0.5, 1.5, size))
            x = jax.random.normal(jax.random.key(1), (batch, *shape))
            forward, flops = compiled(lambda x, n=net: n(x, jnp.asarray(-0.2)), x)
            both, flops_both = compiled(lambda x, e=energy: e.energy_and_score(x, t), x)
            pairs = np.array([(seconds(forward, x), seconds(both, x)) for _ in range(runs)])
            ratios = pairs[:, 1] / pairs[:, 0]
            low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            rows.append([name, kind.__name__, f"{flops_both / flops:.2f}", spread])
    columns = ["backbone", "energy", "operations", "seconds"]
    _table.emit("backbones", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
