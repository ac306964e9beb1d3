"""Networks of others: units and their Jacobians, what an output means, and the weights in their place."""

import dataclasses
import hashlib
import os
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import teachers
from numpyro_diffusion.schedules import Cosine, RectifiedFlow, VarianceExploding
from numpyro_diffusion.teachers.mixer import MixerNet

TRANSFORMS = {
    "identity": teachers.Identity(),
    "affine": teachers.Affine(0.5, 0.25),
    "log": teachers.LogScale(),
    "log, other offset": teachers.LogScale(0.3, 2.0),
}
EXACT = nd.GaussianMixture()
CARD = teachers.PriorCard(
    name="mixture",
    shape=(2,),
    units="metres",
    data_range=(-10.0, 10.0),
    transform=teachers.Affine(1.0, 2.0),
    schedule=EXACT.schedule,
    prediction=teachers.Score(),
)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_log_det_is_that_of_the_jacobian(name):
    transform, x = TRANSFORMS[name], jnp.array([0.7, 2.4, -0.2])
    jacobian = jax.jacobian(transform.forward)(x)
    _, expected = jnp.linalg.slogdet(jacobian)
    np.testing.assert_allclose(transform.log_abs_det(x), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-12)
    assert transform.log_abs_det(x.astype(jnp.float32)).dtype == jnp.float32
    assert transform.forward(x.astype(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_density_in_physical_units_integrates_to_one(name):
    transform = TRANSFORMS[name]
    normal = lambda y: jnp.sum(jax.scipy.stats.norm.logpdf(y, 0.4, 0.8))
    # The trapezium rule in y, of which x is a smooth function, is exact to machine precision.
    x = jax.vmap(transform.inverse)(jnp.linspace(-8, 9, 4001)[:, None])
    density = jnp.exp(jax.vmap(lambda x: transform.log_density(x, normal))(x))
    np.testing.assert_allclose(jnp.trapezoid(density, x[:, 0]), 1.0, rtol=2e-4)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_score_in_physical_units_is_the_gradient_of_the_density(name):
    transform, x = TRANSFORMS[name], jnp.array([0.7, 2.4])
    t = jnp.asarray(0.3)
    expected = jax.grad(lambda x: transform.log_density(x, lambda y: -EXACT.energy(y, t)))(x)
    score = transform.score(x, lambda y: EXACT.score(y, t))
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def test_faint_pixels_keep_their_digits(float32):
    x = jnp.float32(1e-6)
    np.testing.assert_allclose(teachers.LogScale().forward(x), 1e-5, rtol=1e-6)


def test_transforms_refuse_what_has_no_inverse():
    for make in (lambda: teachers.Affine(0.0, 0.0), lambda: teachers.LogScale(0.0)):
        with pytest.raises(ValueError, match="positive"):
            make()


OUTPUTS = {
    "Score": lambda x_0, e, alpha, sigma: -e / sigma,
    "Noise": lambda x_0, e, alpha, sigma: e,
    "Denoised": lambda x_0, e, alpha, sigma: x_0,
    "Velocity": lambda x_0, e, alpha, sigma: alpha * e - sigma * x_0,
    "FlowVelocity": lambda x_0, e, alpha, sigma: e - x_0,
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding(), RectifiedFlow()], ids=repr)
def test_predictions_give_back_the_data(name, schedule):
    """Linear in x_0 and noise, so what holds for one pair holds for their means."""
    x_0, noise = jnp.array([0.3, -1.2]), jnp.array([0.8, 0.1])
    for t in (0.1, 0.6):
        alpha, sigma = schedule(jnp.asarray(t))
        output = OUTPUTS[name](x_0, noise, alpha, sigma)
        got = getattr(teachers, name)()(output, alpha * x_0 + sigma * noise, alpha, sigma)
        np.testing.assert_allclose(got, x_0, rtol=1e-10)


def test_card_knows_its_file():
    data = b"weights"
    card = CARD.verified(data)
    assert card.sha256 == hashlib.sha256(data).hexdigest()
    assert card.verified(data) == card
    with pytest.raises(ValueError, match="should have SHA-256"):
        card.verified(b"other weights")


def test_card_converts_units_and_notices_wrong_ones():
    data = np.array([[1.0, 3.0], [-3.0, 9.0]])
    encoded = CARD.encode(data)
    np.testing.assert_allclose(encoded, [[0.0, 1.0], [-2.0, 4.0]])
    np.testing.assert_allclose(CARD.decode(encoded), data)
    with pytest.raises(ValueError, match=r"from -10 to 10 \(metres\); got -3000 to 9000"):
        CARD.encode(1000 * data)
    with pytest.raises(ValueError, match="finite"):
        CARD.encode(np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="shape"):
        CARD.encode(data[:, :1])


def test_card_refuses_what_makes_no_sense_and_is_json():
    for change, message in (
        ({"data_range": (1.0, 1.0)}, "must rise"),
        ({"shape": (2.0,)}, "positive integers"),
        ({"time_scale": 0.0}, "positive"),
        ({"units": ""}, "dimensionless"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CARD, **change)
    open_card = dataclasses.replace(CARD, data_range=(0.0, np.inf)).to_dict()
    assert open_card["range"] == [0.0, None] and open_card["units"] == "metres"
    assert "VariancePreserving" in open_card["schedule"]


def test_card_travels_with_a_distilled_energy(tmp_path):
    path = tmp_path / "energy.safetensors"
    nd.save(path, nd.Gaussian(), card=CARD.to_dict())
    assert nd.io.read_card(path) == CARD.to_dict()


def test_teacher_is_the_denoiser_behind_the_network():
    """Clock and prediction of the network are its own."""

    def noise(mixture, x, time):
        t = time / 1000
        return -mixture.schedule(t)[1] * mixture.score(x, t)

    card = dataclasses.replace(CARD, prediction=teachers.Noise(), time_scale=1000.0)
    teacher = teachers.Teacher(noise, card, params=EXACT, mean=0.2, variance=1.5)
    x = jnp.array([0.8, -1.7])
    for t in (0.01, 0.3, 0.9):
        t = jnp.asarray(t)
        np.testing.assert_allclose(teacher.denoise(x, t), EXACT.denoise(x, t), rtol=1e-10)
    assert teacher.card.units == "metres" and teacher.shape == (2,)
    assert teacher.with_horizon(t_max=0.5).t_max == 0.5
    slope = eqx.filter_grad(lambda p: noise(p, x, 300.0).sum())(EXACT)
    assert jnp.any(slope.means != 0)


def test_teacher_casts_its_weights(float32):
    fn = lambda params, x, t: params * x
    teacher = teachers.Teacher(fn, CARD, params=np.ones(2, np.float16))
    assert teacher.denoise(jnp.ones(2), jnp.asarray(0.5)).dtype == jnp.float32


def test_teacher_demands_a_card_and_the_right_shape():
    with pytest.raises(TypeError, match="PriorCard"):
        teachers.Teacher(EXACT.score, {"units": "metres"})
    with pytest.raises(ValueError, match=r"must return the shape \(2,\) .* got \(1, 2\)"):
        teachers.Teacher(lambda x, t: x[None], CARD)
    with pytest.raises(TypeError, match="function"):
        teachers.Teacher("network", CARD)


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


@pytest.mark.slow
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
        check_every=50,
        batch_size=32,
        ema=0.9,
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
