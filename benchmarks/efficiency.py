"""Cost of a run: network evaluations, time beyond them, and compilation.

For each model: network evaluations a particle and level (one for the weight, one a move, one more where
other sites are moved in between), the wall time of the engine's run over all levels, and the wall time of
the bare jitted evaluations that it needs: a scan over levels of the same number of batched
density-and-gradient calls, without resampling, accept steps, random numbers or weights. `ratio` is the
first over the second, the median over `--seeds` pairs with its range. It falls with the cost of one
evaluation: what is left is random numbers, accept steps and bookkeeping, of the same size for any
network. `compile` is the first run less a later one, pilot and engine together; `recompiled` counts the
programs compiled when data and key change.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_form import eight_dimensional

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import log_density


def digits():
    """A blurred digit with unknown noise level, under the learned prior."""
    energy = nd.load_pretrained("digits-8x8")
    images, _ = nd.pretrained.load_digits("test")
    blur = jnp.eye(8) * 0.5 + jnp.eye(8, k=1) * 0.25 + jnp.eye(8, k=-1) * 0.25

    def model(blur, y=None):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
        numpyro.sample("y", dist.Normal(blur @ x @ blur, sigma).to_event(2), obs=y)

    noise = np.random.default_rng(0).normal(size=(2, 8, 8))
    data = [blur @ images[i] @ blur + 0.1 * noise[i] for i in range(2)]
    return model, blur, data


def mixture():
    """The 8-D mixture of the tests, unknown noise level."""
    problem = eight_dimensional()
    return problem.model, problem.operator, [problem.data, problem.data + 0.1]


def untrained(width: int):
    """An energy over the same digits with a larger network, before training: for its cost alone."""
    net = nd.nets.ResidualMLP(jax.random.key(0), (8, 8), width=width, depth=2)
    images, _ = nd.pretrained.load_digits("train")
    return nd.ProperEnergy.from_data(net, images, noise_min=0.0625, noise_max=10.0)


def bare(bridge, levels, gradients: int, values: int, num_particles: int, num_chains: int):
    """The evaluations of a run and nothing else."""
    count = num_particles * num_chains
    density = lambda z, clock: log_density(bridge, z, clock, jnp.ones(()))[0]

    def one(z, clock):
        def again(z, _):
            value, slope = jax.value_and_grad(density)(z, clock)
            return jax.tree.map(lambda a, g: a + 1e-9 * (g + value), z, slope), None

        z, _ = jax.lax.scan(again, z, None, length=gradients)
        for _ in range(values):
            value = density(z, clock)
            z = {name: a + 1e-9 * value for name, a in z.items()}
        return z

    @jax.jit
    def run(z, clocks):
        return jax.lax.scan(lambda z, c: (jax.vmap(lambda a: one(a, c))(z), None), z, clocks)[0]

    z = jax.vmap(bridge.sample_base)(jax.random.split(jax.random.key(0), count))
    jax.block_until_ready(run(z, levels.clock))
    return lambda: jax.block_until_ready(run(z, levels.clock))


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(name, bridges, scheme, num_particles, num_chains, repeats) -> list:
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def once(seed, bridge):
        model = scheme(bridge, jax.random.key(seed))
        jax.block_until_ready(
            nd.run_smc(jax.random.key(seed), model, num_particles, num_chains=num_chains)
        )
        return model

    first = timed(lambda: once(0, bridges[0]))
    second = timed(lambda: once(0, bridges[0]))
    before = len(compiled)
    once(1, bridges[-1])
    recompiled = len(compiled) - before

    model = once(0, bridges[0])
    run = lambda seed: jax.block_until_ready(
        nd.run_smc(jax.random.key(seed), model, num_particles, num_chains=num_chains)
    )
    kernels = scheme.kernels(bridges[0])
    gradients = scheme.evaluations_per_level(bridges[0]) - kernels.in_blocks
    values = int(kernels.in_blocks)
    floor = bare(bridges[0], model.levels, gradients, values, num_particles, num_chains)
    floor(), run(0)
    pairs = [(timed(lambda s=s: run(s)), timed(floor)) for s in range(repeats)]
    ratios = np.array([a / b for a, b in pairs])
    return [
        name,
        f"{num_chains} x {num_particles}",
        len(model.levels.clock),
        scheme.evaluations_per_level(bridges[0]),
        f"{np.median([a for a, _ in pairs]):.2f}",
        f"{np.median([b for _, b in pairs]):.2f}",
        f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
        f"{first - second:.1f}",
        recompiled,
    ]


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    repeats, size = (1, 32) if options.tiny else (options.seeds, 512)
    rows = []
    for name, make in (("8-D mixture (no network), sigma", mixture), ("digits, sigma", digits)):
        model, operator, data = make()
        bridges = [nd.from_model(model, jnp.asarray(operator), y=jnp.asarray(y)) for y in data]
        rows.append(measure(name, bridges, nd.Annealed(), size, 4, repeats))
    prior = [nd.from_energy(nd.load_pretrained("digits-8x8"))]
    rows.append(measure("digits prior alone", prior, nd.Annealed(), size, 4, repeats))
    large = [nd.from_energy(untrained(128 if options.tiny else 640))]
    rows.append(measure("larger network, untrained", large, nd.Annealed(), size, 4, repeats))
    columns = ["model", "particles", "levels", "evaluations a level", "run [s]", "bare [s]"]
    columns += ["ratio", "compile [s]", "recompiled"]
    _table.emit("efficiency", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
