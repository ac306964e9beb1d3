r"""Distillation of a score into an energy.

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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from ..energies import (
    AbstractDenoiser,
    AbstractEnergy,
    AbstractNetworkEnergy,
    NetworkDenoiser,
)
from ..nets import Scaled
from .fit import fit
from .losses import Levels, given_each, level_loss, uniform_log_snr, weighted_error
from .options import Optimizer
from .result import FitResult

__all__ = ["distill", "distillation_loss", "from_teacher"]


def distillation_loss(
    student: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    teacher: AbstractDenoiser,
    *,
    levels: Levels = uniform_log_snr,
    data_scale: Scalar | float = 1.0,
    condition: Array | None = None,
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
        condition: Of student and teacher, one an example, leading with `(num,)`; or `None`.
    """

    def says(x_0, u, s, c):
        del x_0
        there = teacher.schedule.time(-2 * jnp.log(s)).astype(u.dtype)
        alpha_there, _ = teacher.schedule(there)
        return jax.lax.stop_gradient(given_each(teacher, c).denoise(alpha_there * u, there))

    options = {"levels": levels, "data_scale": data_scale, "condition": condition}
    return weighted_error(student, key, data, says, **options)


def from_teacher(
    student: AbstractNetworkEnergy, teacher: NetworkDenoiser, factor: float = 0.5
) -> AbstractNetworkEnergy:
    r"""The student with the teacher's backbone, times a factor.

    An inner-product energy should count the teacher's weights half: for a linear symmetric network $F = K w$
    the gradient of $\tfrac12 \langle F, w \rangle$ is $K w$. For an `AutoencoderEnergy` the factor is 1.

    Args:
        student: Energy with the coordinates of the teacher.
        teacher: Denoiser whose backbone is taken.
        factor: What its output is multiplied by.

    Raises:
        ValueError: If the two have not the same coordinates, where the weights would mean something else.
    """
    parts = lambda energy: (energy.mean, energy.scales, energy.basis)
    if not eqx.tree_equal(parts(student), parts(teacher.base)):
        raise ValueError(
            "student and teacher must share mean, scales and basis, or the teacher's weights mean "
            f"something else; make both with `from_data` of the same data. {_faq.together}"
        )
    return eqx.tree_at(lambda e: e.net, student, Scaled(teacher.net, factor))


def distill(
    key: PRNGKey,
    teacher: AbstractDenoiser,
    student: AbstractEnergy,
    data,
    *,
    level_weight: float = 0.0,
    **options: Any,
) -> FitResult:
    r"""Fit an energy to a teacher's denoiser: `fit` with `distillation_loss`.

    A student of the teacher's architecture may start from its weights, see `from_teacher`.

    Args:
        key: PRNG key.
        teacher: Denoiser, score or energy of the same data, in the same units; it stays as it is. See
            `ScoreFunction` for a network that comes as a function.
        student: Energy to start from, for example `ProperEnergy.from_data(...)`.
        data: Examples of shape `(num, *shape)`, or any other source that `fit` takes: a sampler
            `fn(key) -> example`, say. They say only where the two are compared.
        level_weight: Weight of `level_loss`, which ties levels to one another and far-off regions through
            them. A projection of scores says nothing of that; 0.1 makes an energy that samples well.
        **options: Those of `fit`, except `loss`. With `condition=`, teacher and student are both told.

    Raises:
        ValueError: If the shapes of teacher and student differ, or what `fit` raises.
        TypeError: If the student has no energy, or `loss` is given.
    """
    if not isinstance(student, AbstractEnergy):
        raise TypeError(
            f"`distill` expects an energy as student; got {type(student).__name__}. A denoiser can be "
            f"fitted with `fit(..., loss=)`. {_faq.kinds}"
        )
    if tuple(teacher.shape) != tuple(student.shape):
        raise ValueError(
            f"teacher and student must have one shape; got {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}. {_faq.shapes}"
        )
    if "loss" in options:
        raise TypeError(
            f"`distill` has a loss of its own; use `fit` for another one. {_faq.together}"
        )
    _, variance = teacher.moments(jnp.asarray(teacher.t_min))
    alpha_t, _ = teacher.schedule(jnp.asarray(teacher.t_min))
    scale = float(jnp.sqrt(jnp.mean(variance)) / alpha_t)
    if not callable(data) and hasattr(data, "shape"):
        scale = float(np.sqrt(np.mean(np.var(np.asarray(data), 0)))) or 1.0

    def loss(energy, key, batch, **told):
        key_level, key = jax.random.split(key) if level_weight else (key, key)
        value = distillation_loss(energy, key, batch, teacher, data_scale=scale, **told)
        if level_weight:
            value += level_weight * level_loss(energy, key_level, batch, **told)
        return value

    # A teacher's answers cannot be learned by heart as examples can: few need no strong decay.
    optimizer = options.pop("optimizer", Optimizer()).with_decay(1e-2)
    return fit(key, student, data, loss=loss, optimizer=optimizer, **options)
