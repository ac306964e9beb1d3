"""The identity twist: the noised variable itself."""

from .._typing import Array, Scalar
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist

__all__ = ["Identity"]


class Identity(AbstractTwist):
    r"""The rest of the model sees the noised variable as it is: $\hat x = u_t$.

    Cheapest, since no gradient of a score is taken. The likelihood stays as narrow at high noise as
    at low noise, so the path is steeper than with `Tweedie`.
    """

    def of_denoised(self, u: Array, x_hat: Array) -> Array:
        del x_hat
        return u

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        return energy.log_density(u, t), u
