"""Training over tokens: what is learned, against the distribution that data were drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import discrete

KEY = jax.random.key(0)


def truth():
    """Three tokens of three values: a chain in which a value is followed by itself or the next one."""
    step = np.array([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.0, 0.7]])
    return np.array([0.5, 0.3, 0.2])[:, None, None] * step[:, :, None] * step[None]


P = truth()
ROWS = np.random.default_rng(0).choice(27, 4000, p=P.ravel())
DATA = discrete.all_examples(3, 3)[ROWS]
FAST = {
    "steps": 600,
    "progress_bar": False,
    "learning_rate": 5e-3,
    "optimizer": nd.train.Optimizer(ema=0.99),
    "stopping": nd.train.EarlyStopping(check_every=200, validation_repeats=4),
}


def distance(log_mass):
    return 0.5 * np.abs(np.exp(np.asarray(log_mass)) - P).sum()


def test_denoiser_and_energy_learn_the_distribution():
    network = discrete.TokenNetwork(KEY, 3, 3, width=32, depth=1)
    start = discrete.MaskedDiffusion(network, 3, 3)
    fitted = discrete.fit(jax.random.key(1), start, DATA, **FAST)
    model = fitted.energy
    assert fitted.learned
    entropy = -float(np.sum(P[P > 0] * np.log(P[P > 0])))
    assert fitted.best_loss < entropy + 0.1
    assert distance(discrete.log_mass(model)) < 0.05
    one_step = distance(discrete.log_mass(model, steps=1))
    assert one_step > 0.2  # tokens are not independent
    energy = discrete.fit_energy(
        jax.random.key(2), discrete.EnergyNetwork(KEY, 3, 3, width=32, depth=1), model, DATA, **FAST
    )
    assert energy.best_loss < 2 * np.log(2) - 0.1
    mass = discrete.log_mass(model, energy.energy, steps=1)
    assert abs(float(jax.nn.logsumexp(mass))) < 0.1  # normalised by itself
    assert distance(mass) < 0.3 * one_step
    # The right sign makes it better, the other one worse.
    wrong = discrete.log_mass(model, lambda x, x_t: -energy.energy(x, x_t), steps=1)
    assert distance(wrong - jax.nn.logsumexp(wrong)) > one_step


@pytest.mark.parametrize(
    ("data", "options", "error", "word"),
    [
        (DATA.astype(float), {}, TypeError, "integers"),
        (DATA[:, :2], {}, ValueError, "shape"),
        (DATA + 1, {}, ValueError, "from 0 to 2"),
        (DATA, {"loss": None}, TypeError, "loss"),
        (DATA, {"validation": DATA[:9] - 1}, ValueError, "validation"),
    ],
)
def test_data_that_are_no_tokens_are_refused(data, options, error, word):
    model = discrete.MaskedDiffusion(lambda x_t: jnp.zeros((3, 3)), 3, 3)
    with pytest.raises(error, match=word):
        discrete.fit(KEY, model, data, **options)
    with pytest.raises(error, match=word):
        discrete.fit_energy(KEY, lambda x, x_t: 0.0, model, data, **options)


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: discrete.MaskedDiffusion(3, 2, 2), TypeError, "denoiser"),
        (lambda: discrete.MaskedDiffusion(jnp.sin, 2, 1), ValueError, "num_values"),
        (lambda: discrete.AutoregressiveEnergy(1.0, None), TypeError, "log_density"),
        (lambda: discrete.TokenTable(jnp.zeros(3)), ValueError, "num_tokens, num_values"),
        (lambda: discrete.TokenTable(jnp.full((2, 2), jnp.nan)), ValueError, "NaN"),
        (lambda: discrete.TokenLikelihood(0.0), TypeError, "log_likelihood"),
        (lambda: sample(steps=5), ValueError, "number of tokens, 3"),
        (lambda: sample(window=(0.6, 0.4)), ValueError, "window"),
        (lambda: sample(energy=2.0), TypeError, "energy"),
        (lambda: discrete.log_mass(WIDE), ValueError, "enumerate"),
        (lambda: chain(discrete.TokenTable(jnp.zeros((2, 3)))), ValueError, "a row a token"),
        (lambda: chain(jnp.zeros((3, 3))), TypeError, "TokenTable"),
        (lambda: SMALL_LOGITS.log_probs(jnp.zeros(3, int)), ValueError, "logits"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, word):
    with pytest.raises(error, match=word):
        make()


def uniform(x_t):
    return jnp.zeros((len(x_t), 3))


MODEL = discrete.MaskedDiffusion(uniform, 3, 3)
WIDE = discrete.MaskedDiffusion(uniform, 30, 3)
SMALL_LOGITS = discrete.MaskedDiffusion(lambda x_t: jnp.zeros((3, 2)), 3, 3)


def sample(energy=None, **options):
    return discrete.sample_tokens(KEY, MODEL, energy, **options)


def chain(data):
    return discrete.masked_chain(MODEL, data=data)
