"""Latent powers of a prior, and latent labels, against quadrature and against an evidence for each label.

Powers: one datum, a prior to a latent power with a truncated log-normal prior. `gap` is the largest distance
of the distribution function of the power to that by quadrature, mean +- standard deviation over `--seeds`
runs and the largest of them; `SMC` has 4 clouds of 4,000 particles, NUTS and Gibbs sampling 8 chains of
1,500 draws. The evidence is its error and what the sampler says of it. The table
of the mixture is made once, by `normalizers.tabulate`.

Labels: noisy digits, whole images. The reference is the evidence of each label, from draws of the prior of
each (8 clouds of 512) weighed by the likelihood, which share nothing with the runs; its standard error is
by leaving clouds out. `gap` is the largest difference of a label's probability: of `SMC` with a latent label
(4 clouds of 512 particles), and, for some images, of `choice_evidences` (a run of 2 clouds of 256 for each
label); mean +- standard deviation over images.

Digits to a power: images drawn from the learned prior to the powers 0.5, 1 and 2, with noise; the power is a
latent variable, its normalisers are a table. Median over images of the posterior median (and where 68 % of
them lie), and how often the 50 and 90 % intervals hold the truth, +- what a binomial share has. At a fixed
power coverage need not be that of the interval. `coverage`: five images each at the medians of twenty equal
parts of the power's prior, over which it is.

What is done is kept in the file `--keep`, and a run that was cut off goes on from it.
"""

from functools import cache, partial
from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _kept import Kept
from _latent_digits import labels, recovery, spread
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy import stats

import numpyro_diffusion as nd

LOW, HIGH, SIGMA, Y = np.log(0.25), np.log(4.0), 0.5, jnp.array([2.4])
GAUSSIAN = nd.Gaussian([0.5], [[0.8]])
MIXTURE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
LINE = np.linspace(-20, 20, 8001)
PARTS = ("powers", "gibbs", "labels", "digits", "coverage")


def exact(prior):
    """Log evidence, grid and distribution function of the log of the power."""
    t = jnp.asarray(prior.t_min)
    logs = np.asarray(jax.vmap(lambda u: prior.log_density(u[None], t))(jnp.asarray(LINE)), float)
    seen = stats.norm.logpdf(float(Y[0]), LINE, SIGMA)
    total = lambda values: np.log(np.trapezoid(np.exp(values), LINE))
    grid = np.linspace(LOW, HIGH, 801)
    log_prior = stats.truncnorm(LOW / 0.5, HIGH / 0.5, 0, 0.5).logpdf(grid)
    joint = log_prior + [total(b * logs + seen) - total(b * logs) for b in np.exp(grid)]
    mass = np.exp(joint) * np.gradient(grid)
    return np.log(mass.sum()), grid, (np.cumsum(mass) - 0.5 * mass) / mass.sum()


def powers(kept, seeds, tiny, gibbs):
    """Rows of a Gaussian and of a mixture to a latent power, by `SMC` and NUTS or by Gibbs sampling."""
    grid = np.geomspace(0.25, 4.0, 4 if tiny else 7)
    size = 100 if tiny else 4000

    @cache
    def family():
        return nd.normalizers.tabulate(MIXTURE, grid, key=jax.random.key(0), num_particles=size)

    said = kept("table of the mixture", lambda: {"error": float(family().log_normalizer_error)})
    notes = [f"Largest error of the table of the mixture {said['error']:.3f} nats."]
    rows = []
    members = {
        "Gaussian": (GAUSSIAN, lambda b: b * GAUSSIAN),
        "mixture": (MIXTURE, lambda b: family().given(b)),
    }
    for name, (prior, member) in members.items():
        truth, places, cdf = exact(prior)

        def model(y, member=member):
            v = numpyro.sample("v", dist.TruncatedNormal(0.0, 0.5, low=LOW, high=HIGH))
            x = numpyro.sample("x", nd.DiffusionPrior(member(jnp.exp(v))))
            numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)

        def gap(draws, places=places, cdf=cdf):
            draws = np.sort(np.asarray(draws, float).ravel())
            ranks = (np.arange(len(draws)) + 0.5) / len(draws)
            return float(np.abs(np.interp(draws, places, cdf) - ranks).max())

        def by_smc(seed, model=model, truth=truth, gap=gap):
            family()  # outside of what is compiled
            smc = nd.SMC(model, num_particles=100 if tiny else 4000, progress_bar=False)
            smc.run(jax.random.key(seed), Y)
            said = {"off": float(smc.log_evidence - truth), "said": float(smc.log_evidence_error)}
            return {"gap": gap(smc.get_samples()["v"]), **said}

        def by_mcmc(chains, seed, gap=gap):
            family()
            chains.run(jax.random.key(seed), Y)
            return {"gap": gap(chains.get_samples()["v"])}

        if gibbs:
            sampler = "ParticleGibbs and NUTS"
            blocks = [(nd.ParticleGibbs(model), ["x"]), (NUTS(model), None)]
            chains = mcmc(Gibbs(blocks), 1500, tiny)
        else:
            runs = [kept(f"{name} SMC {s}", partial(by_smc, s)) for s in range(seeds)]
            off, said = (np.array([each[key] for each in runs]) for key in ("off", "said"))
            evidence = f"{off.mean():+.3f} +- {off.std():.3f}, said {said.mean():.3f}"
            rows.append([f"{name} to a power", "SMC", gaps(runs), evidence])
            sampler, chains = "NUTS", mcmc(NUTS(model), 1500, tiny)
        runs = [kept(f"{name} {sampler} {s}", partial(by_mcmc, chains, s)) for s in range(seeds)]
        rows.append([f"{name} to a power", sampler, gaps(runs), ""])
    return rows, notes


def mcmc(kernel, draws, tiny):
    """Eight chains that run side by side."""
    return MCMC(
        kernel,
        num_warmup=20 if tiny else draws // 5,
        num_samples=50 if tiny else draws,
        num_chains=8,
        chain_method=jax.vmap,
        progress_bar=False,
    )


def gaps(found):
    """Mean, spread and largest of the gaps."""
    values = [each["gap"] for each in found]
    return f"{spread(values)}, largest {max(values):.3f}"


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts")
    options.add_argument("--images", type=int, default=50, help="test digits with a latent label")
    options.add_argument("--runs", type=int, default=5, help="of them with a run for each label")
    options.add_argument("--data-sets", type=int, default=34, help="images of each power of digits")
    options.add_argument("--keep", type=Path, help="file of what is done so far, one a line")
    options.set_defaults(seeds=10)
    options = options.parse_args()
    tiny, kept = options.tiny, Kept(options.keep)
    seeds = 1 if tiny else options.seeds
    parts = {
        "powers": lambda: powers(kept, seeds, tiny, False),
        "gibbs": lambda: powers(kept, seeds, tiny, True),
        "labels": lambda: labels(kept, tiny, options.images, options.runs),
        "digits": lambda: recovery(kept, tiny, options.data_sets),
        "coverage": lambda: recovery(kept, tiny, 0, strata=20),
    }
    rows, notes = [], []
    for name in options.only:
        more = parts[name]()
        rows, notes = rows + more[0], notes + [n for n in more[1] if n not in notes]
    columns = ["prior or data", "sampler", "gap", "evidence, reference or coverage"]
    name = "-".join(["hyperparameters", *(options.only if options.only != PARTS else [])])
    _table.emit(name, __doc__, columns, rows, options.save, tuple(notes))


if __name__ == "__main__":
    main()
