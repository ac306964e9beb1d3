r"""Positive definite kernels and the energy distance, for points of any shape."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp

from .. import _faq
from .._arguments import check_counts, plain
from .._typing import Array, Scalar
from .._written import one_line

__all__ = [
    "RBF",
    "AbstractKernel",
    "InverseMultiquadric",
    "Polyharmonic",
    "Polynomial",
    "Product",
    "distance",
    "with_conditions",
]


def distance(x: Array, y: Array) -> Scalar:
    r"""Euclidean distance of two points of one shape, with slope 0 where they meet."""
    square = jnp.sum((x - y) ** 2)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


class AbstractKernel(eqx.Module):
    r"""A symmetric kernel $k(x, y)$ with $\iint k\, d\nu\, d\nu \ge 0$ for $\nu$ of total mass 0."""

    __repr__ = one_line

    @abc.abstractmethod
    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        r"""$\mathbb{E}\, k(x + \epsilon, y + \epsilon')$ with independent normal noises, or roughly that.

        It leads samplers where points are not yet known. With variances of 0 it must be $k(x, y)$.

        Args:
            x: ONE point.
            y: Another one, of the same shape.
            of_x: Variances of its noise, of the same shape.
            of_y: Variances of the other's.

        Returns:
            Shape `()`.
        """

    def __call__(self, x: Array, y: Array) -> Scalar:
        r"""$k(x, y)$ of shape `()`, for ONE pair of points of the same shape."""
        return self.smoothed(x, y, jnp.zeros_like(x), jnp.zeros_like(y))


class RBF(AbstractKernel):
    r"""$k(x, y) = \exp(-|x - y|^2 / 2 h^2)$.

    Attributes:
        bandwidth: $h$, in the units of the points: about the scale on which distributions are to agree.
    """

    bandwidth: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_positive("RBF", "bandwidth", self.bandwidth)

    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        wide = 1 + (of_x + of_y) / self.bandwidth**2
        exponent = jnp.sum((x - y) ** 2 / wide) / self.bandwidth**2 + jnp.sum(jnp.log(wide))
        return jnp.exp(-0.5 * exponent)


class InverseMultiquadric(AbstractKernel):
    r"""$k(x, y) = (1 + |x - y|^2 / 2 h^2)^{-1/2}$: smooth like `RBF`, and felt from far away.

    Attributes:
        bandwidth: $h$, in the units of the points.
    """

    bandwidth: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_positive("InverseMultiquadric", "bandwidth", self.bandwidth)

    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        # To second order in the fluctuations of the squared distance, q = |x - y|^2 / 2 h^2.
        unit, variance = 0.5 / self.bandwidth**2, of_x + of_y
        q = unit * _mean_square(x, y, of_x, of_y)
        of_q = unit**2 * jnp.sum(2 * variance**2 + 4 * variance * (x - y) ** 2)
        return (1 + q) ** -0.5 + 0.375 * of_q * (1 + q) ** -2.5


class Polynomial(AbstractKernel):
    r"""$k(x, y) = (x \cdot y / d + c)^m$ of points with $d$ coordinates: it compares moments up to order $m$.

    Order 3 with $c = 1$, on features of a network, is the kernel inception distance.

    Attributes:
        degree: $m$, at least 1.
        offset: $c \ge 0$; 0 compares the moments of order $m$ alone.
    """

    degree: int = eqx.field(static=True, converter=plain, default=3)
    offset: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_counts(self, degree=1)
        if not self.offset >= 0:
            raise ValueError(
                f"`offset` of `Polynomial` must be at least 0; got {self.offset}. {_faq.numbers}"
            )

    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        centre = jnp.sum(x * y) / x.size + self.offset
        variance = jnp.sum(of_x * y**2 + of_y * x**2 + of_x * of_y) / x.size**2
        # Moments of a normal variable: (2k - 1)!! for the power 2k.
        terms = [
            math.comb(self.degree, 2 * k)
            * math.prod(range(1, 2 * k, 2))
            * centre ** (self.degree - 2 * k)
            * variance**k
            for k in range(self.degree // 2 + 1)
        ]
        return sum(terms, jnp.zeros((), centre.dtype))


class Polyharmonic(AbstractKernel):
    r"""$k(x, y) = \pm |x - y|^p$, times $\log |x - y|$ where $p$ is even: the kernel of a gradient penalty.

    In $d$ dimensions a critic whose derivatives of order $m$ are penalised has it with $p = 2m - d$. Power 1
    is the energy distance. The sign, $(-1)^{\lceil p / 2 \rceil}$ or, with the logarithm,
    $(-1)^{p / 2 + 1}$, makes discrepancies positive and flows go downhill. For $p \ge 2$ they are positive
    only between distributions whose moments agree up to an order below $\lfloor p / 2 \rfloor + 1$.

    Attributes:
        power: $p > 0$. Kernels with $p \le 0$ are infinite where points meet, as they do in a cloud.

    References:
        Duchon (1977), Splines minimizing rotation-invariant semi-norms in Sobolev spaces. Asokan &
        Seelamantula (2023), Data interpolants: that's what discriminators in higher-order
        gradient-regularized GANs are.
    """

    power: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_positive("Polyharmonic", "power", self.power)

    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        square = _mean_square(x, y, of_x, of_y)
        apart = square > 0
        safe = jnp.where(apart, square, 1.0)
        if self.power % 2:
            value = (-1) ** math.ceil(self.power / 2) * safe ** (self.power / 2)
        else:
            value = (-1) ** (self.power // 2 + 1) * safe ** (self.power / 2) * jnp.log(safe) / 2
        return jnp.where(apart, value, 0.0)


class Product(AbstractKernel):
    r"""$k\big((x, c), (y, d)\big) = k_1(x, y)\, k_2(c, d)$ of points with conditions, such as prompts.

    Clouds agree if their points do *for each condition*, as finely as $k_2$ tells conditions apart.

    Attributes:
        of_points: $k_1$, of the points, laid flat.
        of_conditions: $k_2$, of the conditions.
        num_conditions: How many of the last coordinates are the condition, as `with_conditions` puts them.
    """

    of_points: AbstractKernel = eqx.field(default_factory=RBF)
    of_conditions: AbstractKernel = eqx.field(default_factory=RBF)
    num_conditions: int = eqx.field(static=True, converter=plain, default=1)

    def __check_init__(self):
        check_counts(self, num_conditions=1)

    def smoothed(self, x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
        if x.ndim != 1 or x.size <= self.num_conditions:
            raise ValueError(
                f"`Product` expects flat points, longer than their {self.num_conditions} conditions; got "
                f"shape {x.shape}. `with_conditions(points, conditions)` makes them. {_faq.shapes}"
            )
        num, every = x.size - self.num_conditions, (x, y, of_x, of_y)
        first = self.of_points.smoothed(*(a[:num] for a in every))
        return first * self.of_conditions.smoothed(*(a[num:] for a in every))


def with_conditions(points: Array, conditions: Array) -> Array:
    """Points, laid flat, with the condition of each behind: shape `(num, size + size of a condition)`."""
    flat = lambda a: jnp.asarray(a).reshape(len(a), -1)
    if len(points) != len(conditions):
        raise ValueError(
            f"`with_conditions` expects one condition a point; got {len(points)} points and "
            f"{len(conditions)} conditions. Repeat a condition that several share. {_faq.shapes}"
        )
    return jnp.concatenate([flat(points), flat(conditions).astype(jnp.result_type(points))], 1)


def _mean_square(x: Array, y: Array, of_x: Array, of_y: Array) -> Scalar:
    """Mean squared distance of noised points."""
    return jnp.sum((x - y) ** 2 + of_x + of_y)


def _check_positive(kernel: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"`{name}` of `{kernel}` must be positive and finite; got {value}. Try "
            f"1. {_faq.numbers}"
        )
