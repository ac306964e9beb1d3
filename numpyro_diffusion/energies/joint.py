r"""Joint energies of several variables, so that factors can couple them."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from .checks import at_one_time, check_alike
from .energy import AbstractEnergy
from .parts import AbstractParts

__all__ = ["Joint"]


class Joint(AbstractParts, AbstractEnergy):
    r"""Independent variables side by side: $\sum_k E_k(x_k, t)$ of $x$ of shape `(num, *shape)`.

    With a factor over all of them, such as `Coupling`, they are no longer independent:
    `Joint([first, second]) + Coupling(cost)`. Priors of other shapes or schedules are two sites of a NumPyro
    model, coupled by `numpyro.factor`.

    Args:
        energies: One a variable, all of one shape and one schedule; or one for all.
        num: Number of variables, where one energy serves all. They are then exchangeable.

    Raises:
        ValueError: If shapes or schedules differ, or there is no variable.
    """

    energies: tuple[AbstractEnergy, ...]
    num: int = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True)
    log_normalizer_error: float = eqx.field(static=True)

    def __init__(self, energies, num: int | None = None):
        parts = (energies,) if isinstance(energies, AbstractEnergy) else tuple(energies)
        num = len(parts) if num is None else num
        num = whole_number("num", num, 0)
        if not parts or num < 1 or len(parts) not in (1, num):
            raise ValueError(
                f"`Joint` expects one energy a variable, or one for `num` variables; got {len(parts)} "
                f"energies and num={num}. {_faq.shapes}"
            )
        check_alike("energies of joint variables", parts)
        parts = at_one_time(parts)
        self.energies, self.num = parts, num
        times = num if len(parts) == 1 else 1
        known = [e.log_normalizer for e in parts]
        self.log_normalizer = None if None in known else times * sum(v or 0.0 for v in known)
        self.log_normalizer_error = times * sum(e.log_normalizer_error**2 for e in parts) ** 0.5

    @property
    def normalized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(e.normalized for e in self.energies)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num, *self.energies[0].shape)

    def concentration(self, t: Scalar) -> Scalar | float:
        # One number serves all variables; the narrowest would be too narrow for the others.
        powers = jnp.stack([jnp.asarray(e.concentration(t), float) for e in self.energies])
        return jnp.min(powers)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """Return the same variables with other first and last times."""
        low, high = self.t_min if t_min is None else t_min, self.t_max if t_max is None else t_max
        parts = tuple(e.with_horizon(t_min=low, t_max=high) for e in self.energies)
        return type(self)(parts, self.num)

    def energy(self, x: Array, t: Scalar) -> Scalar:
        if len(self.energies) == 1:
            return jnp.sum(jax.vmap(lambda part: self.energies[0].energy(part, t))(x))
        return sum(
            (e.energy(part, t) for e, part in zip(self.energies, x, strict=True)),
            start=jnp.zeros((), x.dtype),
        )

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        parts = [e.moments(t) for e in self.energies]
        stack = lambda leaves: jnp.broadcast_to(jnp.stack(leaves), self.shape)
        return stack([m for m, _ in parts]), stack([v for _, v in parts])

    def draw(self, key: PRNGKey, t: Scalar) -> Array | None:
        keys = jax.random.split(key, self.num)
        if self.energies[0].draw(key, t) is None:
            return None
        if len(self.energies) == 1:
            return jax.vmap(lambda key: self.energies[0].draw(key, t))(keys)  # pyright: ignore
        draws = [e.draw(k, t) for e, k in zip(self.energies, keys, strict=True)]
        return None if any(d is None for d in draws) else jnp.stack(draws)  # pyright: ignore
