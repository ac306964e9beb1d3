"""Sites of tokens in NumPyro models, beside continuous ones, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion import discrete

KEY = jax.random.key(0)
D, V = 4, 3


class Neighbours:
    """A denoiser that mixes a field with the neighbours that are seen. It is no one's exact posterior."""

    def __call__(self, x_t):
        hot = jax.nn.one_hot(x_t, V)  # zeros for a mask
        around = jnp.pad(hot, ((1, 1), (0, 0)))
        return jnp.asarray([0.4, 0.0, -0.3]) + 1.1 * (around[:-2] + around[2:])


def energy(x, x_t):
    """Attraction of the ends, and a normaliser that is not 1."""
    return -0.8 * (x[0] == x[3]) + 0.2 * x[1] + 0.1 * jnp.sum(x_t == V)


MODEL = discrete.MaskedDiffusion(Neighbours(), D, V)
PLAIN = discrete.DiscreteDiffusionPrior(MODEL, steps=2)
TILTED = discrete.DiscreteDiffusionPrior(MODEL, energy, steps=2)
OFFSET = np.array([-1.0, 0.5, 1.5])
Y = np.array([0.2, 1.3, 1.1, -0.4])
PRIOR_MU, NOISE = (0.3, 1.2), 0.7


def by_token(prior, y):
    mu = numpyro.sample("mu", dist.Normal(*PRIOR_MU))
    z = numpyro.sample("z", prior)
    numpyro.deterministic("first", z[0])
    numpyro.sample("y", dist.Normal(mu + jnp.asarray(OFFSET)[z], NOISE).to_event(1), obs=y)


def together(prior, y):
    mu = numpyro.sample("mu", dist.Normal(*PRIOR_MU))
    z = numpyro.sample("z", prior)
    numpyro.sample("y", dist.Normal(mu + jnp.asarray(OFFSET)[z].sum(), NOISE), obs=y)


def exact(log_prior, mean_of, y, mu=PRIOR_MU):
    """Log evidence, probabilities of tokens, and mean of mu: linear and Gaussian given the tokens."""
    size, values = log_prior.ndim, len(log_prior)
    x = discrete.all_examples(size, values)
    y = np.atleast_1d(y)
    cov = NOISE**2 * np.eye(len(y)) + mu[1] ** 2
    gaps = y - mu[0] - np.stack([np.atleast_1d(mean_of(row)) for row in x])
    log_joint = log_prior.ravel() + multivariate_normal(np.zeros(len(y)), cov).logpdf(gaps)
    p = np.exp(log_joint - logsumexp(log_joint))
    probabilities = np.einsum("x,xiv->iv", p, np.eye(values)[x])
    gain = mu[1] ** 2 * np.linalg.solve(cov, np.ones(len(y)))
    return logsumexp(log_joint), probabilities, mu[0] + p @ (gaps @ gain)


CASES = {
    "by token": (by_token, lambda row: OFFSET[row], Y),
    "together": (together, lambda row: OFFSET[row].sum(), 2.4),
}


def assert_right(found, log_prior, case, tolerance=0.05):
    _, mean_of, y = CASES[case]
    evidence, probabilities, mean = exact(np.asarray(log_prior), mean_of, y)
    assert found.log_evidence_error < tolerance
    assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_error
    errors = found.probability_errors
    assert (np.abs(found.probabilities - probabilities) < 4.5 * errors + 2e-3).all()
    values, weights = found.get_weighted_samples()
    clouds = (weights * values["mu"]).sum(1) / weights.sum(1)
    assert abs(clouds.mean() - mean) < 4.5 * clouds.std(ddof=1) / len(clouds) ** 0.5 + 2e-3


@pytest.mark.parametrize(
    ("prior", "case"),
    [
        (TILTED, "by token"),
        (TILTED, "together"),
        pytest.param(PLAIN, "by token", marks=pytest.mark.long),
        pytest.param(PLAIN, "together", marks=pytest.mark.long),
    ],
)
def test_posterior_along_the_mask_levels(prior, case):
    model, _, y = CASES[case]
    found = discrete.sample_posterior(
        KEY, model, prior, y, num_particles=800, num_chains=8, num_moves=3
    )
    assert found.data.by_token == (case == "by token")
    assert found.evidence_is_normalized
    assert_right(found, prior.log_probs, case)
    draws = found.get_samples()
    assert draws["z"].shape == (6400, D)
    if case == "by token":
        assert (draws["first"] == draws["z"][:, 0]).all()


def test_prior_of_its_own_for_mu_depends_on_a_token():
    """The prior of a continuous site may depend on tokens."""

    def model(y):
        z = numpyro.sample("z", PLAIN)
        mu = numpyro.sample("mu", dist.Normal(2.0 * (z[0] == 1), 1.2))
        numpyro.sample("y", dist.Normal(mu, NOISE), obs=y)

    found = discrete.sample_posterior(
        KEY, model, 1.5, num_particles=1000, num_chains=8, num_moves=4
    )
    first = np.exp(np.asarray(PLAIN.log_probs)).sum((1, 2, 3))
    scale = (1.2**2 + NOISE**2) ** 0.5
    joint = first * np.exp(dist.Normal(2.0 * (np.arange(3) == 1), scale).log_prob(1.5))
    assert abs(found.log_evidence - np.log(joint.sum())) < 4 * found.log_evidence_error < 0.2
    gap = np.abs(found.probabilities[0] - joint / joint.sum())
    assert (gap < 4.5 * found.probability_errors[0] + 2e-3).all()


@pytest.mark.long
def test_known_density_of_more_tokens_than_are_summed():
    """A Markov chain of 11 bits; the masked diffusion knows its margins alone."""
    flip, size = 0.2, 11

    def log_density(x):
        changes = jnp.sum(x[1:] != x[:-1])
        return jnp.log(0.5) + changes * jnp.log(flip) + (size - 1 - changes) * jnp.log(1 - flip)

    base = discrete.MaskedDiffusion(lambda x_t: jnp.zeros((size, 2)), size, 2)
    prior = discrete.DiscreteDiffusionPrior(
        base, discrete.AutoregressiveEnergy(log_density, base), steps=6
    )
    assert prior.log_normalizer is None
    y = np.random.default_rng(3).normal(0.4, 0.9, size)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(*PRIOR_MU))
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(mu + 1.5 * z, NOISE).to_event(1), obs=y)

    found = discrete.sample_posterior(
        KEY, model, y, num_particles=800, num_chains=6, tempering=5, completions=6, num_moves=3
    )
    x = discrete.all_examples(size, 2)
    log_prior = np.asarray(jax.vmap(log_density)(x)).reshape((2,) * size)
    np.testing.assert_allclose(prior.log_prob(x), log_prior.ravel())
    evidence, probabilities, _ = exact(log_prior, lambda row: 1.5 * row, y)
    assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_error < 0.4
    errors = found.probability_errors
    assert (np.abs(found.probabilities - probabilities) < 4.5 * errors + 2e-3).all()
    assert errors.max() < 0.05


IMAGE = nd.Gaussian([0.3, 1.0], [[1.0, 0.4], [0.4, 0.6]])


FLAGS = discrete.DiscreteDiffusionPrior(
    discrete.MaskedDiffusion(lambda x_t: jnp.stack([0.0 * x_t, 0.5 * (x_t == 1) - 0.7], 1), 4, 2),
    lambda x, x_t: -0.9 * jnp.sum(x[1:] == x[:-1]),
    steps=2,
)


def beside_an_image(y):
    image = numpyro.sample("image", nd.DiffusionPrior(IMAGE))
    z = numpyro.sample("z", FLAGS)
    numpyro.sample("y", dist.Normal(image[0] + image[1] * z, NOISE).to_event(1), obs=y)


def test_summed_out_by_smc_beside_a_diffusion_site():
    scheme = nd.Annealed(pilot=64)
    smc = nd.SMC(beside_an_image, scheme, num_particles=200, num_chains=4, progress_bar=False)
    smc.run(KEY, Y)
    noise = float(IMAGE.schedule.noise_level(jnp.asarray(IMAGE.t_min))) ** 2
    cov = np.array([[1.0, 0.4], [0.4, 0.6]]) + noise * np.eye(2)
    x = discrete.all_examples(D, 2)
    value = []
    for row, log_prior in zip(x, np.asarray(FLAGS.log_probs).ravel(), strict=True):
        rows = np.stack([np.ones(D), row], 1)
        law = multivariate_normal(rows @ [0.3, 1.0], rows @ cov @ rows.T + NOISE**2 * np.eye(D))
        value.append(log_prior + law.logpdf(Y))
    p = np.exp(value - logsumexp(value))
    assert abs(smc.log_evidence - logsumexp(value)) < 4 * smc.log_evidence_error < 0.5
    probabilities = np.einsum("x,xiv->iv", p, np.eye(2)[x])
    np.testing.assert_allclose(smc.discrete_probabilities()["z"], probabilities, atol=0.04)
    assert smc.get_samples()["z"].shape[1:] == (D,)


def test_distribution_in_numpyro():
    assert abs(float(jnp.exp(TILTED.log_probs).sum()) - 1) < 1e-9
    assert TILTED.log_normalizer != 0.0 and PLAIN.log_normalizer == pytest.approx(0.0, abs=1e-9)
    rows = TILTED.enumerate_support()
    assert rows.shape == (81, 4)
    np.testing.assert_allclose(TILTED.log_prob(rows), TILTED.log_probs.ravel())
    draws = TILTED.sample(KEY, (20_000,))
    p = np.exp(np.asarray(TILTED.log_probs)).ravel()
    found = np.bincount(np.asarray(draws) @ [27, 9, 3, 1], minlength=81) / 20_000
    assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()
    assert TILTED.log_prob(jnp.asarray([0, 1, 3, 0])) == -jnp.inf
    again = jax.jit(lambda prior, x: prior.log_prob(x))(TILTED, rows)  # a pytree
    np.testing.assert_allclose(again, TILTED.log_prob(rows))


def test_more_tokens_have_no_probability():
    model = discrete.MaskedDiffusion(lambda x_t: jnp.zeros((12, 2)), 12, 2)
    prior = discrete.DiscreteDiffusionPrior(model)
    assert prior.sample(KEY, (3,)).shape == (3, 12)
    with pytest.raises(ValueError, match="sample_posterior"):
        prior.log_prob(jnp.zeros(12, int))
    one_step = discrete.DiscreteDiffusionPrior(model, steps=1)
    assert float(one_step.log_prob(jnp.zeros(12, int))) == pytest.approx(-12 * np.log(2))
    tilted = discrete.DiscreteDiffusionPrior(model, lambda x, x_t: 0.1 * x[0], steps=2)
    with pytest.warns(UserWarning, match="candidates"):
        tilted.sample(KEY)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (lambda: numpyro.sample("k", dist.Bernoulli(0.3)), "Bernoulli"),
        (lambda: numpyro.sample("x", nd.DiffusionPrior(IMAGE)), "DiffusionPrior"),
        (lambda: numpyro.sample("w", PLAIN), "one latent site"),
    ],
)
def test_sites_that_do_not_fit_are_refused(extra, word):
    def model():
        numpyro.sample("z", PLAIN)
        extra()

    with pytest.raises(ValueError, match=word):
        discrete.sample_posterior(KEY, model)
