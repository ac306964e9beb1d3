"""A twist for few coordinates and another for many."""

import equinox as eqx

from .._arguments import check_counts, plain
from .._typing import Array, Scalar
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist
from .tweedie import Tweedie
from .widened import Widened

__all__ = ["ByDimension"]


class ByDimension(AbstractTwist):
    r"""`Widened` where its matrix costs little, `Tweedie` where it would cost more than the network.

    A bridge counts the coordinates of all its diffusion sites and keeps one of the two.

    Attributes:
        few: Up to `most` coordinates.
        many: Beyond.
        most: 4: in 8 dimensions it did harm with precise data of unknown noise level.
    """

    few: AbstractTwist = eqx.field(default_factory=Widened)
    many: AbstractTwist = eqx.field(default_factory=Tweedie)
    most: int = eqx.field(static=True, converter=plain, default=4)

    def __check_init__(self):
        check_counts(self, most=0)

    def of_size(self, num_coordinates: int) -> AbstractTwist:
        return self.few if num_coordinates <= self.most else self.many

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        return self.of_size(u.size)(energy, u, t)

    def of_denoised(self, u: Array, x_hat: Array) -> Array:
        return self.of_size(u.size).of_denoised(u, x_hat)
