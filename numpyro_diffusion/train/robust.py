r"""A denoising loss at worst-case noised data: distributionally robust training of a denoiser.

Training sees $x_t$ of the data, a sampler the $x_t$ of its own steps, which are a little off. Here the
denoiser answers for the worst point within a radius of $x_t$. That trades accuracy where the data are for
errors that grow more slowly away from them: *the score is biased on purpose*, towards a smoother one.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from .levels import Levels, Weight, karras_weight, uniform_log_snr
from .losses import weighted_error

__all__ = ["robust_loss"]


def robust_loss(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    *,
    radius: float | Callable[[Scalar], Scalar],
    num_steps: int = 3,
    target: str = "shifted",
    levels: Levels = uniform_log_snr,
    data_scale: Scalar | float = 1.0,
    condition: Array | None = None,
    weight: Weight = karras_weight,
) -> Scalar:
    r"""`denoising_loss` at the worst shift $\delta$ of $x_t$ with $\lVert\delta\rVert \le \eta \sqrt d$.

    $$\mathbb{E}\, \lambda(s) \max_{\lVert\delta\rVert \le \eta\sqrt d}
      \tfrac1d \lVert \hat x_0(x_t + \delta) - x_0 \rVert^2 .$$

    In terms of the noise it is $\lVert \hat\epsilon(x_t + \delta) - (\epsilon + \delta/\sigma_t) \rVert^2$:
    the noise that leads from $x_0$ to the perturbed point. The maximum is sought by `num_steps` steps of
    gradient ascent, each as long as the radius and projected back; the gradient of the loss is that at the
    point found, which is the gradient of the maximum (Danskin). A loss costs `num_steps` gradients in $x$
    more.

    For data $\mathcal{N}(0, v)$ and $\hat\epsilon = \theta x$ the maximum is
    $(|\theta x - \epsilon| + \eta\, |\theta - 1/\sigma|)^2$, and $\theta$ is drawn from the exact
    $\sigma / (\alpha^2 v + \sigma^2)$ towards $1/\sigma$, the denoiser that always says the mean. With
    `radius=0` it is `denoising_loss`, bit for bit.

    Args:
        denoiser: Energy or denoiser to be judged.
        key: PRNG key, of the same noise as in `denoising_loss`.
        data: Examples of shape `(num, *shape)`.
        radius: $\eta$, a root mean square over dimensions, in units of $x_t$ (not of $x_t/\alpha_t$); or a
            function of the time, such as `lambda t: 0.1 * schedule(t)[1]`.
        num_steps: Steps of the ascent.
        target: `"shifted"`, as above; or `"original"`, where the noise to be told stays $\epsilon$ and so the
            example to be told is $x_0 + \delta / \alpha_t$. It draws $\theta$ towards 0 instead.
        levels: Draws the times.
        data_scale: Standard deviation of the data.
        condition: One an example, leading with `(num,)`, or `None`.
        weight: $\lambda(s)$.

    Raises:
        ValueError: If `radius` is negative or not finite, or `target` is none of the two.

    References:
        Wang et al. (2025), Improved diffusion-based generative model with better adversarial robustness,
        ICLR, arXiv 2502.17099; their free-running updates of the weights inside the ascent, which save time,
        and their consistency models are not here. Madry et al. (2018), Towards deep learning models
        resistant to adversarial attacks, ICLR, for the ascent.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    if not callable(radius) and not 0 <= radius < math.inf:
        raise ValueError(
            f"`radius` must be finite and not negative, a root mean square in units of x_t; got {radius}. "
            f"Begin with 0.1. {_faq.numbers}"
        )
    if target not in ("shifted", "original"):
        raise ValueError(
            f'`target` must be "shifted" or "original"; got {target!r}. {_faq.choices}'
        )

    def worst(error_at, x, t):
        alpha_t, _ = denoiser.schedule(t)
        reach = (radius(t) if callable(radius) else radius) * math.sqrt(x.size)
        moved = 1 / alpha_t if target == "original" else 0.0
        error = lambda delta: error_at(x + delta) - moved * delta
        climb = jax.grad(lambda delta: jnp.sum(error(delta) ** 2))
        delta = jnp.zeros_like(x)
        for _ in range(num_steps):
            delta = _within(delta + reach * _direction(climb(delta)), reach)
        return error(jax.lax.stop_gradient(delta))

    clean = lambda x_0, u, s, c: x_0
    options = {"levels": levels, "data_scale": data_scale, "condition": condition}
    return weighted_error(denoiser, key, data, clean, weight=weight, worst=worst, **options)


def _direction(gradient: Array) -> Array:
    """The gradient at length 1, or 0 where it is 0."""
    largest = jnp.max(jnp.abs(gradient))  # squares of small gradients would underflow
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.where(largest > 0, jnp.sqrt(jnp.sum(scaled**2)), 1.0)


def _within(delta: Array, reach: Scalar | float) -> Array:
    """The nearest point of the ball."""
    size = jnp.sqrt(jnp.sum(delta**2))
    return delta * jnp.where(size > reach, reach / jnp.where(size > 0, size, 1.0), 1.0)
