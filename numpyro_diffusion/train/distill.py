r"""Distillation: an energy from a score that is the gradient of nothing.

A score network is trained as a vector field; nothing makes it the gradient of a log density. The energy whose
gradient is nearest to it on noised data is a projection,

$$\min_\theta\; \mathbb{E}_{t, x_t}\, \lambda\, \lVert \hat x_\theta(x_t) - \hat x^*(x_t) \rVert^2,$$

with the denoisers $\hat x_\theta$ of the energy and $\hat x^*$ of the teacher. What is left over, $r$, has
$\nabla \cdot (p_t r) = 0$: the rotation that a score cannot have. Two scores whose rotations are harmless
alone are wrong once they are added, so distil before composing. The target is a mean, not one noisy
example, so that gradients vary far less than in training on data.

References:
    Thornton et al. (2025), Composition and Control with Distilled Energy Diffusion Models and Sequential
    Monte Carlo, arXiv 2502.12786.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from .fit import FitResult, fit
from .losses import Levels, uniform_log_snr

__all__ = ["distill", "distillation_loss"]


def distillation_loss(
    student: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    teacher: AbstractDenoiser,
    *,
    levels: Levels = uniform_log_snr,
    data_scale: Scalar | float = 1.0,
) -> Scalar:
    r"""Mean over examples and dimensions of $\lambda(s)\,(\hat x_\theta - \hat x_{\text{teacher}})^2$.

    $\lambda(s) = (s^2 + d^2) / (s d)^2$ as in `denoising_loss`: for the same noise the two losses differ by
    what no denoiser can know. Teacher and student meet at the same noise level, each under its own schedule.

    Args:
        student: Energy that learns.
        key: PRNG key.
        data: Examples of shape `(num, *shape)` that are noised to where the two are compared.
        teacher: Denoiser or energy; no gradient goes through it.
        levels: Draws the times, `levels(key, student, num)`.
        data_scale: $d$, the standard deviation of the data in $\lambda$.
    """
    key_level, key_noise = jax.random.split(key)
    times = levels(key_level, student, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def one(x_0, t, epsilon):
        s = student.schedule.noise_level(t)
        u = x_0 + s * epsilon
        alpha_t, _ = student.schedule(t)
        there = teacher.schedule.time(-2 * jnp.log(s)).astype(u.dtype)
        alpha_there, _ = teacher.schedule(there)
        target = jax.lax.stop_gradient(teacher.denoise(alpha_there * u, there))
        error = student.denoise(alpha_t * u, t) - target
        return (1 / s**2 + 1 / data_scale**2) * jnp.mean(error**2)

    return jnp.mean(jax.vmap(one)(data, times, noise))


def distill(
    key: PRNGKey, teacher: AbstractDenoiser, student: AbstractEnergy, data, **options: Any
) -> FitResult:
    r"""Fit an energy to a teacher's denoiser: `fit` with `distillation_loss`.

    A student of the teacher's architecture may start from its weights. An inner-product energy should then
    count them half: for a linear symmetric network $F = K w$ its gradient is $2 K w$.

    Args:
        key: PRNG key.
        teacher: Denoiser, score or energy of the same data, in the same units; it stays as it is. See
            `ScoreFunction` for a network that comes as a function.
        student: Energy to start from, for example `ProperEnergy.from_data(...)`.
        data: Examples of shape `(num, *shape)`: real ones, or the teacher's samples. They say only where the
            two are compared.
        **options: Those of `fit`, except `loss`.

    Raises:
        ValueError: If the shapes of teacher and student differ, or what `fit` raises.
        TypeError: If the student has no energy, or `loss` is given.
    """
    if not isinstance(student, AbstractEnergy):
        raise TypeError(
            f"`distill` expects an energy as student; got {type(student).__name__}. A denoiser can be "
            "fitted with `fit(..., loss=)`."
        )
    if tuple(teacher.shape) != tuple(student.shape):
        raise ValueError(
            f"teacher and student must have one shape; got {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}."
        )
    if "loss" in options:
        raise TypeError("`distill` has a loss of its own; use `fit` for another one.")
    scale = float(np.sqrt(np.mean(np.var(np.asarray(data), 0)))) or 1.0
    loss = lambda energy, key, batch: distillation_loss(
        energy, key, batch, teacher, data_scale=scale
    )
    return fit(key, student, data, loss=loss, **options)
