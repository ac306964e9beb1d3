"""Coupled priors in a box, a population pulled to a reference, and a cloud that flows to its data.

The box: the published toy of projected coupled diffusion, two Gaussian priors on the line that repel each
other with strength 32 and are to stay in [3, 6] and [1, 8]. Restricted by SMC, eight clouds of 1,000
particles; projected after each of 200 Langevin steps or, where steps are shorter, over the same total time;
16,000 chains. `far` is P(|x - y| >= 4), `on the wall` the share of draws on the boundary of the box.

The population: 64 variables with the prior 1/2 N(-1.5, 0.2) + 1/2 N(1.5, 0.2), pulled to a reference with
85 % on the left by the discrepancy under a Gaussian kernel of bandwidth 0.5. `limit` is the law of one of
infinitely many, a fixed point on a grid.

The flow: 1,000 particles from N(-1, 0.49) to 1,000 draws of N(1, 1) along the witness of the energy distance,
steps of 0.1.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kstest
from test_population import MODES, fixed_point, quantiles
from test_projections import HIGH, LOW, by_quadrature, coupled

import numpyro_diffusion as nd


def normalised(result) -> np.ndarray:
    weights = np.exp(result.log_weights - np.max(result.log_weights, -1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def with_error(values, digits: int = 3) -> str:
    values = np.asarray(values)
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def box(tiny: bool) -> list[list]:
    law, inside = coupled()
    far, mean, spread, log_evidence = by_quadrature(LOW, HIGH)
    rows = [
        ["quadrature", f"{far:.4f}", f"{mean:.4f}", f"{spread:.4f}", 1, 0, f"{log_evidence:.3f}"]
    ]
    model = nd.Annealed()(
        nd.from_energy(law + nd.factors.Restrict(inside.slack)), jax.random.key(0)
    )
    size = dict(num_particles=100, num_chains=2) if tiny else dict(num_particles=1000, num_chains=8)
    result = nd.run_smc(jax.random.key(1), model, **size)
    x, w = np.asarray(result.positions["x"])[..., 0], normalised(result)
    apart = np.abs(x[..., 0] - x[..., 1])
    of = lambda value: (w * value).sum(-1)
    spreads = of((apart - of(apart)[:, None]) ** 2) ** 0.5
    shares = [with_error(of(apart >= 4)), with_error(of(apart)), with_error(spreads)]
    rows.append(["restricted", *shares, 1, 0, with_error(result.log_evidence)])
    for step_size in (0.05, 0.005, 0.0005):
        num = 200 if tiny else 16_000
        draws = nd.samplers.projections.projected_langevin(
            jax.random.key(2),
            law,
            inside,
            step_size=step_size,
            num_steps=200 if tiny else round(10 / step_size),
            num_samples=num,
        )
        x = np.asarray(draws.positions)[..., 0]
        apart = np.abs(x[:, 0] - x[:, 1])
        wall = np.any((x == np.ravel(LOW)) | (x == np.ravel(HIGH)), -1)
        feasible = jnp.mean(jax.vmap(inside.contains)(draws.positions))
        shares = [with_error(apart >= 4), with_error(apart), f"{apart.std():.3f}", float(feasible)]
        rows.append([f"projected, step {step_size}", *shares, f"{wall.mean():.2f}", ""])
    return rows


def population(tiny: bool) -> list[list]:
    reference = quantiles([0.85, 0.15], [-1.5, 1.5], [0.2, 0.2], 40)
    num, particles, clouds = (8, 16, 2) if tiny else (64, 64, 4)
    kernel, rows = nd.factors.RBF(0.5), []
    for strength in (2.0, 8.0, 32.0):
        grid, q = fixed_point(strength)
        limit = q[grid < 0].sum() + 0.5 * q[grid == 0].sum()
        law = nd.energies.Joint(nd.GaussianMixture(*MODES), num) + nd.factors.MMD(
            reference, kernel, strength
        )
        scheme = nd.Annealed(
            moves=nd.schemes.Moves(nd.moves.hmc(4), 4),
            pilot=nd.schemes.Pilot(64, conditional_ess=0.9),
        )
        model = scheme(nd.from_energy(law), jax.random.key(0))
        result = nd.run_smc(jax.random.key(1), model, particles, num_chains=clouds)
        left = (normalised(result) * (np.asarray(result.positions["x"])[..., 0] < 0).mean(-1)).sum(
            -1
        )
        levels = result.trace.ess.shape[-1]
        evidence = with_error(result.log_evidence, 2)
        rows.append([f"{strength:g}", f"{limit:.4f}", with_error(left), evidence, levels])
        print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    return rows


def flow(tiny: bool) -> list[list]:
    num = 50 if tiny else 1000
    rng = np.random.default_rng(0)
    data, x = 1 + rng.standard_normal((num, 1)), -1 + 0.7 * rng.standard_normal((num, 1))
    rows, done, x = [], 0, jnp.asarray(x)
    for until in (100, 500, 1500):
        steps = 10 if tiny else until - done
        x = nd.factors.witness_flow(jax.random.key(0), x, jnp.asarray(data), num_steps=steps)
        done = until
        distance = kstest(np.asarray(x)[:, 0], data[:, 0]).statistic
        moments = [
            f"{float(a):.3f} / {float(b):.3f}" for a, b in zip(_two(x), _two(data), strict=True)
        ]
        rows.append([until, f"{distance:.4f}", *moments])
    return rows


def _two(x):
    return x.mean(), x.std()


PARTS = {
    "box": (
        box,
        "sampler|far|mean distance|its spread|in the box|on the wall|log evidence",
    ),
    "population": (population, "strength|left in the limit|left of 64|log evidence|levels"),
    "flow": (flow, "steps|Kolmogorov-Smirnov|mean of cloud / data|spread of cloud / data"),
}


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--only", choices=PARTS, help="one of the three parts")
    options = parser.parse_args()
    for name in [options.only] if options.only else PARTS:
        function, columns = PARTS[name]
        rows = function(options.tiny)
        _table.emit(f"coupled-{name}", __doc__, columns.split("|"), rows, options.save)


if __name__ == "__main__":
    main()
