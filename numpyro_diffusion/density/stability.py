"""How large a step a drift allows: the largest slope of a vector field along any direction."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey

__all__ = ["steepest"]

_POINTS, _ROUNDS = 16, 12


@eqx.filter_jit
def steepest(key: PRNGKey, field: Callable[[Array], Array], points: Array) -> Array:
    r"""The largest $|\partial f / \partial x|$ at some points, by power iteration, shape `()`.

    Explicit steps $x + h f(x)$ down a slope $-\lambda$ grow where $h \lambda > 2$. A symmetric Jacobian, as
    that of a gradient, is known to within its eigenvalues of nearly the same size.

    Args:
        key: PRNG key, of the directions that it begins with.
        field: $f$, of ONE point.
        points: Shape `(num, *shape)`; the first 16 are looked at.
    """
    points = points[:_POINTS]
    start = jax.random.normal(key, points.shape, points.dtype)
    length = lambda v: jnp.sqrt(jnp.sum(v**2))

    def one(x, v):
        def turn(v, _):
            v = v / jnp.maximum(length(v), jnp.finfo(v.dtype).tiny)
            new = jax.jvp(field, (x,), (v,))[1]
            return new, length(new)

        return jax.lax.scan(turn, v, None, _ROUNDS)[1][-1]

    return jnp.max(jax.vmap(one)(points, start))
