"""Models made of other models: what they take over from one, and what they share with several."""

import abc

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..schedules import AbstractSchedule
from .base import AbstractDenoiser

__all__ = ["AbstractParts", "AbstractSum", "AbstractWrapper"]


class AbstractWrapper(AbstractDenoiser):
    """A model with the schedule, shape, times, total power and moments of another one.

    Attributes:
        base: The other one.
    """

    base: eqx.AbstractVar[AbstractDenoiser]

    @property
    def schedule(self) -> AbstractSchedule:
        return self.base.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def t_min(self) -> float:
        return self.base.t_min

    @property
    def t_max(self) -> float:
        return self.base.t_max

    def concentration(self, t: Scalar) -> Scalar | float:
        return self.base.concentration(t)

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return self.base.moments(t)


class AbstractParts(AbstractDenoiser):
    """A model of several parts, from the last of their first times to the first of their last ones.

    Attributes:
        energies: The parts, all of one shape and one schedule.
    """

    energies: eqx.AbstractVar[tuple[AbstractDenoiser, ...]]

    @property
    def schedule(self) -> AbstractSchedule:
        return self.energies[0].schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.energies[0].shape

    @property
    def t_min(self) -> float:
        return max(e.t_min for e in self.energies)

    @property
    def t_max(self) -> float:
        return min(e.t_max for e in self.energies)


class AbstractSum(AbstractParts):
    r"""$\prod_i p_i^{\beta_i}$: its parts, and the Gaussian that their Gaussians make."""

    @abc.abstractmethod
    def powers_at(self, t: Scalar) -> list[Scalar | float]:
        r"""The exponents $\beta_i$ at a time."""

    def concentration(self, t: Scalar) -> Scalar | float:
        pairs = zip(self.powers_at(t), self.energies, strict=True)
        return sum(b * e.concentration(t) for b, e in pairs)

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        # Product of Gaussians to powers: precisions add. Where a negative power wins at low noise
        # the approximation is void; fall back on the first part, since only a scale is wanted.
        parts, powers = [e.moments(t) for e in self.energies], self.powers_at(t)
        precision = sum(b / v for b, (_, v) in zip(powers, parts, strict=True))
        linear = sum(b * m / v for b, (m, v) in zip(powers, parts, strict=True))
        at_noise = t >= self.t_max
        usable = (precision > 0) | at_noise
        safe = jnp.where(usable, precision, 1.0)
        mean = jnp.where(usable, linear / safe, parts[0][0])
        return mean, jnp.where(usable, 1.0 / safe, parts[0][1])
