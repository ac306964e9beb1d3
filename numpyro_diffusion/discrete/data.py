r"""What data say of tokens, as a sampler along the mask levels asks it, with other unknowns beside.

Other unknowns $z$ are unconstrained; there may be none. Data that see each token by itself are known in
full by a table $\ell_i(v)$, $p(y \mid x, z) = e^{b(z)} \prod_i e^{\ell_i(x_i; z)}$, so that a sampler can
look ahead exactly as far as its denoiser does.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_callable
from .._typing import Array, Position, PRNGKey, Scalar
from .masked import chosen

__all__ = ["AbstractTokenData", "TokenLikelihood", "TokenTable"]


class AbstractTokenData(eqx.Module):
    """Log likelihood of tokens, and the prior of other unknowns, of ONE particle."""

    @property
    @abc.abstractmethod
    def by_token(self) -> bool:
        """Whether `tables` knows all: each token is seen by itself."""

    def draw_others(self, x: Array, key: PRNGKey) -> Position:
        """Other unknowns from their prior given tokens, unconstrained."""
        del x, key
        return {}

    @abc.abstractmethod
    def log_prior_and_likelihood(self, z: Position, x: Array) -> tuple[Scalar, Scalar]:
        """Log prior of other unknowns, and log likelihood, at an example without masks."""

    @abc.abstractmethod
    def tables(self, z: Position, power: Scalar) -> tuple[Scalar, Array]:
        r"""$b(z)$ and $\ell_i(v; z)$ of prior times likelihood to a power, shapes `()` and
        `(num_tokens, num_values)`; 0 unless `by_token`.
        """


class TokenTable(AbstractTokenData):
    r"""A log likelihood that is a sum over tokens, $\log p(y \mid x) = \sum_i \ell_i(x_i)$.

    Attributes:
        table: $\ell_i(v)$, shape `(num_tokens, num_values)`; $-\infty$ for what cannot be.

    Raises:
        ValueError: If the table is no matrix, or holds NaN or $+\infty$.
    """

    table: Array

    def __check_init__(self):
        values = np.asarray(self.table)
        if values.ndim != 2 or not (values < np.inf).all():  # NaN is not below anything
            raise ValueError(
                "`table` must have shape (num_tokens, num_values) and log likelihoods below infinity; got "
                f"shape {values.shape}, of which {int(np.sum(~(values < np.inf)))} are NaN or "
                f"infinite. {_faq.finite}"
            )

    @property
    def by_token(self) -> bool:
        """Yes."""
        return True

    def log_prior_and_likelihood(self, z, x):
        """No prior, and the sum."""
        return jnp.zeros(()), chosen(self.table, x).sum()

    def tables(self, z, power):
        """The table itself."""
        return jnp.zeros(()), power * self.table


class TokenLikelihood(AbstractTokenData):
    r"""A log likelihood that sees tokens together.

    Attributes:
        log_likelihood: `x -> ()`, $\log p(y \mid x)$ of ONE example without masks.
    """

    log_likelihood: Callable[[Array], Scalar]

    def __check_init__(self):
        check_callable("log_likelihood", self.log_likelihood, "`x -> log p(y | x)`")

    @property
    def by_token(self) -> bool:
        """No."""
        return False

    def log_prior_and_likelihood(self, z, x):
        """No prior, and the function."""
        return jnp.zeros(()), self.log_likelihood(x)

    def tables(self, z, power):
        """Nothing."""
        return jnp.zeros(()), jnp.zeros((1, 1))
