r"""The probability flow as a map between noise and data, with a fixed number of steps.

$x = T(z)$ with $z \sim \mathcal{N}(0, I)$ is a draw of the prior under the flow's distribution. With fixed
steps $T$ is one smooth, deterministic function with exact derivatives. The distribution of $x$ is the
push-forward of $\mathcal{N}(0, I)$ by it, whatever the number of steps; the distribution of the flow is
approached with their fourth power. Where the distribution has little density, between its modes, the map is
steep and needs more steps.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, Scalar
from ..energies import AbstractDenoiser
from .estimate import check_prior
from .whitened import WhitenedFlow

__all__ = ["from_noise", "to_noise"]


def from_noise(prior: AbstractDenoiser, z: Array, *, num_steps: int = 16) -> Array:
    r"""The example that the probability flow makes of one standard normal vector.

    Args:
        prior: Denoiser or energy; of an energy only the score is used.
        z: Standard normal, of the shape of one example.
        num_steps: Steps of the classical Runge-Kutta method, equal in the clock of `WhitenedFlow`; four
            evaluations each.

    Returns:
        $x$ in the units of the prior, of the shape of `z`.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If `z` is not one example, or `num_steps` is not positive.

    Example:
        >>> import jax.numpy as jnp, numpyro_diffusion as nd
        >>> bool(jnp.allclose(nd.density.from_noise(nd.Gaussian(), jnp.zeros(2)), nd.Gaussian().mean))
        True

    References:
        Song et al. (2021), Score-Based Generative Modeling through SDEs, ICLR, Sec. 4.3.
    """
    return _from_noise(prior, _checked("from_noise", prior, z, num_steps), num_steps)


def to_noise(prior: AbstractDenoiser, x: Array, *, num_steps: int = 16) -> Array:
    r"""The standard normal vector from which the probability flow makes an example.

    The inverse of `from_noise` up to the error of the steps.

    Args:
        prior: Denoiser or energy; of an energy only the score is used.
        x: One example, in the units of the prior.
        num_steps: As in `from_noise`.

    Returns:
        $z$, of the shape of `x`.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If `x` is not one example, or `num_steps` is not positive.
    """
    return _to_noise(prior, _checked("to_noise", prior, x, num_steps), num_steps)


@eqx.filter_jit  # compiled once a prior, however often a model is traced
def _from_noise(prior: AbstractDenoiser, z: Array, num_steps: int) -> Array:
    flow = WhitenedFlow.of(prior, z.dtype)
    noise, data = flow.ends()
    w = _integrate(flow.velocity, z.ravel(), noise, data, num_steps)
    return flow.colour(w, flow.time_and_noise(data)[1])


@eqx.filter_jit
def _to_noise(prior: AbstractDenoiser, x: Array, num_steps: int) -> Array:
    flow = WhitenedFlow.of(prior, x.dtype)
    noise, data = flow.ends()
    return _integrate(flow.velocity, flow.whiten(x, data), data, noise, num_steps).reshape(x.shape)


def _integrate(
    velocity: Callable[[Scalar, Array], Array], w: Array, start: Scalar, end: Scalar, num_steps: int
) -> Array:
    """The classical Runge-Kutta method of order 4 with equal steps."""
    h = (end - start) / num_steps

    # Kept in memory are the points between steps; what lies within a step is computed again.
    @jax.checkpoint
    def step(w, clock):
        k1 = velocity(clock, w)
        k2 = velocity(clock + h / 2, w + h / 2 * k1)
        k3 = velocity(clock + h / 2, w + h / 2 * k2)
        k4 = velocity(clock + h, w + h * k3)
        return w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    clocks = start + h * jnp.arange(num_steps, dtype=w.dtype)
    return jax.lax.scan(step, w, clocks)[0]


def _checked(name: str, prior, value, num_steps) -> Array:
    check_prior(name, prior)
    whole_number("num_steps", num_steps, 1)
    value = jnp.asarray(value)
    if value.shape != tuple(prior.shape):
        raise ValueError(
            f"`{name}` expects one example of shape {tuple(prior.shape)}; got {value.shape}. Map over "
            f"several with `jax.vmap`. {_faq.shapes}"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.result_type(float))
    return value
