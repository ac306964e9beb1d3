r"""Maps between physical units and those in which a network was trained.

Networks learn in units of their own: grey values from -1 to 1, a logarithm of the flux. A transform takes one
example $x$ in physical units to $y$ in the network's, and knows its Jacobian, without which densities and
scores of the two cannot be compared.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from .._written import one_line

__all__ = ["AbstractTransform", "Affine", "Identity", "LogScale"]


class AbstractTransform(eqx.Module):
    r"""An invertible map $y = T(x)$, entry by entry, for one example."""

    __repr__ = one_line

    @abc.abstractmethod
    def forward(self, x: Array) -> Array:
        """$y = T(x)$: from physical units to the network's."""

    @abc.abstractmethod
    def inverse(self, y: Array) -> Array:
        """$x = T^{-1}(y)$: from the network's units to physical ones."""

    @abc.abstractmethod
    def log_abs_det(self, x: Array) -> Scalar:
        r"""$\log |\det \partial T / \partial x|$ in nats, shape `()`."""

    def log_density(self, x: Array, log_density: Callable[[Array], Scalar]) -> Scalar:
        r"""Log density of $x$ where that of $y$ is given: $\log p(T(x)) + \log |\det \partial T/\partial x|$.

        Args:
            x: One example in physical units.
            log_density: Log density of $y$ in nats.
        """
        return log_density(self.forward(x)) + self.log_abs_det(x)

    def score(self, x: Array, score: Callable[[Array], Array]) -> Array:
        r"""Score of $x$ where that of $y$ is given: $J^\top s(T(x)) + \nabla_x \log |\det J|$.

        The second term is easily forgotten. Without it the score belongs to no density of $x$.

        Args:
            x: One example in physical units.
            score: Gradient of the log density of $y$, of the shape of its argument.
        """
        y, pull_back = jax.vjp(self.forward, x)
        return pull_back(score(y))[0] + jax.grad(self.log_abs_det)(x)


class Identity(AbstractTransform):
    """Physical units are the network's."""

    def forward(self, x):
        return x

    def inverse(self, y):
        return y

    def log_abs_det(self, x):
        return jnp.zeros((), x.dtype)


class Affine(AbstractTransform):
    r"""$y = (x - b) / a$. `Affine(0.5, 0.5)` takes $[0, 1]$ to $[-1, 1]$.

    Attributes:
        shift: $b$, in physical units; a number.
        scale: $a$, positive, in physical units for one of the network's; a number.

    Raises:
        ValueError: If `scale` is not positive.
    """

    shift: float = 0.0
    scale: float = 1.0

    def __check_init__(self):
        if not self.scale > 0:
            raise ValueError(f"`Affine` expects a positive scale; got {self.scale}. {_faq.numbers}")

    def forward(self, x):
        return (x - self.shift) / self.scale

    def inverse(self, y):
        return y * self.scale + self.shift

    def log_abs_det(self, x):
        return -x.size * jnp.log(jnp.asarray(self.scale, x.dtype))


class LogScale(AbstractTransform):
    r"""$y = \log(x + b) / a$ for $x > -b$, which tames images that span decades.

    $\log |\det J| = -\sum_i \log\big(a\,(x_i + b)\big)$.

    Attributes:
        offset: $b$, positive, in physical units.
        scale: $a$, positive.

    Raises:
        ValueError: If one of them is not positive.
    """

    offset: float = 1.0
    scale: float = 0.1

    def __check_init__(self):
        if not (self.offset > 0 and self.scale > 0):
            raise ValueError(
                f"`LogScale` expects a positive offset and scale; got {self.offset}, "
                f"{self.scale}. {_faq.numbers}"
            )

    def forward(self, x):
        # log b + log(1 + x/b): faint pixels keep their digits.
        return (jnp.log1p(x / self.offset) + jnp.log(self.offset)) / self.scale

    def inverse(self, y):
        return self.offset * jnp.expm1(self.scale * y - jnp.log(self.offset))

    def log_abs_det(self, x):
        return -jnp.sum(self.scale * self.forward(x) + jnp.log(self.scale))
