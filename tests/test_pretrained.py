"""The prior that ships: its card, its numbers, and that it can be sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import ProperEnergy, load_pretrained
from numpyro_diffusion.pretrained import digits_split, load_digits, pretrained_card
from numpyro_diffusion.train import denoising_loss

NAME = "digits-8x8"


@pytest.fixture(scope="module")
def energy():
    with jax.enable_x64(False):
        return load_pretrained(NAME)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="available: digits-8x8"):
        load_pretrained("digits-9x9")


def test_split_is_a_partition_that_never_changes():
    train, validation, test = digits_split()
    assert [len(part) for part in (train, validation, test)] == [1297, 200, 300]
    assert np.array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(1797))
    assert pretrained_card(NAME)["test_rows"] == test.tolist()
    images, labels = load_digits("test")
    assert images.shape == (300, 8, 8) and images.dtype == np.float32
    assert images.min() == -1 and images.max() == 1 and set(labels) == set(range(10))
    with pytest.raises(ValueError, match="must be one of"):
        load_digits("tests")


def test_card_says_what_a_user_must_know(energy):
    card = pretrained_card(NAME)
    assert card["data_licence"] == "CC BY 4.0"
    assert card["range"] == [-1.0, 1.0]
    levels = [
        float(energy.schedule.noise_level(jnp.asarray(t))) for t in (energy.t_min, energy.t_max)
    ]
    np.testing.assert_allclose(levels, [card["noise_min"], card["noise_max"]], rtol=1e-4)
    assert card["log_normalizer"] == [energy.log_normalizer, energy.log_normalizer_error]
    assert isinstance(energy, ProperEnergy)


def test_held_out_loss_is_the_one_in_the_card(float32):
    card, energy = pretrained_card(NAME), load_pretrained(NAME)
    images = jnp.asarray(load_digits("test")[0])

    @jax.jit
    def mean_loss(keys):
        loss = lambda key: denoising_loss(energy, key, images, data_scale=card["data_scale"])
        return jnp.mean(jax.lax.map(loss, keys))

    loss = mean_loss(jax.random.split(jax.random.key(7), 64))
    np.testing.assert_allclose(loss, card["test"]["denoising_loss"], atol=1e-3)
    assert loss < 0.65  # the Gaussian of the data has 0.75


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_energy_and_score_agree_in_both_precisions(energy, dtype):
    image = jnp.asarray(load_digits("test")[0][0], dtype)
    for t in (energy.t_min, 0.2, energy.t_max):
        t = jnp.asarray(t)
        value, score = energy.energy_and_score(image, t)
        assert value.dtype == score.dtype == dtype
        if dtype == jnp.float64:
            direction = jax.random.normal(jax.random.key(0), image.shape)
            step = 1e-6
            ahead, behind = (energy.energy(image + h * direction, t) for h in (step, -step))
            np.testing.assert_allclose(
                (behind - ahead) / (2 * step), jnp.sum(score * direction), rtol=1e-5
            )


def test_far_images_stay_finite_and_unlikely(energy):
    image = jnp.asarray(load_digits("test")[0][0])
    for t in (energy.t_min, 0.2, energy.t_max):
        t = jnp.asarray(t)
        near = energy.energy(energy.schedule(t)[0].astype(image.dtype) * image, t)
        for far in (1e3 * image, jnp.full_like(image, 1e4), jnp.full_like(image, -1e4)):
            value, score = energy.energy_and_score(far, t)
            assert value > near and jnp.all(jnp.isfinite(score)) and jnp.isfinite(value)


def test_digits_are_likelier_than_what_only_resembles_them(energy):
    images = jnp.asarray(load_digits("test")[0])
    t = jnp.asarray(energy.t_min)
    density = jax.jit(jax.vmap(lambda u: energy.log_density(u, t)))
    noise = 0.0625 * jax.random.normal(jax.random.key(1), images.shape, images.dtype)
    digits = density(images + noise)
    averages = 0.5 * (images + images[::-1])
    for other in (-images, jnp.swapaxes(images, 1, 2), jnp.roll(images, 2, axis=2)):
        assert jnp.mean(density(other + noise) < digits) > 0.95
    # Two digits of one kind may well average to a third.
    assert jnp.mean(density(averages + noise) < digits) > 0.8
    # Normalised: about the 18.9 nats of the card, which names its own noise.
    np.testing.assert_allclose(
        jnp.mean(digits), pretrained_card(NAME)["test"]["log_density"], atol=0.6
    )


def langevin(energy, start, key, num_steps, step_size):
    """MALA at `t_min` from one image; the last image and the share of accepted moves."""
    t = jnp.asarray(energy.t_min, start.dtype)

    def step(state, key):
        x, value, score, accepted = state
        key_move, key_accept = jax.random.split(key)
        noise = jax.random.normal(key_move, x.shape, x.dtype)
        y = x + step_size * score + jnp.sqrt(2 * step_size) * noise
        value_y, score_y = energy.energy_and_score(y, t)
        back = jnp.sum((x - y - step_size * score_y) ** 2) - jnp.sum(
            (y - x - step_size * score) ** 2
        )
        log_ratio = value - value_y - back / (4 * step_size)
        accept = jnp.log(jax.random.uniform(key_accept)) < log_ratio
        keep = lambda new, old: jnp.where(accept, new, old)
        return (keep(y, x), keep(value_y, value), keep(score_y, score), accepted + accept), None

    init = (start, *energy.energy_and_score(start, t), jnp.zeros((), start.dtype))
    (x, _, _, accepted), _ = jax.lax.scan(step, init, jax.random.split(key, num_steps))
    return x, accepted / num_steps


@pytest.mark.long
def test_long_chains_stay_among_the_digits(energy, float32):
    """An energy with deep wells off the data would keep these chains there."""
    images, train = jnp.asarray(load_digits("test")[0][:100]), load_digits("train")[0]
    alpha, sigma = energy.schedule(jnp.asarray(energy.t_min))
    start = alpha * images + sigma * jax.random.normal(jax.random.key(2), images.shape)
    run = jax.jit(jax.vmap(lambda x, k: langevin(energy, x, k, 8000, 1.2e-3)))
    end, accepted = run(start, jax.random.split(jax.random.key(3), 100))
    distance = lambda x: np.min(
        np.linalg.norm(
            np.asarray(x / alpha).reshape(100, 1, 64) - train.reshape(1, -1, 64), axis=2
        ),
        1,
    )
    assert accepted.min() > 0.7
    assert distance(end).mean() < 1.3 * distance(start).mean()
    assert distance(end).max() < 2 * distance(start).max()


OTHERS = ["digits-8x8-distilled", "digits-8x8-labels", "digits-8x8-labels-distilled"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_priors_do_on_held_out_digits_what_their_cards_say(name, float32):
    card, energy = pretrained_card(name), load_pretrained(name)
    by_label = card["condition"] is not None
    images, labels = (jnp.asarray(part) for part in load_digits("test"))
    told = {"condition": labels} if by_label else {}
    scale = float(np.sqrt(load_digits("train")[0].var(0).mean()))

    @jax.jit
    def mean_loss(keys):
        loss = lambda key: denoising_loss(energy, key, images, data_scale=scale, **told)
        return jnp.mean(jax.lax.map(loss, keys))

    loss = float(mean_loss(jax.random.split(jax.random.key(7), 32)))
    np.testing.assert_allclose(loss, card["test"]["denoising_loss"], atol=1e-3)
    if "distilled" in name:
        assert loss < 1.02 * card["test_teacher"]["denoising_loss"]
    if not by_label:
        assert energy.log_normalizer == card["log_normalizer"][0]
        return
    np.testing.assert_allclose(energy.label_normalizers, card["log_normalizer"], rtol=1e-5)
    t = jnp.asarray(energy.t_min)
    noise = energy.schedule.noise_level(t) * jax.random.normal(jax.random.key(6), images.shape)
    each = lambda u: jax.vmap(lambda c: energy.given(c).log_density(u, t))(jnp.arange(10))
    log_p = jax.nn.log_softmax(jax.jit(jax.vmap(each))(images + noise), axis=1)
    np.testing.assert_allclose(
        jnp.mean(log_p.argmax(1) == labels), card["test"]["accuracy"], atol=0.01
    )
    score = jnp.mean(log_p[jnp.arange(len(labels)), labels])
    np.testing.assert_allclose(score, card["test"]["log_score"], atol=0.03)
