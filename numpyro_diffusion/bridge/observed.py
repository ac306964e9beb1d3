r"""Information of the data about the diffusion sites: Gauss-Newton with Fisher information.

Each observed distribution has a parameter $\eta(x, \theta)$, such as the mean, about which one datum has the
Fisher information $I$. The information about $x$ is then $F = A^\top I A$ with $A = \partial \eta / \partial
x$: positive, whatever the tails of the distribution, where minus the Hessian of its log density may not be.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Position

__all__ = ["Curvature", "Observed", "curvature"]


class Observed(NamedTuple):
    r"""Parameters of the observed distributions and what data say about each.

    Attributes:
        centre: The parameter, by site, of shape `(*batch, *event)`.
        information: Fisher information about it: of the same shape, or symmetric matrices of shape
            `(*batch, event, event)`.
        residual: How far the datum is from it: the score over the information, $y - \eta$ for a Gaussian.
    """

    centre: dict[str, Array]
    information: dict[str, Array]
    residual: dict[str, Array]


class Curvature(NamedTuple):
    r"""$F$ at one point as functions of vectors, which are dicts by diffusion site.

    Attributes:
        times: `v -> F v`.
        forth: `v -> G v` with $F = G^\top G$, dicts by observed site; `None` where $F$ has no factor.
        back: `w -> G^T w`.
        residual: Of the data, in units of their standard deviations.
    """

    times: Callable[[Position], Position]
    forth: Callable[[Position], Position] | None = None
    back: Callable[[Position], Position] | None = None
    residual: Position | None = None


def curvature(
    observed: Callable[[Position], Observed] | None, log_likelihood: Callable | None, x: Position
) -> Curvature:
    """$F$ at `x` for given other sites: of the distributions where there are any, else minus the Hessian."""
    if observed is None or not jax.eval_shape(observed, x).centre:
        if log_likelihood is None:
            raise ValueError(
                "no observed site has a distribution, only factors: there is no operator and no "
                "noise to read off the "
                "model. Write the data as `numpyro.sample(..., obs=y)`, or use "
                f"`Twisted(conjugate=False)`. {_faq.operator}"
            )
        slope = jax.grad(log_likelihood)
        return Curvature(lambda v: jax.tree.map(jnp.negative, jax.jvp(slope, (x,), (v,))[1]))
    centre, forth = jax.linearize(lambda x: observed(x).centre, x)
    transposed = jax.linear_transpose(forth, x)
    _, information, residual = observed(x)
    roots = {name: _root(value, centre[name].shape) for name, value in information.items()}

    def half(v):
        return {name: _times(roots[name], w, False) for name, w in forth(v).items()}

    def other_half(w):
        (v,) = transposed({name: _times(roots[name], one, True) for name, one in w.items()})
        return v

    scaled = {name: _times(roots[name], r, False) for name, r in residual.items()}
    return Curvature(lambda v: other_half(half(v)), half, other_half, scaled)


def _root(information: Array, shape: tuple[int, ...]) -> Array:
    if information.shape == shape:
        return jnp.sqrt(information)
    masked = jnp.all(information == 0, (-2, -1), keepdims=True)
    one = jnp.eye(information.shape[-1], dtype=information.dtype)
    return jnp.where(masked, 0.0, jnp.linalg.cholesky(jnp.where(masked, one, information)))


def _times(root: Array, w: Array, transposed: bool) -> Array:
    """$L^T w$, or $L w$ where the product is transposed."""
    if root.ndim == w.ndim:
        return root * w
    return jnp.einsum("...ij,...j->...i" if transposed else "...ji,...j->...i", root, w)
