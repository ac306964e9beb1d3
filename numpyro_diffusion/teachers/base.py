"""Base class of teachers: networks of others, described by a card."""

import abc

from equinox import AbstractVar

from .._typing import Array, Scalar
from ..energies import AbstractDenoiser
from ..energies.rough import rough_moments
from ..schedules import AbstractSchedule
from .card import PriorCard

__all__ = ["AbstractTeacher"]


class AbstractTeacher(AbstractDenoiser):
    """A denoiser whose network, schedule and units are those of a card.

    Attributes:
        card: What the network was trained on, and what its output means.
        mean: Rough mean of clean data.
        variance: Rough variance of clean data.
    """

    card: AbstractVar[PriorCard]
    mean: AbstractVar[Array]
    variance: AbstractVar[Array]

    @property
    def schedule(self) -> AbstractSchedule:
        return self.card.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.card.shape

    @abc.abstractmethod
    def output(self, x: Array, t: Scalar) -> Array:
        """Output of the network at $x_t$ = `x` and our time `t`, in its own convention."""

    def denoise(self, x: Array, t: Scalar) -> Array:
        alpha_t, sigma_t = self.schedule(t)
        return self.card.prediction(self.output(x, t), x, alpha_t, sigma_t)

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return rough_moments(self, t)
