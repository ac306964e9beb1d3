"""Log densities from scores: error against evaluations and seconds, beside the probability flow.

1,024 draws of a mixture of Gaussians whose log density is known: three components in 2 and 16 dimensions, ten
fitted to the 8x8 digits in 64. RMSE in nats over the points, evaluations of the score a point (a derivative
in one direction counts as one), seconds for all points without compilation. `score_formula` is the package's,
random or by quadrature; `probability_flow` too, with steps that adapt to a tolerance or equal ones. `sbgm` is
a public JAX package whose likelihood is the flow by equal steps of Tsit5 in its own coordinates, run here on
the same scores where it is importable (github.com/homerjed/sbgm; `PYTHONPATH` to a checkout).
"""

import importlib.util
import time

import _table
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from density import draws, mixture

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    ExactDivergence,
    GaussHermite,
    GaussLegendre,
    Hutchinson,
    Mirrored,
    ScoreFormula,
    Stratified,
)

BUDGETS = ((4, 2), (8, 4), (16, 8), (32, 16), (64, 32))
TOLERANCES = (1e-2, 1e-3, 1e-4)
FLOW_STEPS = (2, 4, 8, 16)
STEPS = (0.3, 0.1, 0.03, 0.01)


def problem(dimension: int) -> nd.GaussianMixture:
    if dimension < 64:
        return mixture(dimension)
    images, _ = nd.pretrained.load_digits("train")
    fitted = nd.energies.fit_mixture(
        nd.load_pretrained("digits-8x8"), images, 10, jax.random.key(0)
    )
    return fitted.energy


def formula_methods(dimension: int) -> dict:
    found = {
        f"score_formula, {times} times x {pairs} pairs": ScoreFormula(
            Stratified(times), Mirrored(pairs)
        )
        for times, pairs in BUDGETS[: 4 if dimension == 64 else None]
    }
    if dimension == 2:
        for times, nodes in ((8, 6), (12, 8), (16, 12), (24, 16)):
            found[f"score_formula, {times} nodes x {nodes}^2 noises"] = ScoreFormula(
                GaussLegendre(times), GaussHermite(nodes)
            )
    return found


def flow_methods(dimension: int) -> dict:
    divergences = {"exact": ExactDivergence(), "8 probes": Hutchinson(8)}
    if dimension == 2:
        divergences.pop("8 probes")
    found = {
        f"probability_flow, {name}, tolerance {tolerance:g}": nd.density.FlowDensity(
            divergence=divergence, rtol=tolerance, atol=tolerance
        )
        for name, divergence in divergences.items()
        for tolerance in TOLERANCES[: 1 if dimension == 64 else None]
    }
    found |= {
        f"probability_flow, {name}, {steps} steps of Bosh3": nd.density.FlowDensity(
            divergence=divergence, solver=diffrax.Bosh3(), num_steps=steps
        )
        for name, divergence in divergences.items()
        for steps in FLOW_STEPS[1 if dimension == 64 else 0 :]
    }
    return found


def by_sbgm(prior, points, exact: bool, step: float):
    """The peer's likelihood, its own prior at the end; evaluations are stages times derivatives."""
    from sbgm._ode import get_log_likelihood_fn
    from sbgm.sde import VPSDE

    schedule = prior.schedule
    integral = lambda t: (
        schedule.beta_min * t + 0.5 * (schedule.beta_max - schedule.beta_min) * t**2
    )
    sde = VPSDE(integral, dt=step, t0=prior.t_min, t1=prior.t_max)

    class Score(eqx.Module):
        prior: nd.AbstractEnergy

        def __call__(self, t, x, q=None, a=None):
            return self.prior.score(x, t)

    probes = None if exact else 8
    likelihood = get_log_likelihood_fn(Score(prior), sde, prior.shape, exact, probes)
    alpha_t, _ = schedule(jnp.asarray(prior.t_min))
    size = points.shape[1]
    run = jax.jit(
        lambda x, key: jax.lax.map(
            lambda at: likelihood(at[0], None, None, at[1]),
            (alpha_t * x, jax.random.split(key, len(x))),
            batch_size=256,
        )
    )
    steps = int(np.ceil((prior.t_max - prior.t_min) / step))
    cost = 6 * steps * (1 + (size if exact else 8))
    return lambda key: (run(points, key) + size * jnp.log(alpha_t), cost)


def timed(function, key):
    """Result and seconds of a second call; the first compiles."""
    jax.block_until_ready(function(key)[0])
    start = time.perf_counter()
    value, cost = function(key)
    jax.block_until_ready(value)
    return np.asarray(value), float(cost), time.perf_counter() - start


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--dimensions", nargs="+", type=int, default=[2, 16, 64])
    options = options.parse_args()
    peer = importlib.util.find_spec("sbgm") is not None
    rows = []
    for d in (2,) if options.tiny else options.dimensions:
        prior = problem(d)
        points = draws(prior, jax.random.key(d), 16 if options.tiny else 1024)
        exact = np.asarray(
            jax.vmap(lambda u, p=prior: p.log_density(u, jnp.asarray(p.t_min)))(points)
        )
        runs = {}
        for name, estimator in (formula_methods(d) | flow_methods(d)).items():

            def run(key, estimator=estimator, prior=prior, points=points):
                found = estimator(prior, points, key)
                return found.value, jnp.mean(found.num_evaluations)

            runs[name] = run
        if peer:
            for exactly in (True, False) if d > 2 else (True,):
                for step in STEPS[: 2 if d == 64 else None]:
                    name = f"sbgm, {'exact' if exactly else '8 probes'}, step {step:g}"
                    runs[name] = by_sbgm(prior, points, exactly, step)
        for name, run in runs.items():
            value, cost, seconds = timed(run, jax.random.key(1))
            rmse = float(np.sqrt(np.mean((value - exact) ** 2)))
            rows.append([d, name, f"{rmse:.2g}", f"{cost:.0f}", f"{seconds:.2g}"])
            print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    columns = ["d", "method", "RMSE", "evaluations", "seconds"]
    _table.emit("density_methods", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
