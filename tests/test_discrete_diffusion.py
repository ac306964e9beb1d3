"""Masked diffusion over tokens against enumeration: bounds, energies, weighted steps, evidence."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import discrete

KEY = jax.random.key(0)


class Table(eqx.Module):
    """The exact denoiser of a distribution that is known by its table."""

    probs: jax.Array  # one axis a token

    def seen(self, x_t):
        """Probability of each example that agrees with what is seen."""
        examples = discrete.all_examples(self.probs.ndim, len(self.probs))
        agrees = (x_t == len(self.probs)) | (x_t == examples)
        return jnp.where(agrees.all(1), self.probs.ravel(), 0.0)

    def __call__(self, x_t):
        examples = discrete.all_examples(self.probs.ndim, len(self.probs))
        hot = jax.nn.one_hot(examples, len(self.probs))
        return jnp.log(jnp.tensordot(self.seen(x_t), hot, 1))

    def log_density(self, x):
        return jnp.log(self.probs[tuple(x)])


class Residual(eqx.Module):
    """log p_theta - log q given what is seen, the energy that noise-contrastive estimation leads to."""

    model: discrete.MaskedDiffusion
    truth: Table

    def __call__(self, x, x_t):
        log_q = self.truth.log_density(x) - jnp.log(self.truth.seen(x_t).sum())
        return self.model.log_prob_given(x, x_t) - log_q


class Skewed(eqx.Module):
    """An energy whose kernels are not normalised."""

    energy: Residual

    def __call__(self, x, x_t):
        return self.energy(x, x_t) + 0.5 * jnp.sum(x_t == 0) - 0.5 * x[0]


class Rough(eqx.Module):
    """A denoiser that is off: flattened."""

    table: Table

    def __call__(self, x_t):
        return 0.6 * self.table(x_t)


def potts():
    """A chain of four tokens of three values with attraction, and a field that makes values differ."""
    examples = discrete.all_examples(4, 3)
    field = np.array([0.3, -0.2, 0.0])
    value = 1.2 * (examples[:, 1:] == examples[:, :-1]).sum(1) + field[examples].sum(1)
    value = value + 0.5 * (examples[:, 0] == 2)
    return jnp.asarray(np.exp(value) / np.exp(value).sum()).reshape((3,) * 4)


POTTS = Table(potts())
MODEL = discrete.MaskedDiffusion(Rough(POTTS), 4, 3)
ENERGY = Residual(MODEL, POTTS)
TABLE = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))


@functools.partial(eqx.filter_jit)
def draws(key, model, energy, candidates, steps, num):
    keys = jax.random.split(key, num)
    one = lambda key: discrete.sample_tokens(key, model, energy, candidates=candidates, steps=steps)
    return jax.lax.map(one, keys, batch_size=2000)


def shares(x, num_values):
    """Share of each example among draws."""
    code = np.asarray(x) @ num_values ** np.arange(x.shape[1])[::-1]
    return np.bincount(code, minlength=num_values ** x.shape[1]) / len(x)


@pytest.mark.parametrize(("candidates", "invalid"), [(1, 0.5), (2, 0.25), (4, 0.0625), (8, 2**-8)])
def test_candidates_halve_the_invalid_mass_of_correlated_bits(candidates, invalid):
    """With the other sign of the energy it would be 1 - 2^-k."""
    bits = Table(jnp.asarray([[0.5, 0.0], [0.0, 0.5]]))
    model = discrete.MaskedDiffusion(bits, 2, 2)
    energy = lambda x, x_t: jnp.where(x[0] == x[1], 0.0, 50.0)
    num = 20_000
    found = draws(KEY, model, energy, candidates, 1, num)
    share = float((found.x[:, 0] != found.x[:, 1]).mean())
    assert abs(share - invalid) < 3 * (invalid * (1 - invalid) / num) ** 0.5
    # The mean of exp(-E) is 1/2, whatever the number of candidates.
    normalizer = np.exp(np.asarray(found.log_normalizers)[:, 0])
    assert abs(normalizer.mean() - 0.5) < 4 * (0.25 / candidates / num) ** 0.5


def test_contrastive_energy_of_an_enumerated_joint():
    numbers = np.random.default_rng(0)
    q = jnp.asarray(numbers.dirichlet(np.ones(9)))
    p = jnp.asarray(np.outer(numbers.dirichlet(np.ones(3)), numbers.dirichlet(np.ones(3))).ravel())

    def loss(energy):
        pairs = discrete.contrastive_loss(energy[:, None], energy[None, :])
        return q @ pairs @ p

    energy = jnp.zeros(9)
    step = jax.jit(
        lambda e: e - jnp.linalg.solve(jax.hessian(loss)(e) + 1e-12 * jnp.eye(9), jax.grad(loss)(e))
    )
    for _ in range(30):
        energy = step(energy)
    np.testing.assert_allclose(energy, jnp.log(p / q), atol=1e-3)
    assert abs(float(p @ jnp.exp(-energy)) - 1) < 1e-3


def test_loss_over_maskings_is_least_at_the_residual():
    """The loss of `nce_loss` in the mean: no change of the energy of the truth makes it smaller."""
    numbers = jax.random.split(KEY, 8_000)
    data = jax.random.categorical(KEY, jnp.log(POTTS.probs.ravel()), shape=(8_000,))
    examples = jnp.asarray(discrete.all_examples(4, 3))[data]

    @jax.jit
    def slopes(key, x):
        def loss(step, direction):
            changed = lambda x, x_t: ENERGY(x, x_t) + step * direction(x, x_t)
            return discrete.nce_loss(changed, key, x[None], MODEL)

        along = (
            lambda x, x_t: 1.0,
            lambda x, x_t: 1.0 * (x[0] == x[1]),
            lambda x, x_t: jnp.sum(x_t == 3) / 4.0,
            lambda x, x_t: x[3] * (x_t[1] == 3.0),
        )
        return jnp.stack([jax.grad(loss)(0.0, d) for d in along])

    each = np.asarray(jax.lax.map(lambda a: slopes(*a), (numbers, examples), batch_size=2000))
    error = each.std(0) / len(each) ** 0.5
    assert (np.abs(each.mean(0)) < 4 * error).all(), (each.mean(0), error)
    assert (error < 0.02).all()


def test_bound_is_the_mean_over_orders():
    """Against the chain that reveals one token at a time, order by order."""
    import itertools

    x = jnp.asarray([0, 0, 2, 1])
    terms = []
    for order in itertools.permutations(range(4)):
        x_t, total = MODEL.all_masked, 0.0
        for i in order:
            total += MODEL.log_probs(x_t)[i, x[i]]
            x_t = x_t.at[i].set(x[i])
        terms.append(total)
    each = jax.lax.map(
        lambda key: discrete.masked_elbo(MODEL, key, x), jax.random.split(KEY, 5_000)
    )
    error = float(each.std()) / 5_000**0.5
    assert abs(float(each.mean()) - np.mean(terms)) < 4 * error
    exact = discrete.log_mass(MODEL)[tuple(x)]
    assert abs(float(exact) - jax.nn.logsumexp(jnp.asarray(terms)) + np.log(24)) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_draws_follow_the_enumerated_chain(steps):
    exact = np.exp(np.asarray(discrete.log_mass(MODEL, steps=steps))).ravel()
    assert abs(exact.sum() - 1) < 1e-9
    found = shares(draws(KEY, MODEL, None, 1, steps, 20_000).x, 3)
    assert (np.abs(found - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-9).all()


def test_normalised_kernels_have_the_distribution_of_the_data():
    for steps in (1, 2, 3):
        exact = np.exp(np.asarray(discrete.log_mass(MODEL, ENERGY, steps=steps)))
        np.testing.assert_allclose(exact, POTTS.probs, rtol=1e-9)


def test_total_variation_falls_with_candidates():
    num, distance = 10_000, []
    for candidates in (1, 4, 16):
        found = shares(draws(KEY, MODEL, ENERGY, candidates, 2, num).x, 3)
        distance.append(0.5 * np.abs(found - np.asarray(POTTS.probs).ravel()).sum())
    # What is left in the end is mostly the noise of the shares.
    p = np.asarray(POTTS.probs).ravel()
    noise = 0.5 * np.sqrt(2 * p * (1 - p) / np.pi / num).sum()
    assert distance[0] > 2 * distance[1] > 2 * distance[2], distance
    assert distance[0] > 5 * noise and distance[2] < 2 * noise, (distance, noise)


def assert_chain(chain, log_joint, num_particles=2000, tolerance=0.05):
    """Evidence and probabilities of a run against those of an unnormalised table, within errors."""
    result = nd.run_smc(KEY, chain, num_particles, num_chains=8)
    truth = float(jax.nn.logsumexp(log_joint))
    ratio = np.exp(np.asarray(result.log_evidence) - truth)
    error = ratio.std(ddof=1) / 8**0.5
    assert abs(ratio.mean() - 1) < 4 * error and error < tolerance, (ratio, error)
    weights = np.asarray(jax.nn.softmax(result.log_weights, -1))
    hot = np.asarray(jax.nn.one_hot(result.positions["tokens"], 3))
    found = np.einsum("cn,cniv->civ", weights, hot)
    p = np.exp(np.asarray(log_joint) - truth)
    exact = np.stack([p.sum(tuple(j for j in range(4) if j != i)) for i in range(4)])
    error = found.std(0, ddof=1) / 8**0.5
    assert (np.abs(found.mean(0) - exact) < 4.5 * error + 1e-3).all(), (found.mean(0), exact)
    pairs = np.einsum("cn,cn->c", weights, hot[:, :, 0].argmax(-1) == hot[:, :, 2].argmax(-1))
    exact = sum(p[v, :, v].sum() for v in range(3))
    assert abs(pairs.mean() - exact) < 4.5 * pairs.std(ddof=1) / 8**0.5 + 1e-3
    return result


def log_likelihoods():
    """Of all examples: by a table, and of a datum that sees two tokens together."""
    x = discrete.all_examples(4, 3)
    by_token = np.asarray(TABLE)[np.arange(4), x].sum(1).reshape((3,) * 4)
    together = (-0.5 * ((x[:, 0] - x[:, 3]) - 1.0) ** 2 / 0.25).reshape((3,) * 4)
    return by_token, together


def together(x):
    return -0.5 * ((x[0] - x[3]) - 1.0) ** 2 / 0.25


@pytest.mark.parametrize("steps", [1, 2])
def test_chain_with_energy_and_table(steps):
    energy = Skewed(ENERGY)
    exact = np.asarray(discrete.log_mass(MODEL, energy, steps=steps))
    chain = discrete.masked_chain(MODEL, energy, discrete.TokenTable(TABLE), steps=steps)
    result = assert_chain(chain, exact + log_likelihoods()[0])
    assert not result.normalized and result.exact


def test_normaliser_of_the_energy_alone():
    energy, window = Skewed(ENERGY), (0.4, 0.8)  # the second step alone
    exact = discrete.log_mass(MODEL, energy, steps=2, window=window)
    assert abs(float(jax.nn.logsumexp(exact))) > 0.1
    assert_chain(discrete.masked_chain(MODEL, energy, steps=2, window=window), exact)


def test_chain_with_data_that_see_tokens_together():
    exact = np.asarray(discrete.log_mass(MODEL, steps=3)) + log_likelihoods()[1]
    data = discrete.TokenLikelihood(together)
    result = assert_chain(discrete.masked_chain(MODEL, data=data, steps=3, tempering=2), exact)
    assert result.normalized


@pytest.mark.parametrize("data", [discrete.TokenTable(TABLE), discrete.TokenLikelihood(together)])
def test_known_density_is_the_target_whatever_the_denoiser(data):
    energy = discrete.AutoregressiveEnergy(POTTS.log_density, MODEL)
    by_token, joint = log_likelihoods()
    value = by_token if isinstance(data, discrete.TokenTable) else joint
    exact = np.log(np.asarray(POTTS.probs)) + value
    assert_chain(discrete.masked_chain(MODEL, energy, data, steps=2), exact)


def test_a_likelihood_that_rules_values_out():
    table = jnp.where(jnp.eye(4, 3, dtype=bool), -jnp.inf, TABLE)
    exact = np.asarray(discrete.log_mass(MODEL, steps=2))
    x = discrete.all_examples(4, 3)
    value = np.asarray(table)[np.arange(4), x].sum(1).reshape((3,) * 4)
    assert_chain(
        discrete.masked_chain(MODEL, data=discrete.TokenTable(table), steps=2), exact + value
    )


def test_nan_and_infinity_are_not_passed_over():
    wrong = discrete.TokenLikelihood(lambda x: jnp.where((x == 2).sum() > 2, jnp.nan, 0.0))
    with pytest.warns(UserWarning, match="`data`"):
        nd.run_smc(KEY, discrete.masked_chain(MODEL, data=wrong, steps=2), 200)
    below = lambda x, x_t: jnp.where(x[0] == 1, -jnp.inf, 0.0)
    with pytest.raises(FloatingPointError, match="`energy`"):
        nd.run_smc(KEY, discrete.masked_chain(MODEL, below, steps=2), 200)


UNIFORM = discrete.MaskedDiffusion(lambda x: jnp.zeros((2, 2)), 2, 2)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_masses_of_an_energy_with_any_offset(offset):
    """Exponentials of the offset are no numbers; the prior is that without it."""
    energy = lambda x, x_t: offset + 0.7 * (x[0] == x[1])
    prior = discrete.DiscreteDiffusionPrior(UNIFORM, energy, steps=1)
    exact = jax.nn.log_softmax(-0.7 * jnp.eye(2).ravel()).reshape(2, 2)
    np.testing.assert_allclose(prior.log_probs, exact, atol=2e-4)
    mass = 0.5 * (1 + np.exp(-0.7))
    np.testing.assert_allclose(prior.log_normalizer, np.log(mass) - offset, rtol=1e-5)


def test_what_is_no_number_is_no_example():
    """A denoiser or an energy that is NaN, or leaves nothing, gave the first value of each token."""
    for energy in (lambda x, x_t: jnp.nan * x[0], lambda x, x_t: jnp.inf + 0.0 * x[0]):
        with pytest.raises(FloatingPointError, match="at step 0 of 2 the mean of exp.-E."):
            discrete.sample_tokens(jax.random.key(0), UNIFORM, energy)
    with pytest.raises(FloatingPointError, match="log probabilities less energies are NaN"):
        discrete.log_mass(UNIFORM, lambda x, x_t: jnp.nan * x[0])
    with pytest.raises(ValueError, match="a finite mass; got exp.-inf"):
        discrete.DiscreteDiffusionPrior(UNIFORM, lambda x, x_t: jnp.inf + 0.0 * x[0])
    with pytest.raises(ValueError, match="a residual energy of ONE example is one number"):
        discrete.log_mass(UNIFORM, lambda x, x_t: 1.0 * x)


def test_what_is_no_value_of_a_token():
    prior = discrete.DiscreteDiffusionPrior(UNIFORM)
    np.testing.assert_array_equal(prior.log_prob(jnp.asarray([[0.5, 1.0], [0, 2]])), -np.inf)
    with pytest.raises(ValueError, match="axis of 2 tokens; got shape .3,.*own enumeration"):
        prior.log_prob(jnp.zeros(3, int))
    for wrong in (-1, 2):  # 2 is the mask
        assert np.isnan(UNIFORM.log_prob_given(jnp.asarray([0, wrong]), UNIFORM.all_masked))
    with pytest.raises(TypeError, match="`x` must hold integers"):
        discrete.masked_elbo(UNIFORM, jax.random.key(0), jnp.asarray([0.0, 1.0]))
