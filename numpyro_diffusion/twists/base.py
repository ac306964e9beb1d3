r"""Base class of twists.

Halfway through sampling a model holds a noised variable, but its likelihood speaks of clean data. A
twist says what to put there. It acts on $u_t = x_t / \alpha_t$, the noised variable in the units of
the data, in which the noising is plain addition: $u_t = u_s + \mathcal{N}(0, (s_t^2 - s_s^2) I)$ with
noise levels $s_t = \sigma_t / \alpha_t$.
"""

import abc
from typing import ClassVar

import equinox as eqx

from .._typing import Array, Scalar, Shaped
from .._written import one_line
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from ..energies.noise import added_variance as added_variance
from ..energies.noise import denoised_mean as denoised_mean
from ..energies.noise import root_of as root_of
from .low_rank import LowRank

__all__ = ["AbstractTwist", "added_variance", "denoised_mean"]


class AbstractTwist(eqx.Module):
    r"""A map from a noised variable to what the rest of the model sees of it.

    At `t_min` every twist is the identity, so that the last level is the user's own model.

    Attributes:
        takes_gradients: Whether the likelihood is differentiated in the diffusion sites.
    """

    __repr__ = one_line

    takes_gradients: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, energy: AbstractEnergy, u: Shaped, t: Scalar) -> tuple[Scalar, Shaped]:
        r"""Log density of $u_t$ and the twisted value, from one evaluation of the energy.

        Args:
            energy: The energy of the diffusion.
            u: One noised example in the units of the data, of shape `energy.shape`.
            t: Time, shape `()`.

        Returns:
            `energy.log_density(u, t)` of shape `()`, in nats, and `x_hat` of shape `energy.shape`.
        """

    def of_denoised(self, u: Shaped, x_hat: Shaped) -> Shaped:
        """The twisted value where the denoised mean is at hand, as in path space."""
        del u
        return x_hat

    def of_size(self, num_coordinates: int) -> "AbstractTwist":
        """The twist of a bridge whose diffusion sites have so many coordinates in all."""
        del num_coordinates
        return self

    @property
    def num_directions(self) -> int:
        """Directions from the data along which a bridge finds the covariance around the twisted value.

        With it in place of `covariance_root`. 0 for none.
        """
        return 0

    def covariance_root(
        self, energy: AbstractDenoiser, u: Array, t: Scalar
    ) -> Array | LowRank | None:
        """Root of the covariance around the twisted value, over which the likelihood is averaged.

        Standard deviations of shape `energy.shape`, or a symmetric matrix over its flattened coordinates;
        or a `LowRank` covariance of one example, for products alone. Zero at `t_min`. `None` for none: the
        likelihood is then raised to a power instead.
        """
        del energy, u, t
        return None

    def evaluations(self, energy: AbstractDenoiser) -> int:
        """Network evaluations of one call, with the covariance; derivatives count as evaluations."""
        del energy
        return 1
