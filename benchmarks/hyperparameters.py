"""Latent powers of a prior, and latent labels, against quadrature and against an evidence for each label.

Powers: one datum, a prior to a latent power with a truncated log-normal prior. `gap` is the largest distance
of the distribution function of the power to that by quadrature, `evidence` the error of the log evidence and
what the sampler says of it; means and standard deviations over seeds. The table of the mixture is made once,
by `normalizers.tabulate`; `largest error of the table` is its standard error, in nats.

Labels: noisy digits, whole images. `gap` is the largest difference of a label's probability between `SMC`
with a latent label and `choice_evidences`, whose own standard error stands beside it.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion.ppl import choice_evidences

LOW, HIGH, SIGMA, Y = np.log(0.25), np.log(4.0), 0.5, jnp.array([2.4])
GAUSSIAN = nd.Gaussian([0.5], [[0.8]])
MIXTURE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
LINE = np.linspace(-20, 20, 8001)


def exact(prior):
    """Log evidence, grid and distribution function of the log of the power."""
    t = jnp.asarray(prior.t_min)
    logs = np.asarray(jax.vmap(lambda u: prior.log_density(u[None], t))(jnp.asarray(LINE)), float)
    seen = stats.norm.logpdf(float(Y[0]), LINE, SIGMA)
    total = lambda values: np.log(np.trapezoid(np.exp(values), LINE))
    grid = np.linspace(LOW, HIGH, 401)
    law = stats.truncnorm(LOW / 0.5, HIGH / 0.5, 0, 0.5).logpdf(grid)
    joint = law + [total(b * logs + seen) - total(b * logs) for b in np.exp(grid)]
    mass = np.exp(joint) * np.gradient(grid)
    return np.log(mass.sum()), grid, (np.cumsum(mass) - 0.5 * mass) / mass.sum()


def powers(seeds, tiny):
    grid = np.geomspace(0.25, 4.0, 4 if tiny else 7)
    size = 100 if tiny else 2000
    family = nd.normalizers.tabulate(MIXTURE, grid, key=jax.random.key(0), num_particles=size)
    notes = [f"Largest error of the table {family.log_normalizer_error:.3f} nats."]
    rows = []
    laws = {"Gaussian": (GAUSSIAN, lambda b: b * GAUSSIAN), "mixture": (MIXTURE, family.given)}
    for name, (prior, law) in laws.items():
        truth, places, cdf = exact(prior)

        def model(y, law=law):
            v = numpyro.sample("v", dist.TruncatedNormal(0.0, 0.5, low=LOW, high=HIGH))
            x = numpyro.sample("x", nd.DiffusionPrior(law(jnp.exp(v))))
            numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)

        def gap(draws, places=places, cdf=cdf):
            draws = np.sort(np.asarray(draws, float).ravel())
            ranks = (np.arange(len(draws)) + 0.5) / len(draws)
            return np.abs(np.interp(draws, places, cdf) - ranks).max()

        found, evidences = [], []
        for seed in range(seeds):
            smc = nd.SMC(model, num_particles=100 if tiny else 2000, progress_bar=False)
            smc.run(jax.random.key(seed), Y)
            found.append(gap(smc.get_samples()["v"]))
            evidences.append((smc.log_evidence - truth, smc.log_evidence_error))
        off, said = np.transpose(evidences)
        evidence = f"{off.mean():+.3f} +- {off.std():.3f}, said {said.mean():.3f}"
        rows.append([name, "SMC", _spread(found), evidence])
        blocks = [(nd.ParticleGibbs(model), ["x"]), (NUTS(model), None)]
        for sampler, kernel in (("NUTS", NUTS(model)), ("ParticleGibbs and NUTS", Gibbs(blocks))):
            counts = (20, 50) if tiny else (300, 1500)
            mcmc = MCMC(
                kernel,
                num_warmup=counts[0],
                num_samples=counts[1],
                num_chains=8,
                chain_method=jax.vmap,
                progress_bar=False,
            )
            found = []
            for seed in range(seeds):
                mcmc.run(jax.random.key(seed), Y)
                found.append(gap(mcmc.get_samples()["v"]))
            rows.append([name, sampler, _spread(found), ""])
    return rows, notes


def labels(seeds, tiny, which):
    digits = nd.load_pretrained("digits-8x8-labels")
    images, truth = nd.pretrained.load_digits("test")

    def model(y):
        c = numpyro.sample("c", dist.Categorical(jnp.full(10, 0.1)))
        x = numpyro.sample("x", nd.DiffusionPrior(digits.given(c)))
        numpyro.sample("y", dist.Normal(x, 0.8).to_event(2), obs=y)

    rows = []
    for i in which[:1] if tiny else which:
        y = images[i] + 0.8 * jax.random.normal(jax.random.key(i), (8, 8))
        few = nd.SMC(model, num_particles=32 if tiny else 256, progress_bar=False)
        many = nd.SMC(model, num_particles=64 if tiny else 1024, progress_bar=False)
        sums = choice_evidences(model, "c", jax.random.key(1), y, smc=few)
        probs, found = np.exp(sums.log_probs), []
        for seed in range(seeds):
            c = np.asarray(many.run(jax.random.key(seed), y).get_samples()["c"]).ravel()
            shares = np.bincount(c, minlength=10) / c.size
            found.append(np.abs(shares - probs).max())
        top = probs.argmax()
        first = f"{truth[i]}: {top} with {probs[top]:.3f} +- {sums.standard_errors[top]:.3f}"
        rows.append([f"digit {first}", "SMC, latent label", _spread(found), ""])
        print(rows[-1], flush=True)
    return rows


def _spread(values):
    return f"{np.mean(values):.3f} +- {np.std(values):.3f}"


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--only", choices=("powers", "labels"), help="a part")
    options.add_argument("--images", type=int, nargs="*", default=[0, 7, 11], help="test digits")
    options = options.parse_args()
    seeds = 1 if options.tiny else options.seeds
    rows, notes = [], []
    if options.only != "labels":
        rows, notes = powers(seeds, options.tiny)
    if options.only != "powers":
        rows += labels(seeds, options.tiny, options.images)
    name = "hyperparameters" + (f"-{options.only}" if options.only else "")
    columns = ["prior or datum", "sampler", "gap", "evidence"]
    _table.emit(name, __doc__, columns, rows, options.save, tuple(notes))


if __name__ == "__main__":
    main()
