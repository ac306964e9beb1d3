r"""The maximum mean discrepancy between two clouds, and a factor that pulls a population to a reference.

$\mathrm{MMD}^2(q, r) = \iint k\,(q - r)(dx)\,(q - r)(dy)$ is 0 where two distributions agree as far as the
kernel can tell. It is a property of a cloud, not of a point, so as a factor it couples the variables of a
`Joint`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised
from .mmd_kernels import RBF, AbstractKernel, with_conditions

__all__ = ["MMD", "mmd_squared"]

_DEFAULT = ((0.0, 0.0), (1.0, 1.0))


def mmd_squared(x: Array, reference: Array, kernel: AbstractKernel) -> Scalar:
    r"""$\overline{k(X, X)} - 2\, \overline{k(X, R)} + \overline{k(R, R)}$ with all pairs (the V-statistic).

    Zero for equal clouds. Between samples of one distribution it is on average the mean of $k(x, x) - k(x,
    y)$, times the sum of $1 / N$ of both.

    Args:
        x: Points, shape `(num, *shape)`.
        reference: Other points, shape `(num_reference, *shape)`.
        kernel: What they are compared by.

    Returns:
        Shape `()`.

    Raises:
        ValueError: If the points of the two clouds differ in shape.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR.
    """
    check_alike(x, reference)
    within = mean_kernel(kernel, x, x) + mean_kernel(kernel, reference, reference)
    return within - 2 * mean_kernel(kernel, x, reference)


def mean_kernel(kernel: AbstractKernel, x: Array, y: Array) -> Scalar:
    """Mean of the kernel over all pairs of two clouds."""
    return jnp.mean(jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(y))(x))


class MMD(AbstractFactor):
    r"""$\log h(x_1, \dots, x_N) = -\lambda N\, \mathrm{MMD}^2(\phi(X), \phi(R))$ over a `Joint(energy, N)`.

    An exact joint distribution of a population: as likely as the prior finds each member, and like the
    reference as a whole. The factor $N$ keeps the balance of the two as the population grows: each member of
    a large one has the distribution $q \propto p\, e^{-2 \lambda \int k(\cdot, y) (q - r)(dy)}$. So a prior
    is poststratified to a reference that is too small to train on.

    At noisy levels $\mathrm{MMD}^2$ is averaged over what the denoised means leave open, as if that were
    normal and independent from member to member: a population is not unlike the reference only because its
    means are still together. With `features` it is that of the means.

    Args:
        reference: Points $R$, shape `(num_reference, *shape)`, in units of the data.
        kernel: What clouds are compared by; on features if there are any.
        strength: $\lambda \ge 0$.
        features: $\phi$, from ONE point to what is compared of it; the point itself by default.
        conditions: What each member carries beside its point, shape `(N, ...)`, for a `Product` kernel. The
            reference is then the pair `(points, conditions)`.

    Raises:
        ValueError: If a variable is not shaped like a reference point.

    References:
        Mahdizadeh Sani, Jamali, Jalali & Farnia (2026), MMD guidance, arXiv 2601.08379: samples are moved
        by the gradient of the discrepancy of *noisy* points, without weights.
    """

    points: Array
    kernel: AbstractKernel
    strength: Scalar | float
    features: Callable[[Array], Array] | None = eqx.field(static=True)
    within: Scalar
    conditions: Array | None = None

    def __init__(
        self,
        reference=_DEFAULT,
        kernel: AbstractKernel | None = None,
        strength: Scalar | float = 1.0,
        features: Callable[[Array], Array] | None = None,
        conditions: Array | None = None,
    ):
        reference, of_reference = (reference, None) if conditions is None else reference
        reference = jnp.asarray(reference, jnp.result_type(float))
        if reference.ndim < 1 or len(reference) < 1:
            raise ValueError(
                "`reference` of `MMD` expects at least one point, in shape (num_reference, *shape); got "
                f"{reference.shape}. {_faq.shapes}"
            )
        self.kernel = RBF() if kernel is None else kernel
        self.strength, self.features = strength, features
        self.conditions = None if conditions is None else jnp.asarray(conditions, reference.dtype)
        self.points = compared(reference, features, of_reference)
        self.within = mean_kernel(self.kernel, self.points, self.points)

    def log_value(self, noised: Noised) -> Scalar:
        x, variance = noised.x_hat, noised.variance
        if self.features is not None:
            variance = jnp.zeros_like(jax.vmap(self.features)(x))
        x = compared(x, self.features, self.conditions)
        if self.conditions is not None:
            variance = with_conditions(variance, jnp.zeros_like(self.conditions))
        points = self.points.astype(x.dtype)
        check_alike(x, points)
        zero, itself = jnp.zeros_like(points[0]), jnp.eye(len(x), dtype=bool)
        to = lambda a, v: jax.vmap(lambda b, w: self.kernel.smoothed(a, b, v, w))
        # A point and itself have the same noise; with other points it is independent.
        among = jax.vmap(lambda a, v: to(a, v)(x, variance))(x, variance)
        among = jnp.where(itself, jax.vmap(self.kernel)(x, x), among)
        cross = jax.vmap(
            lambda a, v: jax.vmap(lambda b: self.kernel.smoothed(a, b, v, zero))(points)
        )
        squared = jnp.mean(among) - 2 * jnp.mean(cross(x, variance)) + self.within
        return -(self.strength * len(x) * squared).astype(x.dtype)


def compared(
    points: Array, features: Callable[[Array], Array] | None, conditions: Array | None
) -> Array:
    """What a kernel sees of points: their features, with the condition of each behind."""
    seen = points if features is None else jax.vmap(features)(points)
    return seen if conditions is None else with_conditions(seen, conditions)


def check_alike(x: Array, reference: Array) -> None:
    if x.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "a discrepancy compares clouds of points of one shape, the first axis counts them; got points of "
            f"shapes {x.shape[1:]} and {reference.shape[1:]}. `MMD` is a factor of `Joint(energy, "
            f"num)`. {_faq.shapes}"
        )
