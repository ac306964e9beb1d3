r"""A learned log normaliser by noise level, for a fixed energy."""

from collections.abc import Callable
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import whole_number, whole_or_none
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from ..schedules import AbstractSchedule
from .consistency import step_errors
from .losses import Levels, uniform_log_snr

__all__ = ["LevelNormalizer", "fit_normalizer"]


class LevelNormalizer(eqx.Module):
    r"""$L(t) - L(t_{\max}) = \sum_j c_j (T_j(x) - 1)$ in nats, with Chebyshev's polynomials $T_j$.

    $x$ is the log noise level, -1 at `t_min` and 1 at `t_max`. There is no constant, which no comparison of
    levels can tell; `prior_normalizer` finds it.

    Attributes:
        coefficients: $c_1, c_2, \dots$ in nats, shape `(num_orders,)`.
        schedule: The schedule of the energy.
        t_min: Its smallest time.
        t_max: Its largest time.
    """

    coefficients: Array
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)

    @classmethod
    def of(cls, energy: AbstractDenoiser, num_orders: int = 12) -> Self:
        """Zero at every level of an energy, to be learned."""
        zeros = jnp.zeros(num_orders)
        return cls(zeros, energy.schedule, energy.t_min, energy.t_max)

    def series(self, t: Scalar) -> Array:
        r"""$T_j(x) - 1$, of the shape of the coefficients."""
        level = lambda t: jnp.log(self.schedule.noise_level(jnp.asarray(t)))
        low, high = level(self.t_min), level(self.t_max)
        x = (2 * level(t) - low - high) / (high - low)
        values = [jnp.ones_like(x), x]
        for _ in range(len(self.coefficients) - 1):
            values.append(2 * x * values[-1] - values[-2])
        return jnp.stack(values[1:]) - 1

    def __call__(self, t: Scalar) -> Scalar:
        return jnp.sum(self.coefficients * self.series(t))


def fit_normalizer(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    num_orders: int = 12,
    step: float = 0.1,
    num_probes: int | None = None,
    levels: Levels = uniform_log_snr,
) -> LevelNormalizer:
    r"""The `LevelNormalizer` with the least `consistency_loss`: a linear regression, no training.

    Right where the scores of the energy are, to order `step`; where they are wrong, differences of $L$ are
    wrong by the mean residual of the heat equation.

    Args:
        energy: Energy that stays as it is.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`, each used once; thousands.
        num_orders: Number of coefficients.
        step: Difference of log noise of two neighbouring levels.
        num_probes: As in `step_errors`.
        levels: Draws the times.
    """
    key = check_key(key)
    num_orders = whole_number("num_orders", num_orders, 1)
    num_probes = whole_or_none("num_probes", num_probes, 1, "`None` takes the whole covariance.")
    options = {"step": step, "num_probes": num_probes, "levels": levels}
    errors, (lower, upper) = _errors(energy, key, data, options)
    normalizer = LevelNormalizer.of(energy, num_orders)
    rows = (jax.vmap(normalizer.series)(upper) - jax.vmap(normalizer.series)(lower)) / step
    coefficients = jnp.linalg.lstsq(rows, errors)[0]
    return eqx.tree_at(lambda module: module.coefficients, normalizer, coefficients)


_errors: Callable = eqx.filter_jit(
    lambda energy, key, data, options: step_errors(energy, key, data, **options)
)
