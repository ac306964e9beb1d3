"""Networks of galaxygrad and students of teachers: the weights in their place, and a start that is right."""

import dataclasses
import os
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import teachers
from numpyro_diffusion.schedules import VarianceExploding
from numpyro_diffusion.teachers.mixer import MixerNet

CARD = teachers.PriorCard(
    name="two numbers",
    shape=(2,),
    units="metres",
    data_range=(-10.0, 10.0),
    transform=teachers.Identity(),
    schedule=nd.schedules.VariancePreserving(),
    prediction=teachers.Score(),
)


def gaussian_teacher(**options):
    """A linear, symmetric denoiser, anisotropic and correlated, with a clock of its own."""
    exact = nd.Gaussian([0.5, -1.0], [[2.0, 0.6], [0.6, 0.5]], VarianceExploding(0.01, 50.0))
    fn = lambda exact, x, time: exact.score(x, time / 7)
    card = dataclasses.replace(CARD, schedule=exact.schedule, time_scale=7.0)
    return exact, teachers.Teacher(fn, card, params=exact, **options)


def test_a_student_starts_where_a_linear_teacher_is():
    exact, teacher = gaussian_teacher()
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(100, 2)) * [1.5, 0.7]
    draws += exact.mean - draws.mean(0)  # linear about the mean, so that is where the data must be
    student = teachers.student_of(teacher, draws, noise_min=0.05, noise_max=20.0)
    for s in (0.06, 0.7, 15.0):
        t, there = (m.schedule.time(jnp.asarray(-2 * np.log(s))) for m in (student, teacher))
        u = jnp.array([1.3, -0.4])
        got = student.denoise(student.schedule(t)[0] * u, t)
        np.testing.assert_allclose(got, teacher.denoise(u, there), rtol=1e-6)
    # Only the network's numbers and the offset are trained.
    fn, params, offset = teachers.teacher_weights(student)
    assert params is exact and offset is student.offset and callable(fn)
    with pytest.raises(ValueError, match="0 < noise_min"):
        teachers.student_of(teacher, draws, noise_min=1.0, noise_max=0.1)
    with pytest.raises(ValueError, match="examples of shape"):
        teachers.student_of(teacher, draws[:, :1], noise_min=0.1, noise_max=10.0)


class Curved(eqx.Module):
    """A score network with weights of its own, and not quite the gradient of anything."""

    matrix: jax.Array

    def __call__(self, x, time):
        return -(self.matrix @ jnp.tanh(x))


@pytest.mark.long
def test_a_student_is_distilled_and_only_its_network_changes():
    teacher = teachers.Teacher(Curved(jnp.array([[1.0, 0.2], [-0.1, 0.6]])), CARD)
    draws = np.random.default_rng(0).normal(size=(320, 2))
    student = teachers.student_of(teacher, draws, noise_min=0.2, noise_max=5.0)
    result = nd.distill(
        jax.random.key(0),
        teacher,
        student,
        draws,
        trainable=teachers.teacher_weights,
        steps=150,
        batch_size=32,
        optimizer=nd.train.Optimizer(ema=0.9),
        stopping=nd.train.EarlyStopping(check_every=50),
        progress_bar=False,
    )
    assert result.best_loss < 0.75 * result.history["validation_loss"][0]
    after = result.energy.net
    assert not jnp.allclose(after.teacher.fn.matrix, teacher.fn.matrix)
    np.testing.assert_array_equal(after.mean, student.net.mean)
    np.testing.assert_array_equal(after.teacher.variance, teacher.variance)


def test_networks_students_and_cards_are_saved(tmp_path):
    path = tmp_path / "net.eqx"
    mixer_file(path)
    teacher = teachers.galaxygrad(path)
    draws = np.random.default_rng(0).normal(size=(5, 12, 12))
    student = teachers.student_of(teacher, draws, noise_min=0.1, noise_max=10.0)
    for model in (teacher, student):
        nd.save(tmp_path / "model.safetensors", model)
        again = nd.load(tmp_path / "model.safetensors")
        assert eqx.tree_equal(again, model)
    assert again.net.teacher.card == teacher.card


class Reference(eqx.Module):
    """A mixer of Equinox's own layers, with the fields in the order of the files."""

    read: eqx.nn.Conv2d
    write: eqx.nn.ConvTranspose2d
    blocks: list
    norm: eqx.nn.LayerNorm
    time_max: float

    def __init__(self, key, size=12, features=6, mix=(8, 11), num_blocks=2):
        keys = iter(jax.random.split(key, 2 + 2 * num_blocks))
        patches = (size // 4) ** 2
        self.read = eqx.nn.Conv2d(2, features, 4, 4, key=next(keys))
        self.write = eqx.nn.ConvTranspose2d(features, 1, 4, 4, key=next(keys))
        self.blocks = [
            (
                eqx.nn.MLP(patches, patches, mix[0], 1, key=next(keys)),
                eqx.nn.MLP(features, features, mix[1], 1, key=next(keys)),
                eqx.nn.LayerNorm((features, patches)),
                eqx.nn.LayerNorm((patches, features)),
            )
            for _ in range(num_blocks)
        ]
        self.norm = eqx.nn.LayerNorm((features, patches))
        self.time_max = 10.0

    def __call__(self, x, time):
        h = self.read(jnp.stack([x, jnp.full_like(x, time / self.time_max)]))
        shape, h = h.shape, h.reshape(len(h), -1)
        for mix_patches, mix_features, norm_patches, norm_features in self.blocks:
            h = h + jax.vmap(mix_patches)(norm_patches(h))
            h = (h.T + jax.vmap(mix_features)(norm_features(h.T))).T
        return self.write(self.norm(h).reshape(shape))[0]


def mixer_file(path):
    """Random weights, norms included, so that no two could be exchanged unnoticed."""
    rng = np.random.default_rng(0)
    fill = lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5)
    shapes = eqx.filter_eval_shape(Reference, jax.random.key(0))
    is_shape = lambda a: isinstance(a, jax.ShapeDtypeStruct)
    net = jax.tree.map(lambda a: fill(a) if is_shape(a) else a, shapes)
    eqx.tree_serialise_leaves(path, net)
    return net


def test_mixer_is_the_network_that_was_saved(tmp_path):
    path = tmp_path / "net.eqx"
    reference = mixer_file(path)
    teacher = teachers.galaxygrad(path)
    assert teacher.shape == (12, 12) and teacher.card.sha256 is not None
    y = jax.random.normal(jax.random.key(2), (12, 12))
    score = eqx.filter_jit(lambda net, y, time: net(y, time))
    output, denoise = eqx.filter_jit(teacher.output), eqx.filter_jit(teacher.denoise)
    for t in jnp.array([0.002, 0.1, 0.8]):
        np.testing.assert_allclose(output(y, t), score(reference, y, 10 * t), rtol=1e-9)
        # beta = 1: alpha = exp(-tau / 2), and the score becomes the denoised mean.
        alpha, sigma2 = np.exp(-5 * t), -np.expm1(-10 * t)
        expected = (y + sigma2 * score(reference, y, 10 * t)) / alpha
        np.testing.assert_allclose(denoise(y, t), expected, rtol=1e-9)


def test_mixer_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "net.eqx"
    mixer_file(path)
    leaves = teachers.read_equinox_leaves(path)
    with pytest.raises(ValueError, match="12 leaves a block"):
        MixerNet.from_leaves(leaves[:-1])
    swapped = [*leaves[:4], leaves[6], leaves[5], leaves[4], *leaves[7:]]
    with pytest.raises(ValueError, match="do not fit"):
        MixerNet.from_leaves(swapped)
    renamed = tmp_path / "eqx_hsc_ScoreNet32.eqx"
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="should have SHA-256 cb926562"):
        teachers.galaxygrad(renamed)
    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, "galaxygrad/net.eqx")
    assert teachers.galaxygrad(wheel, "galaxygrad/net.eqx").shape == (12, 12)


def test_draws_as_data_have_no_noise_left(key):
    """Their variance is about the prior's where that is wide, and 0 where it is narrower than noise."""
    prior = nd.Gaussian([1.0, -2.0], np.diag([4.0, 1e-4]))
    t = prior.schedule.time(-2 * jnp.log(0.3))
    prior = nd.Gaussian(prior.mean, np.diag([4.0, 1e-4]), prior.schedule, float(t))
    data = np.asarray(teachers.draw_data(key, prior, 20_000, batch_size=5000))
    np.testing.assert_allclose(data.mean(0), prior.mean, atol=0.06)
    variances = np.array([4.0, 1e-4])
    expected = variances**2 / (variances + 0.09)
    np.testing.assert_allclose(data.var(0), expected, rtol=0.05)
    with pytest.raises(ValueError, match="`num` must be at least 1; got 0"):
        teachers.draw_data(key, prior, 0)


WHEEL = os.environ.get("GALAXYGRAD_WHEEL")


@pytest.mark.skipif(WHEEL is None, reason="GALAXYGRAD_WHEEL is not the path of galaxygrad 0.2.1")
def test_hsc32_has_the_scores_of_galaxygrad(float32):
    """Reference: `ScoreNet` of galaxygrad 0.2.1, with its weights loaded by Equinox 0.13.8."""
    i = np.arange(32)
    galaxy = 3 * np.exp(-((i[:, None] - 16) ** 2 + (i - 14.5) ** 2) / 40)
    y = jnp.asarray(galaxy + 0.1 * np.sin(i[:, None] + 2 * i), jnp.float32)
    teacher = teachers.galaxygrad(WHEEL)
    output = eqx.filter_jit(teacher.output)
    for time, corner, centre, total in (
        (0.02, -2.241457, 0.54751706, -311.48080),
        (1.0, -0.03980496, 0.12967898, 18.055994),
        (8.0, -0.03995534, -2.0290532, -286.68332),
    ):
        score = output(y, jnp.asarray(time / 10))
        np.testing.assert_allclose([score[3, 5], score[16, 17]], [corner, centre], rtol=2e-5)
        np.testing.assert_allclose(score.sum(), total, rtol=1e-4)
