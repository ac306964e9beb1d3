"""Twist for likelihoods without a gradient: the denoised mean, held constant."""

from typing import ClassVar

import jax

from .._typing import Array, Scalar
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance

__all__ = ["BlackBox"]


class BlackBox(AbstractTwist):
    r"""The rest of the model sees the denoised mean $\hat x$, and no gradient is asked of it.

    Draws and moves follow the prior alone; the likelihood, or a reward $r$ as
    `numpyro.factor("reward", r(x))`, only weighs particles, by $p(y \mid \hat x_s) / p(y \mid \hat x_t)$ from
    level to level. Simulators in other languages and decision rules will do (`jax.pure_callback`). It needs
    far more particles than a twist with a gradient.

    References:
        Singhal et al. (2025), A General Framework for Inference-time Scaling and Steering of Diffusion
        Models, arXiv 2501.06848: the potential "difference", with all its weights kept.
    """

    takes_gradients: ClassVar[bool] = False

    def of_denoised(self, u: Array, x_hat: Array) -> Array:
        del u
        return jax.lax.stop_gradient(x_hat)

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        log_density, score = energy.log_density_and_score(u, t)
        return log_density, jax.lax.stop_gradient(u + added_variance(energy, t) * score)
