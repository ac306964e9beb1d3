"""Signals with heavy-tailed steps under one small learned prior: posteriors by our samplers and by peers'.

Signals and operators as in `levy.py`, and fresh signals. A network of 16 units learns the law of one
increment from 100,000 draws; the prior is that energy summed over the 64 increments, the same weights for
every method. `dB` is 10 log10 of the squared error of the posterior mean over that of Gibbs sampling with
the exact prior; `coverage` the share of signal values inside the central 90 % intervals; `distance` from the
posterior mean of Gibbs sampling, root mean square in its standard deviations, and `sd` the mean ratio of
standard deviations. Under the posterior increments hang together, so moves are told of 32 directions; the
default (`--default`) knows of none. SMC has 2 clouds of 512 particles, NUTS 2 chains of 300 + 500 draws.

Peers (`--peers`, where azula and torch can be imported) make 256 draws in 200 steps, from the same
network: their schedule asks it at the same ratio of noise to signal. `s` is the median time of a problem,
the first, which compiles, apart.
"""

import sys
import time

import _levy_peers
import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from equinox import field
from levy import DATA, FACTORS, OPERATORS, gibbs
from numpyro.infer import MCMC, NUTS, init_to_sample

import numpyro_diffusion as nd

SIZE = 64


class Increments(nd.AbstractEnergy):
    """Independent increments, each under the same energy of one number."""

    one: nd.AbstractEnergy
    log_normalizer: float | None = field(static=True, default=None)
    log_normalizer_error: float = field(static=True, default=0.0)

    @property
    def schedule(self):
        return self.one.schedule

    @property
    def shape(self):
        return (SIZE,)

    @property
    def t_min(self):
        return self.one.t_min

    @property
    def t_max(self):
        return self.one.t_max

    def energy(self, x, t):
        return jnp.sum(jax.vmap(lambda u: self.one.energy(u[None], t))(x))

    def moments(self, t):
        mean, variance = self.one.moments(t)
        return jnp.broadcast_to(mean, SIZE), jnp.broadcast_to(variance, SIZE)


def increments(rng, factor: str, shape):
    return rng.laplace(size=shape) if factor == "laplace1" else rng.standard_t(3, shape)


def learn(factor: str, steps: int):
    """The energy of one increment."""
    data = increments(np.random.default_rng(0), factor, (100_000, 1)).astype(np.float32)
    net = nd.nets.ResidualMLP(jax.random.key(0), (1,), width=16, depth=1)
    energy = nd.ProperEnergy.from_data(net, data, noise_min=0.05, noise_max=100.0)
    found = nd.fit(
        jax.random.key(1),
        energy,
        data,
        steps=steps,
        batch_size=512,
        learning_rate=5e-3,
        stopping=nd.train.EarlyStopping(check_every=max(steps // 4, 1), validation_repeats=1),
        progress_bar=False,
    )
    return Increments(found.energy)


def model(prior, operator, y, sigma):
    u = numpyro.sample("u", nd.DiffusionPrior(prior))
    numpyro.sample("y", dist.Normal(operator @ jnp.cumsum(u), sigma).to_event(1), obs=y)


def problem(factor: str, name: str, i: int):
    """A signal and its data. Rows of zeros make all operators square: one program serves all."""
    rng = np.random.default_rng([i, FACTORS.index(factor), OPERATORS.index(name)])
    x = np.cumsum(increments(rng, factor, SIZE))
    sigma = float(np.sqrt(DATA[f"{factor}_{name}_0_s2"]))
    rows = DATA[name].astype(float)
    operator = np.zeros((SIZE, SIZE))
    operator[: len(rows)] = rows
    return x, operator, operator @ x + sigma * rng.normal(size=SIZE), sigma


def by_smc(scheme, tiny):
    clouds, size = (2, 16) if tiny else (2, 512)
    smc = nd.SMC(model, scheme, num_particles=size, num_chains=clouds, progress_bar=False)

    def run(seed, prior, *args):
        smc.run(jax.random.key(seed), prior, *map(jnp.asarray, args))
        return np.asarray(smc.get_samples()["u"])

    return run


def by_nuts(tiny):
    warmup, num = (10, 10) if tiny else (300, 500)
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample),
        num_warmup=warmup,
        num_samples=num,
        num_chains=2,
        chain_method="sequential",
        jit_model_args=True,  # new data compile nothing
        progress_bar=False,
    )

    def run(seed, prior, *args):
        mcmc.run(jax.random.key(seed), prior, *map(jnp.asarray, args))
        return np.asarray(mcmc.get_samples()["u"])

    return run


def summary(x, truth, reference):
    """Squared errors, coverage, distance from the reference, ratio of standard deviations."""
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    mean, sd = reference.mean(0), reference.std(0)
    return (
        np.mean((x.mean(0) - truth) ** 2),
        np.mean((mean - truth) ** 2),
        np.mean((low < truth) & (truth < high)),
        np.mean(((x.mean(0) - mean) / sd) ** 2),
        np.mean(x.std(0) / sd),
    )


def compare(factor: str, names, num: int, options):
    """Rows of one law of increments: one for each method, over operators and signals."""
    prior = learn(factor, 20 if options.tiny else 3000)
    tiny, size = options.tiny, 16 if options.tiny else 256
    ranked = nd.Annealed(moves=nd.schemes.Moves(rank=32), pilot=512)
    methods = {"`Annealed`, rank 32": by_smc(nd.Annealed(levels=4) if tiny else ranked, tiny)}
    if options.default:
        methods["`Annealed`"] = by_smc(nd.Annealed(), tiny)
    methods["NUTS"] = by_nuts(tiny)
    if options.peers:
        methods |= _levy_peers.methods(prior, size, 20 if tiny else 200)
    found = {}
    for name in names:
        for i in range(num):
            truth, *data = problem(factor, name, i)
            operator, y, sigma = data
            rng = np.random.default_rng(i)
            started = time.perf_counter()
            reference = gibbs(rng, factor, operator, y, sigma**2, 4 if tiny else 8)
            draws = {"Gibbs, exact prior": (reference, time.perf_counter() - started)}
            for label, run in methods.items():
                started = time.perf_counter()
                x = np.cumsum(run(i, prior, *data), -1)
                draws[label] = x, time.perf_counter() - started
            for label, (x, seconds) in draws.items():
                row = *summary(x, truth, reference), seconds
                found.setdefault((name, label), []).append(row)
                cells = " ".join(f"{v:.3g}" for v in row)
                print(factor, name, i, label, cells, file=sys.stderr, flush=True)
    for (name, label), several in found.items():
        error, other, inside, distance, ratio = np.mean([row[:5] for row in several], 0)
        seconds = [row[5] for row in several]
        yield [
            factor,
            name,
            label,
            f"{10 * np.log10(error / other):.2f}",
            f"{inside:.3f}",
            f"{np.sqrt(distance):.3f}",
            f"{ratio:.2f}",
            f"{np.median(seconds[1:] or seconds):.1f}",
        ]


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--peers", action="store_true", help="run azula too")
    parser.add_argument("--default", action="store_true", help="run `Annealed` as it is too")
    parser.add_argument("--only", nargs="+", choices=FACTORS, default=FACTORS, help="some laws")
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=OPERATORS)
    parser.set_defaults(seeds=4)
    options = parser.parse_args()
    names, num = (["sample"], 1) if options.tiny else (options.operators, options.seeds)
    rows = [row for factor in options.only for row in compare(factor, names, num, options)]
    columns = ["increments", "operator", "method", "dB", "coverage", "distance", "sd", "s"]
    note = f"{num} signals an operator."
    parts = [options.only, options.operators]
    chosen = [
        n
        for part, whole in zip(parts, (FACTORS, OPERATORS), strict=True)
        if part != whole
        for n in part
    ]
    _table.emit("-".join(["levy_learned", *chosen]), __doc__, columns, rows, options.save, (note,))


if __name__ == "__main__":
    main()
