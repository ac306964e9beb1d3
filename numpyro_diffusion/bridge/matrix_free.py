r"""Gaussian likelihoods widened by a low-rank covariance, without a matrix over all coordinates (MMPS).

The same approximation of $\log \int \mathcal{N}(x; \hat x, C)\, p(y \mid x)\, dx$ as in `widening`, with
$C = B B^\top$ known as a function of vectors: conjugate gradients find $w$, and the log-determinant is that
of a small matrix, or is found by Lanczos' method from a few fixed random signs. All are functions of the
position alone, so weights and accept steps stay exact.

References:
    Ubaru, Chen & Saad (2017), Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, SIMAX.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from .._typing import Array, Scalar
from ..twists import LowRank
from .observed import Curvature
from .widening import raised

__all__ = ["widened_by_rank"]

_STEPS = 24  # of conjugate gradients and of Lanczos' method
_DENSE = 64  # up to this size a matrix costs less than its approximation
_PROBES = 4
_ROUNDS = 3  # of conjugate gradients, each from the slope where the last one ended


def widened_by_rank(
    log_likelihood: Callable[[dict[str, Array]], Scalar],
    curvature: Curvature,
    x_hat: dict[str, Array],
    roots: dict[str, LowRank],
    otherwise: Scalar,
) -> Scalar:
    r"""Log likelihood of a variable that is known up to a covariance.

    Costs some tens of products with $F$ and no network evaluation.

    Args:
        log_likelihood: Of the clean variables.
        curvature: $F$ at their means, in the sense of its gradients a constant of them.
        x_hat: Their means, by site.
        roots: Their covariances.
        otherwise: The value where the approximation is not finite.
    """
    fixed = jax.lax.stop_gradient(x_hat)
    value, gradient = jax.value_and_grad(log_likelihood)(fixed)
    apply = lambda w: {n: r.times(*w[n]) for n, r in roots.items()}
    pull = lambda v: {n: r.transposed(v[n]) for n, r in roots.items()}
    plus = lambda w, v: jax.tree.map(jnp.add, w, v)
    precision = lambda w: plus(w, pull(curvature.times(apply(w))))
    pulled = jax.lax.stop_gradient(pull(gradient))
    fixed_precision = lambda w: jax.lax.stop_gradient(precision(w))
    moved = lambda w, x: jax.tree.map(jnp.add, x, apply(w))
    half = lambda w: 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
    summed = lambda w: log_likelihood(moved(w, fixed)) - half(w)

    def refined(_, carry):
        w, height, slope = jax.lax.stop_gradient(carry)
        step, _ = cg(fixed_precision, slope, tol=1e-8, maxiter=_STEPS)
        new = plus(w, step)
        found = jax.value_and_grad(summed)(new)
        better = jnp.isfinite(half(new)) & (found[0] > height)
        choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
        return jax.lax.stop_gradient(choose((new, *found), (w, height, slope)))

    # Where data are sharp and the variable is not, one solution leaves most of the residual to rounding: the
    # slope is then taken anew, at the point that was found.
    start = jax.tree.map(jnp.zeros_like, pulled), value, pulled
    w, _, _ = jax.lax.fori_loop(0, _ROUNDS, refined, jax.lax.stop_gradient(start))
    w = jax.lax.stop_gradient(w)
    best = log_likelihood(moved(w, x_hat)) - half(w)
    covariance = lambda v: apply(pull(v))
    total, like = _smaller(curvature, covariance, precision, pulled, x_hat)
    wide = best - 0.5 * _log_det(total, like)
    return jnp.where(jnp.isfinite(wide), wide, otherwise)


def _smaller(curvature: Curvature, covariance, precision, w, x_hat):
    r"""$I + G C G^\top$ over the data where these are fewer than coordinates, else $I + B^\top F B$."""
    if curvature.forth is None or curvature.back is None:
        return precision, w
    data = jax.tree.map(jnp.zeros_like, jax.eval_shape(curvature.forth, x_hat))
    if _size(data) > _size(w):
        return precision, w
    forth, back = curvature.forth, curvature.back
    return lambda v: jax.tree.map(jnp.add, v, forth(covariance(back(v)))), data


def _size(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _log_det(function, like) -> Scalar:
    """Log-determinant of a symmetric positive map; with a gradient in what the map depends on."""
    flat, unravel = ravel_pytree(like)
    times = lambda v: ravel_pytree(function(unravel(v)))[0]
    if flat.size <= _DENSE:
        matrix = jax.vmap(times)(jnp.eye(flat.size, dtype=flat.dtype))
        factor = jnp.linalg.cholesky(raised(0.5 * (matrix + matrix.T)))
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_PROBES, flat.size))
    probes = jnp.asarray(signs, flat.dtype)
    fixed = lambda v: jax.lax.stop_gradient(times(v))
    value = jnp.mean(jax.vmap(lambda z: _quadrature(fixed, z))(probes))

    def slope(z):  # d log det M = tr(M^-1 dM), for the same signs
        solved, _ = cg(fixed, z, tol=1e-8, maxiter=_STEPS)
        return jnp.sum(jax.lax.stop_gradient(solved) * times(z))

    change = jnp.mean(jax.vmap(slope)(probes))
    return jax.lax.stop_gradient(value) + change - jax.lax.stop_gradient(change)


def _quadrature(times, z: Array) -> Scalar:
    r"""$z^\top \log(M)\, z$ by Lanczos' method with full orthogonalisation."""
    steps = min(_STEPS, z.size)
    length = jnp.sqrt(jnp.sum(z**2))
    basis = jnp.zeros((steps + 1, z.size), z.dtype).at[0].set(z / length)

    def one(carry, i):
        basis, before = carry
        v = times(basis[i])
        diagonal = jnp.sum(v * basis[i])
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        beside = jnp.sqrt(jnp.sum(v**2))
        goes_on = beside > 1e-6 * jnp.abs(diagonal)
        beside = jnp.where(goes_on & (before > 0), beside, 0.0)
        v = jnp.where(beside > 0, v / jnp.where(beside > 0, beside, 1.0), 0.0)
        return (basis.at[i + 1].set(v), beside), (diagonal, beside)

    start = (basis, jnp.ones((), z.dtype))
    _, (diagonal, beside) = jax.lax.scan(one, start, jnp.arange(steps))
    # Past the end of the Krylov space: rows of the identity, which the first vector does not see.
    diagonal = jnp.where(diagonal > 0, diagonal, 1.0)
    small = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = jnp.linalg.eigh(small)
    return length**2 * jnp.sum(vectors[0] ** 2 * jnp.log(jnp.maximum(values, 1e-30)))
