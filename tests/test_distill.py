"""Distillation: the gradient part of a score is kept, its rotation is dropped."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import draws_at

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import VarianceExploding
from numpyro_diffusion.train import denoising_loss, distillation_loss

denoising_of, distillation_of = map(eqx.filter_jit, (denoising_loss, distillation_loss))

MEANS = np.array([[-1.5, 0.5], [1.0, -0.5]])
COVARIANCES = np.array([np.diag([0.2, 0.4]), [[0.3, 0.1], [0.1, 0.2]]])
MIXTURE = nd.GaussianMixture([0.3, 0.7], MEANS, COVARIANCES)
TURN = jnp.array([[0.0, -0.8], [0.8, 0.0]])


def turned(scale=1.0) -> nd.ScoreFunction:
    """The score and a field A grad log p: for antisymmetric A, p times it has no divergence.

    At high noise it is a bounded error of the denoiser, as a network's is.
    """

    def score(mixture, x, t):
        s = mixture.score(x, t)
        return s + scale / (1 + mixture.schedule.noise_level(t) ** 2) * TURN @ s

    return nd.ScoreFunction(score, (2,), MIXTURE.schedule, params=MIXTURE)


def draws(num: int):
    return draws_at(MIXTURE, jax.random.split(jax.random.key(0), num), jnp.asarray(0.0))


def test_loss_is_denoising_less_what_no_denoiser_knows():
    """E |D - x0|^2 = E |D - D*|^2 + E |D* - x0|^2, where D* is the exact denoiser."""
    student, data = nd.Gaussian(np.zeros(2), np.eye(2)), draws(200_000)
    key = jax.random.key(1)
    extra = distillation_of(student, key, data, MIXTURE)
    both = [float(denoising_of(model, key, data)) for model in (student, MIXTURE)]
    np.testing.assert_allclose(extra, both[0] - both[1], rtol=0.02)
    assert float(distillation_of(MIXTURE, key, data, MIXTURE)) < 1e-20


def test_teacher_and_student_meet_at_one_noise_level():
    """The same law under another schedule is the same denoiser."""
    other = nd.GaussianMixture([0.3, 0.7], MEANS, COVARIANCES, VarianceExploding())
    loss = distillation_of(MIXTURE, jax.random.key(0), draws(500), other)
    assert float(loss) < 1e-12


def test_the_exact_score_is_the_best_energy_for_a_turned_teacher():
    """The rotation is orthogonal to every gradient on noised data: the true energy is stationary."""
    data, key = draws(100_000), jax.random.key(2)
    other = nd.Gaussian([0.4, -0.2], [[0.8, 0.3], [0.3, 0.5]])
    loss = lambda c: distillation_of(MIXTURE + c * other, key, data, turned())
    values = [float(loss(c)) for c in (0.0, 0.2, 0.4)]
    bend, slope, least = np.polyfit((0.0, 0.2, 0.4), values, 2)
    assert abs(-slope / (2 * bend)) < 0.01  # where the parabola has its lowest point
    assert least > 0.01  # the rotation stays in the loss


@pytest.mark.long
def test_a_distilled_energy_has_the_true_score():
    data = draws(20_000)
    student = nd.ProperEnergy.from_data(
        nd.nets.ResidualMLP(jax.random.key(3), (2,), width=64), data, noise_min=0.1, noise_max=20.0
    )
    found = nd.distill(
        jax.random.key(4),
        turned(),
        student,
        data,
        steps=3_000,
        progress_bar=False,
        stopping=nd.train.EarlyStopping(patience=100),
    )
    fresh = draws(4_000)

    def error(energy, s):
        """Relative error of the score of data noised to level s."""
        u = fresh + s * jax.random.normal(jax.random.key(5), fresh.shape)

        def score(model):
            t = model.schedule.time(-2 * jnp.log(jnp.asarray(s)))
            alpha, _ = model.schedule(t)
            return jax.vmap(lambda u: alpha * model.score(alpha * u, t))(u)

        exact = score(MIXTURE)
        return jnp.sqrt(jnp.mean((score(energy) - exact) ** 2) / jnp.mean(exact**2))

    errors = [float(error(found.energy, s)) for s in (0.3, 1.0, 3.0)]
    assert max(errors) < 0.08 and np.mean(errors) < 0.05  # the teacher's is .8


def test_what_distillation_refuses():
    data = np.zeros((10, 2))
    with pytest.raises(TypeError, match="energy as student"):
        nd.distill(jax.random.key(0), MIXTURE, turned(), data)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        nd.distill(jax.random.key(0), MIXTURE, nd.Gaussian(np.zeros(3), np.eye(3)), data)
    with pytest.raises(TypeError, match="loss of its own"):
        nd.distill(jax.random.key(0), MIXTURE, nd.ProperEnergy(), data, loss=print)


def test_rotations_that_are_harmless_alone_are_not_in_a_product():
    r"""$\nabla \cdot (p_i r_i) = 0$, and of the product $w (1-w) (r_1 - r_2) \cdot (s_2 - s_1)$ is left."""
    first = nd.GaussianMixture()
    second = nd.GaussianMixture((0.6, 0.4), ((0.5, 1.0), (-1.0, -0.3)))
    w, t = 0.3, jnp.asarray(0.2)
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    scores = [lambda x, m=m: m.score(x, t) for m in (first, second)]
    fields = [lambda x, s=s, a=a: a * turn @ s(x) for s, a in zip(scores, (0.8, -1.2), strict=True)]
    divergence = lambda field, x: jnp.trace(jax.jacfwd(field)(x))

    # The divergence of p r over p, with the score of p.
    weighed = lambda field, score, x: divergence(field, x) + field(x) @ score(x)
    mixed = lambda parts, x: (1 - w) * parts[0](x) + w * parts[1](x)

    @jax.jit
    def at(x):
        alone = [weighed(*pair, x) for pair in zip(fields, scores, strict=True)]
        left = weighed(lambda x: mixed(fields, x), lambda x: mixed(scores, x), x)
        return alone, left, [[f(x) for f in each] for each in (fields, scores)]

    for x in np.array([[0.3, -0.2], [-1.4, 0.8], [1.0, 0.5]]):
        alone, left, values = at(x)
        np.testing.assert_allclose(alone, 0.0, atol=1e-10)
        (r1, r2), (s1, s2) = np.asarray(values)
        np.testing.assert_allclose(left, w * (1 - w) * (r1 - r2) @ (s2 - s1), rtol=1e-8)
        assert abs(left) > 1e-2
