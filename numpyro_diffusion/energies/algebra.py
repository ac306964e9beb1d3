r"""Sums of energies: products, powers and ratios of laws.

$\sum_i \beta_i E_i(x_t, t)$ is, at $t_{\min}$, exactly the energy of $\prod_i p_i^{\beta_i}$. At
higher noise it is *not* the noised product (noising and multiplying do not commute): there it is only
a path. Samplers that weigh their particles make its end exact.
"""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._typing import Array, Scalar
from ..schedules import AbstractSchedule
from .base import AbstractEnergy

__all__ = ["Composed", "combine"]


class Composed(AbstractEnergy):
    r"""$E(x, t) = \sum_i \beta_i E_i(x, t)$: the law $\propto \prod_i p_i(x)^{\beta_i}$.

    Usually written with operators: `(e1 + e2) / 0.5`, `e1 - 0.3 * e2`.

    Attributes:
        energies: The parts, all of one shape and one schedule.
        powers: Their exponents $\beta_i$.
        log_normalizer: Unknown (`None`) except for a single part to the power 1.

    Raises:
        ValueError: If shapes or schedules differ, or if the Gaussian approximations say that the
            composition cannot be normalised at high noise ($\sum_i \beta_i / v_i \le 0$).
    """

    energies: tuple[AbstractEnergy, ...]
    powers: tuple[float, ...] = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if len(self.energies) != len(self.powers) or not self.energies:
            raise ValueError(
                "`Composed` expects one power an energy and at least one energy; got "
                f"{len(self.energies)} energies and {len(self.powers)} powers."
            )
        first = self.energies[0]
        for other in self.energies[1:]:
            if other.shape != first.shape:
                raise ValueError(
                    f"composed energies must share one shape; got {first.shape} and {other.shape}."
                )
            if not eqx.tree_equal(other.schedule, first.schedule):
                raise ValueError(
                    f"composed energies must share one schedule; got {first.schedule} and "
                    f"{other.schedule}. Train or wrap them under the same one."
                )
        with jax.ensure_compile_time_eval():
            _, variance = self.moments(jnp.asarray(self.t_max))
        if not isinstance(variance, Tracer) and not bool(jnp.all(variance > 0)):
            raise ValueError(
                f"the composition with powers {self.powers} has no positive precision at t_max = "
                f"{self.t_max:.3g}, so it cannot be normalised. Raise the positive powers or lower "
                "the negative ones."
            )

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

    @property
    def concentration(self) -> float:
        return sum(b * e.concentration for b, e in zip(self.powers, self.energies, strict=True))

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """The same composition of parts that all have these times."""
        low, high = self.t_min if t_min is None else t_min, self.t_max if t_max is None else t_max
        parts = tuple(e.with_horizon(t_min=low, t_max=high) for e in self.energies)
        known = (
            (self.log_normalizer, self.log_normalizer_error) if low == self.t_min else (None, 0.0)
        )
        return type(self)(parts, self.powers, *known)  # pyright: ignore[reportCallIssue]

    def energy(self, x: Array, t: Scalar) -> Scalar:
        return sum(
            (b * e.energy(x, t) for b, e in zip(self.powers, self.energies, strict=True)),
            start=jnp.zeros((), x.dtype),
        )

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        # Product of Gaussians to powers: precisions add. Where a negative power wins at low noise
        # the approximation is void; fall back on the first part, since only a scale is wanted.
        parts = [e.moments(t) for e in self.energies]
        precision = sum(b / v for b, (_, v) in zip(self.powers, parts, strict=True))
        linear = sum(b * m / v for b, (m, v) in zip(self.powers, parts, strict=True))
        at_noise = t >= self.t_max
        usable = (precision > 0) | at_noise
        safe = jnp.where(usable, precision, 1.0)
        mean = jnp.where(usable, linear / safe, parts[0][0])
        return mean, jnp.where(usable, 1.0 / safe, parts[0][1])


def combine(energies: tuple[AbstractEnergy, ...], powers: tuple[float, ...]) -> AbstractEnergy:
    """Sum energies with powers, flattening sums of sums so that each part is evaluated once."""
    parts, exponents = [], []
    for energy, power in zip(energies, powers, strict=True):
        if isinstance(energy, Composed):
            parts.extend(energy.energies)
            exponents.extend(power * b for b in energy.powers)
        else:
            parts.append(energy)
            exponents.append(power)
    powers = tuple(float(b) for b in exponents)
    return Composed(energies=tuple(parts), powers=powers)  # pyright: ignore[reportCallIssue]
