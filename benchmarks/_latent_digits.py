"""Latent labels and latent powers of the learned prior over digits; parts of `hyperparameters.py`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion.ppl import choice_evidences

NOISE = 0.8  # of the images with a latent label
POWERS, FINE, LOW, HIGH = (0.5, 1.0, 2.0), 0.3, np.log(0.25), np.log(4.0)


def prior_images(energy, key, num_particles, num_chains):
    """Images of a long run of a prior alone, and their log weights, each cloud by its evidence."""
    key_pilot, key_run = jax.random.split(key)
    run = nd.run_smc(
        key_run,
        nd.Annealed()(nd.from_energy(energy), key_pilot),
        num_particles,
        num_chains=num_chains,
    )
    logs = run.log_evidence[:, None] + jax.nn.log_softmax(run.log_weights, 1)
    return np.asarray(run.positions["x"], float), np.asarray(logs, float)


def labels(kept, tiny, count, runs):
    """Rows of latent labels: gaps to evidences of each label, by weighed draws of the prior and by runs."""
    digits = nd.load_pretrained("digits-8x8-labels")
    images, truth = nd.pretrained.load_digits("test")

    def model(y):
        c = numpyro.sample("c", dist.Categorical(jnp.full(10, 0.1)))
        x = numpyro.sample("x", nd.DiffusionPrior(digits.given(c)))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(2), obs=y)

    few = nd.SMC(model, num_particles=32 if tiny else 256, num_chains=2, progress_bar=False)
    many = nd.SMC(model, num_particles=64 if tiny else 512, progress_bar=False)
    datum = lambda i: images[i] + NOISE * jax.random.normal(jax.random.key(i), (8, 8))

    def by_draws():
        """Log evidence of every datum and label by each cloud of the label's prior: no run for the datum."""
        size, number = (64, 2) if tiny else (512, 8)
        logs = np.empty((count, number, 10))
        for c in range(10):
            x, weights = prior_images(digits.given(c), jax.random.key(100 + c), size, number)
            weights = weights - logsumexp(weights) + np.log(number)
            for i in range(count):
                gap = ((x - np.asarray(datum(i))) ** 2).sum((2, 3))
                logs[i, :, c] = logsumexp(weights - gap / (2 * NOISE**2), 1)
        return {"logs": logs.tolist()}

    def by_latent_label(i):
        c = np.asarray(many.run(jax.random.key(i), datum(i)).get_samples()["c"]).ravel()
        return {"p": (np.bincount(c, minlength=10) / c.size).tolist()}

    def by_runs(i):
        found = choice_evidences(model, "c", jax.random.key(1), datum(i), smc=few)
        return {"p": np.exp(found.log_probs).tolist(), "error": found.standard_errors.tolist()}

    count, runs = (1, 1) if tiny else (count, runs)
    logs = np.array(kept(f"labels {count} by draws", by_draws)["logs"])
    exact, error = shares(logs)
    latent = [kept(f"label {i} latent", lambda i=i: by_latent_label(i))["p"] for i in range(count)]
    each = [kept(f"label {i} by runs", lambda i=i: by_runs(i)) for i in range(runs)]
    latent, by_run = np.array(latent), np.array([one["p"] for one in each])
    rows = []
    for name, found, error_of in (
        ("SMC, latent label", latent, None),
        ("a run for each label", by_run, np.array([one["error"] for one in each])),
    ):
        gaps = np.abs(found - exact[: len(found)]).max(1)
        said = "" if error_of is None else f", said +- {error_of.max(1).mean():.3f}"
        within = f"{np.mean(gaps < 0.03):.0%} below 0.03, largest {gaps.max():.3f}{said}"
        text = f"{within}; reference +- {error[: len(found)].max(1).mean():.3f}"
        rows.append([f"labels of {len(found)} digits", name, spread(gaps), text])
    most = (latent.argmax(1) == np.asarray(truth[:count])).mean()
    note = f"{np.sum(exact.max(1) < 0.95)} of the {count} digits have no label of probability 0.95; the "
    note += f"likeliest label is the true one for {most:.0%} (latent label) and "
    note += f"{(exact.argmax(1) == np.asarray(truth[:count])).mean():.0%} (reference)."
    return rows, [note]


def shares(logs):
    """Probabilities of labels from log evidences `(data, clouds, labels)`; errors by leaving clouds out."""
    softmax = lambda logs: np.exp(logs - logsumexp(logs, -1, keepdims=True))
    number = logs.shape[1]
    left = [softmax(logsumexp(np.delete(logs, j, 1), 1)) for j in range(number)]
    return softmax(logsumexp(logs, 1)), np.sqrt((number - 1) * np.var(left, 0))


def recovery(kept, tiny, count, strata=0):
    """Rows of powers of the digits prior that are found again: three of them, or strata of their prior."""
    energy = nd.load_pretrained("digits-8x8")
    nodes = np.geomspace(np.exp(LOW), np.exp(HIGH), 4 if tiny else 7)
    size, number = (32, 2) if tiny else (256, 8)
    prior = stats.truncnorm(LOW / 0.5, HIGH / 0.5, 0, 0.5)
    places = np.exp(prior.ppf((np.arange(strata) + 0.5) / max(strata, 1)))

    @cache
    def family():
        return nd.normalizers.tabulate(
            energy, nodes, key=jax.random.key(0), num_particles=size, num_chains=number
        )

    def model(y):
        v = numpyro.sample("v", dist.TruncatedNormal(0.0, 0.5, low=LOW, high=HIGH))
        x = numpyro.sample("x", nd.DiffusionPrior(family().given(jnp.exp(v))))
        numpyro.sample("y", dist.Normal(x, FINE).to_event(2), obs=y)

    smc = nd.SMC(model, num_particles=16 if tiny else 128, progress_bar=False)

    def one(images, i, seed):
        family()  # outside of what is compiled
        y = images()[i] + FINE * jax.random.normal(jax.random.key(seed), (8, 8))
        v = np.asarray(smc.run(jax.random.key(seed), y).get_samples()["v"], float).ravel()
        return {"v": np.quantile(v, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()}

    def found(name, power, seed, number):
        images = cache(partial(images_to_a_power, energy, power, seed, tiny, number))
        runs = [
            kept(f"{name} {i}", partial(one, images, i, 1000 * seed + i)) for i in range(number)
        ]
        return [(np.log(power), each["v"]) for each in runs]

    rows = []
    fixed = () if strata else POWERS
    for k, power in enumerate(fixed[:1] if tiny else fixed):
        runs = found(f"power {power}", power, 7 + k, 1 if tiny else count)
        middle = np.exp([v[2] for _, v in runs])
        low, high = np.quantile(middle, [0.16, 0.84])
        said = f"median {np.median(middle):.2f} ({low:.2f} to {high:.2f})"
        rows.append(
            [
                f"digits to the power {power}, {len(runs)} images",
                "SMC",
                "",
                f"{said}, {covered(runs)}",
            ]
        )
    runs = []
    for k, power in enumerate(places[:1] if tiny else places):
        runs += found(f"drawn {power:.3f}", float(power), 100 + k, 1 if tiny else 5)
    if runs:
        rows.append(
            [f"digits to powers of the prior, {len(runs)} images", "SMC", "", covered(runs)]
        )
    said = kept("table of digits", lambda: {"error": float(family().log_normalizer_error)})
    return rows, [f"Largest error of the table of digits {said['error']:.2f} nats."]


def covered(runs):
    """How often the 50 and 90 % intervals hold the truth, and what a binomial share has."""
    true, v = np.array([truth for truth, _ in runs]), np.array([quantiles for _, quantiles in runs])
    share = lambda low, high, p: (
        f"{100 * p:.0f} %: {np.mean((v[:, low] < true) & (true < v[:, high])):.0%} +- "
        f"{np.sqrt(p * (1 - p) / len(true)):.0%}"
    )
    return f"{share(1, 3, 0.5)}, {share(0, 4, 0.9)}"


def images_to_a_power(energy, power, seed, tiny, count):
    """Images from the prior to a power, each a particle of a long run."""
    member = nd.energies.Powers(energy)(jnp.asarray(power))
    size, number = (32, 2) if tiny else (512, 4)
    x, logs = prior_images(member, jax.random.key(seed), size, number)
    weights = np.exp(logs - logs.max()).ravel()
    chosen = np.random.default_rng(seed).choice(
        weights.size, 1 if tiny else count, p=weights / weights.sum()
    )
    return x.reshape(-1, 8, 8)[chosen]


def spread(values):
    return f"{np.mean(values):.3f} +- {np.std(values):.3f}"
