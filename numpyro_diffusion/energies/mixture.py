r"""Mixtures of energies."""

import math
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from .checks import at_one_time, check_alike, is_traced, sum_to_one
from .energy import AbstractEnergy
from .parts import AbstractParts

__all__ = ["Mixture"]


class Mixture(AbstractParts, AbstractEnergy):
    r"""$E(x, t) = -\log \sum_i \omega_i e^{-E_i(x, t) - L_i}$: the distribution $\sum_i \omega_i p_i(x)$.

    Unlike products, mixtures need to know how the normalisers $L_i$ of their parts compare. They are those
    at `t_min`, so that the distribution there is right whatever $L_i(t)$ does at other levels; of the noised
    distribution it is the noised distribution, if the parts are normalised at every level.

    Args:
        energies: The parts, all of one shape and one schedule, with known `log_normalizer`.
        weights: $\omega_i$, one a part, positive, of sum 1. Equal by default. May be traced, and are then
            normalised; of negative ones the density is NaN.

    Raises:
        ValueError: If shapes or schedules differ, a weight is not positive, weights do not sum to 1, or a
            normaliser is not known.
    """

    energies: tuple[AbstractEnergy, ...]
    weights: tuple[float, ...] | None = eqx.field(static=True)  # `None` where they are traced
    log_normalizer: float | None = eqx.field(static=True)
    log_normalizer_error: float = eqx.field(static=True)
    traced_weights: Array | None = None

    def __init__(self, energies, weights=None):
        energies = tuple(energies)
        if not energies:
            raise ValueError(f"`Mixture` expects at least one energy; got none. {_faq.shapes}")
        check_alike("energies of a mixture", energies)
        self.energies = energies = at_one_time(energies)
        traced = is_traced(weights)
        if traced:
            sizes: Any = jnp.asarray(weights, float)
        else:
            equal = np.ones(len(self.energies)) / len(self.energies)
            sizes = equal if weights is None else np.asarray(weights, float)
        fine = traced or (np.isfinite(sizes) & (sizes > 0)).all()
        if sizes.shape != (len(self.energies),) or not fine:
            raise ValueError(
                f"`Mixture` expects one positive weight for each of {len(self.energies)} energies; got "
                f"{weights}. {_faq.shapes}"
            )
        if not traced:
            sum_to_one("weights", sizes)
        unknown = [i for i, e in enumerate(self.energies) if e.log_normalizer is None]
        if unknown:
            raise ValueError(
                f"`Mixture` needs the normalisers of its parts; those of parts {unknown} are not known. Find "
                "one with `prior_normalizer` or `pointwise_normalizer` and keep it with "
                f"`energy.with_log_normalizer(value, error)`. {_faq.needs_normaliser}"
            )
        if traced:
            sizes = jnp.where(jnp.all(sizes >= 0), sizes, jnp.nan)  # no density
            self.weights, self.traced_weights = None, sizes / sizes.sum()
        else:
            self.weights, self.traced_weights = tuple(float(w) for w in sizes / sizes.sum()), None
        self.log_normalizer = 0.0
        # Errors of single parts move the odds between them; of the whole, the mean is what can be said.
        shares = (1.0,) * len(energies) if self.weights is None else self.weights  # at most
        errors = [w * e.log_normalizer_error for w, e in zip(shares, energies, strict=True)]
        total = math.sqrt(sum(error**2 for error in errors))
        self.log_normalizer_error = max(errors) if self.weights is None else total

    @property
    def shares(self) -> Any:
        """The weights, traced or not."""
        return self.traced_weights if self.weights is None else self.weights

    @property
    def normalized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(e.normalized for e in self.energies)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """The mixture of parts that all have these times, with normalisers that hold at `t_min`."""
        low, high = self.t_min if t_min is None else t_min, self.t_max if t_max is None else t_max
        parts = [e.with_horizon(t_min=low, t_max=high) for e in self.energies]
        return type(self)(parts, self.shares)

    def part_log_densities(self, x: Array, t: Scalar) -> Array:
        r"""$\log \omega_i - E_i(x, t) - L_i$, of shape `(num_parts,)`."""
        values = [
            (jnp.log(w) if self.weights is None else math.log(w))
            - e.energy(x, t)
            - (e.log_normalizer or 0.0)
            for w, e in zip(self.shares, self.energies, strict=True)
        ]
        return jnp.stack(values)

    def energy(self, x: Array, t: Scalar) -> Scalar:
        return -jax.nn.logsumexp(self.part_log_densities(x, t))

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        parts = [e.moments(t) for e in self.energies]
        pairs = list(zip(self.shares, parts, strict=True))
        mean = sum(w * m for w, (m, _) in pairs)
        variance = sum(w * (v + (m - mean) ** 2) for w, (m, v) in pairs)
        return mean, variance  # pyright: ignore[reportReturnType]

    def draw(self, key: PRNGKey, t: Scalar) -> Array | None:
        """A draw of one part, where all have exact draws and are normalised at every level."""
        key_part, key_draw = jax.random.split(key)
        draws = [e.draw(key_draw, t) for e in self.energies]
        if any(draw is None for draw in draws) or not self.normalized:
            return None
        part = jax.random.categorical(key_part, jnp.log(jnp.asarray(self.shares)))
        return jnp.stack(draws)[part]  # pyright: ignore[reportArgumentType]
