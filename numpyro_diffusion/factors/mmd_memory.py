r"""One more member of a population that is to look like a reference: guidance by what is finished."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised
from .mmd import check_alike, compared
from .mmd_kernels import RBF, AbstractKernel, with_conditions

__all__ = ["MMDMemory"]

_DEFAULT = ((0.0, 0.0), (1.0, 1.0))


class MMDMemory(AbstractFactor):
    r"""$\log h(x) = -\lambda N\, \mathrm{MMD}^2(\{x\} \cup X, R)$ of member $N$ given the $N - 1$ finished.

    What of it depends on $x$:

    $$-\lambda \Big( \tfrac1N k(x, x) + \tfrac2N \sum_{j < N} k(x, x_j)
      - \tfrac2{n_R} \sum_r k(x, r) \Big),$$

    where what is missing draws and what is there already pushes away. The distribution of the new member is
    exactly the prior times this, and costs one variable instead of the $N$ of `MMD` over a `Joint`. A
    population made so, one by one, is *not* a draw of that joint distribution, since nobody comes back to the
    first members; as it grows, its members come to have the same one, $q \propto p\, e^{-2 \lambda \int
    k(\cdot, y) (q - r)(dy)}$. The first member is one of the prior.

    At noisy levels the kernel is averaged over what the denoised mean leaves open, as in `MMD`.

    Args:
        finished: Members $X$ that are there, shape `(N - 1, *shape)`, in units of the data.
        reference: Points $R$, shape `(num_reference, *shape)`.
        kernel: What points are compared by; on features if there are any.
        strength: $\lambda \ge 0$.
        features: $\phi$, from ONE point to what is compared of it; the point itself by default.
        condition: What the new member carries beside its point, such as its prompt's embedding, for a
            `Product` kernel. `finished` and `reference` are then pairs `(points, conditions)`.

    Raises:
        ValueError: If there is nothing finished or no reference, or points differ in shape.

    References:
        Mahdizadeh Sani, Jamali, Jalali & Farnia (2026), MMD guidance, arXiv 2601.08379: the gradient at
        *noisy* points, of a length in proportion to theirs, without weights.
    """

    finished: Array
    points: Array
    kernel: AbstractKernel
    strength: Scalar | float
    features: Callable[[Array], Array] | None = eqx.field(static=True)
    condition: Array | None

    def __init__(
        self,
        finished=_DEFAULT[:1],
        reference=_DEFAULT,
        kernel: AbstractKernel | None = None,
        strength: Scalar | float = 1.0,
        features: Callable[[Array], Array] | None = None,
        condition: Array | None = None,
    ):
        dtype = jnp.result_type(float)
        clouds = []
        for cloud in (finished, reference):
            points, carried = (cloud, None) if condition is None else cloud
            points = jnp.asarray(points, dtype)
            if points.ndim < 1 or len(points) < 1:
                raise ValueError(
                    "`MMDMemory` expects at least one finished member and one reference point, in shape "
                    f"(num, *shape); got {points.shape}. Draw the first member from the "
                    f"prior. {_faq.shapes}"
                )
            clouds.append(compared(points, features, carried))
        self.finished, self.points = clouds
        check_alike(*clouds)
        self.kernel = RBF() if kernel is None else kernel
        self.strength, self.features = strength, features
        self.condition = None if condition is None else jnp.asarray(condition, dtype)

    def log_value(self, noised: Noised) -> Scalar:
        x, variance = noised.x_hat[None], noised.variance[None]
        if self.features is not None:
            variance = jnp.zeros_like(jax.vmap(self.features)(x))
        carried = None if self.condition is None else self.condition[None]
        x = compared(x, self.features, carried)
        if carried is not None:
            variance = with_conditions(variance, jnp.zeros_like(carried))
        check_alike(x, self.points)
        x, variance = x[0], variance[0]
        to = lambda y: self.kernel.smoothed(x, y, variance, jnp.zeros_like(y))
        num = len(self.finished) + 1
        among = self.kernel(x, x) + 2 * jnp.sum(jax.vmap(to)(self.finished.astype(x.dtype)))
        cross = 2 * jnp.mean(jax.vmap(to)(self.points.astype(x.dtype)))
        return -(self.strength * (among / num - cross)).astype(noised.u.dtype)
