"""The divergence of a vector field: exact, or by Hutchinson's random probes.

Not matfree's estimator, which returns the mean: errors need single estimates, and a flow keeps its probes.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .._typing import Array, PRNGKey, Scalar
from .._written import one_line

__all__ = ["AbstractDivergence", "ExactDivergence", "Hutchinson"]


class AbstractDivergence(eqx.Module):
    r"""Estimator of $f(u)$ together with its divergence $\nabla \cdot f(u)$."""

    __repr__ = one_line

    @abc.abstractmethod
    def num_derivatives(self, dimension: int) -> int:
        """Directional derivatives that one evaluation takes, in `dimension` coordinates."""

    @abc.abstractmethod
    def directions(self, key: PRNGKey, like: Array) -> Array:
        """Directions $v_j$ of shape `(num_derivatives, *like.shape)`."""

    @abc.abstractmethod
    def replicates(self, terms: Array) -> Array:
        r"""Independent estimates of $\nabla \cdot f$, shape `(k,)`, from all $v_j^\top J v_j$."""

    def along(
        self, function: Callable[[Array], Array], u: Array, directions: Array
    ) -> tuple[Array, Array]:
        """$f(u)$ and independent estimates of its divergence, along directions that were drawn before."""
        value, linear = jax.linearize(function, u)
        terms = jax.vmap(lambda v: jnp.sum(v * linear(v)))(directions)
        return value, self.replicates(terms)

    def __call__(
        self, function: Callable[[Array], Array], u: Array, directions: Array
    ) -> tuple[Array, Scalar]:
        """$f(u)$ and its divergence, the mean of the estimates."""
        value, estimates = self.along(function, u, directions)
        return value, jnp.mean(estimates)


class ExactDivergence(AbstractDivergence):
    """Exact divergence by one directional derivative per coordinate, for a handful of dimensions."""

    def num_derivatives(self, dimension):
        return dimension

    def directions(self, key, like):
        del key
        return jnp.eye(like.size, dtype=like.dtype).reshape(-1, *like.shape)

    def replicates(self, terms):
        return jnp.sum(terms)[None]


class Hutchinson(AbstractDivergence):
    r"""$\mathbb{E}[v^\top J v]$ over random signs: unbiased, at a cost that does not grow with dimension.

    Attributes:
        num_probes: Independent directions.

    References:
        Hutchinson (1989), A stochastic estimator of the trace of the influence matrix.
    """

    num_probes: int = eqx.field(static=True, converter=plain, default=1)

    def __check_init__(self):
        check_counts(self, num_probes=1)

    def num_derivatives(self, dimension):
        del dimension
        return self.num_probes

    def directions(self, key, like):
        return jax.random.rademacher(key, (self.num_probes, *like.shape), like.dtype)

    def replicates(self, terms):
        return terms
