"""The robust denoising loss: the closed form of a linear denoiser, and what a radius of 0 is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import numpyro_diffusion as nd
from numpyro_diffusion.train import denoising_loss, robust_loss

SCHEDULE = nd.Gaussian().schedule


def linear(theta, shape=(1,)):
    """The network that says the noise is theta x."""
    return nd.ScoreFunction(
        lambda theta, x, t: -theta * x / SCHEDULE(t)[1], shape, params=jnp.asarray(theta, float)
    )


def at(share):
    """Levels with alpha^2 = share alone."""
    t = SCHEDULE.time(jnp.log(share / (1 - share)))
    return lambda key, denoiser, num: jnp.full(num, t)


def best(variance, share, radius, target):
    """The minimum of the loss whose maximum is in closed form, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    clean, noise = (axis.ravel() for axis in np.meshgrid(nodes, nodes))
    sigma = np.sqrt(1 - share)
    x = np.sqrt(share * variance) * clean + sigma * noise
    slope = 1 / sigma if target == "shifted" else 0.0
    loss = lambda theta: weights @ (abs(theta * x - noise) + radius * abs(theta - slope)) ** 2
    return minimize_scalar(loss, bounds=(0, 3), method="bounded", options={"xatol": 1e-8}).x


CASES = [
    (1.0, 0.5, 0.1, "shifted", 0.7659),
    (1.0, 0.5, 0.3, "shifted", 0.8968),
    (1.0, 0.5, 0.1, "original", 0.6483),
    (1.0, 0.5, 0.3, "original", 0.5174),
    (0.25, 0.8, 0.1, "shifted", 1.2683),
    (0.25, 0.8, 0.3, "shifted", 1.6247),
]


@partial(jax.jit, static_argnames="target")
def slope(theta, radius, share, data, target):
    loss = lambda theta: robust_loss(
        linear(theta), jax.random.key(1), data,
        radius=lambda t: radius, target=target, levels=at(share),
    )  # fmt: skip
    return jax.grad(loss)(theta)


@pytest.mark.parametrize(("variance", "share", "radius", "target", "known"), CASES)
def test_a_linear_denoiser_is_drawn_as_far_as_the_closed_form_says(
    variance, share, radius, target, known
):
    exact = best(variance, share, radius, target)
    np.testing.assert_allclose(exact, known, atol=2e-3)
    data = jax.random.normal(jax.random.key(0), (50_000, 1)) * variance**0.5
    low, high = 0.0, 2.5
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if slope(middle, radius, share, data, target) < 0 else (low, middle)
        )
    np.testing.assert_allclose(low, exact, rtol=0.015)


def test_training_ends_there():
    data = jax.random.normal(jax.random.key(0), (20_000, 1))
    loss = partial(robust_loss, radius=0.3, levels=at(0.5))
    found = nd.fit(
        jax.random.key(1), linear(0.7071), data, loss=loss, trainable=lambda model: model.params,
        steps=500, batch_size=512, learning_rate=2e-2, progress_bar=False,
        optimizer=nd.train.Optimizer(weight_decay=0.0),
    )  # fmt: skip
    np.testing.assert_allclose(found.energy.params, 0.8968, rtol=0.02)


def test_a_radius_of_nothing_is_the_denoising_loss_bit_for_bit():
    """Without compilation, which may round the two differently."""
    energy, key = linear(0.6, (2,)), jax.random.key(4)
    data = 2 + jax.random.normal(jax.random.key(3), (32, 2))
    plain = denoising_loss(energy, key, data)
    for target in ("shifted", "original"):
        assert robust_loss(energy, key, data, radius=0.0, target=target, num_steps=1) == plain
    # The worst point is worse, the more so the farther it may be.
    losses = [float(robust_loss(energy, key, data, radius=r, num_steps=2)) for r in (0.1, 0.2)]
    assert plain < losses[0] < losses[1]


def test_the_ascent_finds_the_worst_point_of_a_linear_denoiser_in_several_dimensions():
    """|c (x + delta) - x_0| is largest along the error: |e| + |c| eta sqrt(d)."""
    model, data = linear(0.9, (5,)), jax.random.normal(jax.random.key(5), (64, 5))
    options = {"levels": at(0.5), "weight": lambda s, d: 1.0}
    found = robust_loss(model, jax.random.key(6), data, radius=0.2, **options)
    plain = denoising_loss(model, jax.random.key(6), data, **options)
    # The mean of its squares: no less than without the cross term, no more than Jensen allows.
    c = abs(1 - 0.9 * np.sqrt(0.5)) / np.sqrt(0.5)
    low, high = float(plain) + (c * 0.2) ** 2, (float(plain) ** 0.5 + c * 0.2) ** 2
    assert low < found < high * (1 + 1e-6) and found > 0.9 * high


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": -0.1}, "`radius` must be a finite number of at least 0; got -0.1"),
        ({"radius": np.inf}, "`radius` must be a finite number"),
        ({"radius": 0.1, "target": "both"}, '`target` must be "shifted" or "original"; got'),
        ({"radius": 0.1, "num_steps": 0}, "`num_steps`.*at least 1"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        robust_loss(linear(0.7), jax.random.key(0), jnp.zeros((2, 1)), **given)
