"""What sums of energies and of denoisers share, whatever their powers are made of."""

import abc

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..schedules import AbstractSchedule
from .base import AbstractDenoiser

__all__ = ["AbstractSum"]


class AbstractSum(AbstractDenoiser):
    r"""$\prod_i p_i^{\beta_i}$: its parts, and the Gaussian that their Gaussians make.

    Attributes:
        energies: The parts, all of one shape and one schedule.
    """

    energies: eqx.AbstractVar[tuple[AbstractDenoiser, ...]]

    @abc.abstractmethod
    def powers_at(self, t: Scalar) -> list[Scalar | float]:
        r"""The exponents $\beta_i$ at a time."""

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
