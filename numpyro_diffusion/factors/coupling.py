r"""Couplings: factors over several diffusion variables."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from .. import _faq
from .._arguments import check_callable
from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised
from .mmd_kernels import distance

__all__ = ["Coupling", "hinge", "log_repulsion", "squared_distance"]


def squared_distance(*x: Array) -> Scalar:
    r"""$\sum_k |x_{k+1} - x_k|^2$: neighbours are alike."""
    return sum((jnp.sum((b - a) ** 2) for a, b in zip(x, x[1:], strict=False)), jnp.zeros(()))


class _Pairs(eqx.Module):
    """A cost that is a sum over pairs of variables of a function of their distance."""

    of_distance: Callable[..., Scalar] = eqx.field(static=True)
    parameters: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, *x: Array) -> Scalar:
        pairs = ((a, b) for k, a in enumerate(x) for b in x[k + 1 :])
        costs = (self.of_distance(distance(a, b), *self.parameters) for a, b in pairs)
        return sum(costs, jnp.zeros(()))


def log_repulsion(offset: float = 1.0) -> Callable[..., Scalar]:
    r"""$-\sum_{k < l} \log(|x_k - x_l| + a)$: the distribution is multiplied by distances, to the strength.

    Args:
        offset: $a > 0$.
    """
    if not offset > 0:
        raise ValueError(
            f"`offset` of `log_repulsion` must be positive; got {offset}. Try 1. {_faq.numbers}"
        )
    return _Pairs(lambda r, a: -jnp.log(r + a), (offset,))


def hinge(reach: float = 1.0, power: float = 2.0) -> Callable[..., Scalar]:
    r"""$\sum_{k < l} \max(r - |x_k - x_l|, 0)^m$: repulsion that ends at a distance.

    Args:
        reach: $r > 0$.
        power: $m \ge 1$; from 2 on the cost has a slope everywhere.
    """
    if not (reach > 0 and power >= 1):
        raise ValueError(
            "`hinge` expects a positive reach and a power of at least 1; got "
            f"reach={reach}, power={power}. {_faq.numbers}"
        )
    return _Pairs(lambda d, r, m: jnp.maximum(r - d, 0.0) ** m, (reach, power))


class Coupling(AbstractFactor):
    r"""$\log h = -\lambda\, c(x_1, \dots, x_K)$ over the variables of a `Joint`.

    Priors that were trained apart, with a term that none of them knew of. At noisy levels the cost is that of
    the denoised means. Variables of different shapes are sites of a NumPyro model, coupled by
    `numpyro.factor`.

    Attributes:
        cost: From the $K$ variables, as $K$ arguments, to a scalar: `squared_distance`, `log_repulsion(a)`,
            `hinge(r, power)`, or a function.
        strength: $\lambda$.

    Raises:
        ValueError: If there is one variable or none.

    References:
        Luan, Goh, Ng & Ling (2025), Projected coupled diffusion for test-time constrained joint generation,
        arXiv 2508.10531.
    """

    cost: Callable[..., Scalar] = eqx.field(static=True, default=squared_distance)
    strength: Scalar | float = 1.0

    def __check_init__(self):
        check_callable("cost", self.cost, "first, second, ... -> cost")

    def log_value(self, noised: Noised) -> Scalar:
        if noised.x_hat.ndim < 1 or len(noised.x_hat) < 2:
            raise ValueError(
                "`Coupling` couples the variables of a `Joint`, at least two along the first axis; got one "
                f"variable of shape {noised.x_hat.shape}. Use `Joint([first, second]) + "
                f"Coupling(...)`. {_faq.shapes}"
            )
        return -(self.strength * self.cost(*noised.x_hat)).astype(noised.u.dtype)
