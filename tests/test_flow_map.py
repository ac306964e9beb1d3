"""The map of the probability flow: quantiles, its inverse, and moments of what it pushes forward."""

import jax
import jax.numpy as jnp
import numpy as np
from closed_form import eight_dimensional
from scipy.optimize import brentq
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.density import from_noise, to_noise

LINE = nd.GaussianMixture([0.4, 0.6], [[-1.5], [1.0]], [[[0.09]], [[0.64]]])
MIXTURE = nd.GaussianMixture()


def quantile(z: float) -> float:
    """Of the mixture on the line, at the normal quantile `z`."""
    noise = float(LINE.schedule.noise_level(jnp.asarray(LINE.t_min)))
    spread = np.sqrt(np.array([0.09, 0.64]) + noise**2)
    below = lambda x: np.array([0.4, 0.6]) @ norm.cdf((x - np.array([-1.5, 1.0])) / spread)
    return brentq(lambda x: below(x) - norm.cdf(z), -20, 20, xtol=1e-12)


def test_on_the_line_the_map_is_the_quantile_function():
    """A rising map that carries one law to another is unique; the error falls with the fourth power."""
    z = np.linspace(-3.5, 3.5, 29)
    truth = np.array([quantile(value) for value in z])
    maps = lambda steps: jax.vmap(lambda z: from_noise(LINE, z, num_steps=steps))
    errors = [np.abs(maps(steps)(z[:, None])[:, 0] - truth).max() for steps in (16, 32, 64)]
    assert errors[0] < 2e-2 and errors[2] < 1e-4
    assert errors[0] / errors[1] > 8 and errors[1] / errors[2] > 8


def test_there_and_back():
    z = jax.random.normal(jax.random.key(0), (50, 2))
    errors = []
    for steps in (16, 32):
        there = jax.vmap(lambda z, n=steps: from_noise(MIXTURE, z, num_steps=n))(z)
        back = jax.vmap(lambda x, n=steps: to_noise(MIXTURE, x, num_steps=n))(there)
        errors.append(np.abs(back - z).max())
    assert errors[0] < 1e-2 and errors[1] < 1e-4


def test_moments_of_the_push_forward():
    """In eight dimensions, from mirrored normal draws."""
    prior = eight_dimensional().prior
    z = jax.random.normal(jax.random.key(2), (2000, 8))
    x = np.asarray(jax.jit(jax.vmap(lambda z: from_noise(prior, z)))(jnp.concatenate([z, -z])))
    mean, variance = (np.asarray(v) for v in prior.moments(jnp.asarray(0.0)))
    error = np.sqrt(variance / len(x))
    assert (np.abs(x.mean(0) - mean) < 4 * error).all()
    assert (np.abs(x.var(0) / variance - 1) < 0.1).all()
