"""Networks of others: units and their Jacobians, what an output means, and the weights in their place."""

import dataclasses
import hashlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import teachers
from numpyro_diffusion.schedules import Cosine, RectifiedFlow, VarianceExploding

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
        ({"units": 3}, "`units` of a card must be a string"),
        ({"shape": [2]}, "positive integers"),
        ({"data_range": 1.0}, "must be two numbers"),
        ({"data_range": (0.0, np.nan)}, "must rise"),
        ({"data_range": ("0", "1")}, "must rise"),
        ({"time_scale": "1"}, "positive"),
        ({"sha256": 12}, "64 hexadecimal digits"),
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
