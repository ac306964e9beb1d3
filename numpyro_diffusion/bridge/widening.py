r"""Likelihoods widened by the variance around a denoised mean (PiGDM, TMPD).

At noise level $t$ the clean variable is not $\hat x$ but something like $\mathcal{N}(\hat x, C)$. The
likelihood averaged over it, $\log \int \mathcal{N}(x; \hat x, C)\, p(y \mid x)\, dx$, is by Laplace's
method about

$$\log p(y \mid x^*) - \tfrac12 w^\top w - \tfrac12 \log \det (I + C F), \qquad
x^* = \hat x + C^{1/2} w, \quad w = (I + C^{1/2} F C^{1/2})^{-1} C^{1/2} g$$

with $g$ and $-F$ the first and second derivatives of $\log p(y \mid x)$ at $\hat x$, so that $x^*$ is one
step of Newton's method towards the largest integrand. For linear Gaussian data this is
$\mathcal{N}(y; H \hat x, H C H^\top + \Sigma)$, exactly, and its rounding errors are those of a datum that
fits, since $w$ is where the sum is stationary.

A likelihood that is 0 somewhere has no such derivatives: it is averaged over a few fixed normals.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import scipy.stats
from jax.flatten_util import ravel_pytree

from .._typing import Array, Scalar

__all__ = ["around", "averaged", "raised", "widened"]

_DRAWS = 4  # log2 of their number


def widened(
    log_likelihood: Callable[[dict[str, Array]], Scalar],
    x_hat: dict[str, Array],
    roots: dict[str, Array],
    otherwise: Scalar,
) -> Scalar:
    r"""Log likelihood of a variable that is known up to a covariance.

    Costs one second derivative of the likelihood in the diffusion sites, a matrix of all their coordinates,
    and no network evaluation.

    Args:
        log_likelihood: Of the clean variables.
        x_hat: Their means, by site.
        roots: Square roots of their covariances: a number a coordinate, of the shape of the site, or
            symmetric matrices with the shape of the batch in front.
        otherwise: The value where $F$ is so far from positive that the average diverges, or not finite.
    """
    flat, unravel = ravel_pytree(x_hat)
    function = lambda v: log_likelihood(unravel(v))
    value, slope = function(flat), jax.grad(function)
    gradient, bend = slope(flat), -jax.jacfwd(slope)(flat)
    root = _whole(x_hat, roots)
    if root.ndim == 1:
        inner = root[:, None] * bend * root
        pulled = root * gradient
    else:
        inner, pulled = root @ bend @ root, root @ gradient
    inner = 0.5 * (inner + inner.T)
    finite = jnp.all(jnp.isfinite(inner)) & jnp.all(jnp.isfinite(pulled))
    inner = jnp.where(finite, inner, 0.0)
    one = jnp.eye(len(flat), dtype=flat.dtype)
    above = jnp.linalg.cholesky(
        raised(jax.lax.stop_gradient(inner) + 0.5 * one)
    )  # NaN if not positive
    usable = finite & jnp.all(jnp.isfinite(jnp.diagonal(above)))
    factor = jnp.linalg.cholesky(raised(one + jnp.where(usable, inner, 0.0)))
    w = jax.scipy.linalg.cho_solve((factor, True), jnp.where(usable, pulled, 0.0))
    step_of = lambda w: root * w if root.ndim == 1 else root @ w
    summed = lambda w: function(flat + step_of(w)) - 0.5 * jnp.sum(w**2)
    # A step of Newton's method may overshoot where the likelihood is far from Gaussian. It is tried first,
    # without a gradient: one that is not a number would get through even where its value is not used.
    better = jax.lax.stop_gradient(summed(jax.lax.stop_gradient(w))) > value
    best = summed(jnp.where(better, w, 0.0))
    return jnp.where(usable, best - jnp.sum(jnp.log(jnp.diagonal(factor))), otherwise)


def raised(matrix: Array) -> Array:
    """A symmetric matrix; where it has no Cholesky factor, its diagonal raised by what rounding may take.

    Where data are sharp and the variable is not, some eigenvalues of $I + C F$ are 1 and others so large that
    rounding leaves no sign of the 1.
    """
    fixed = jax.lax.stop_gradient(matrix)
    size, diagonal = matrix.shape[0], jnp.diagonal(fixed)
    fails = ~jnp.all(jnp.isfinite(jnp.diagonal(jnp.linalg.cholesky(fixed))))
    lift = 4 * size * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(diagonal))
    return matrix + jnp.where(fails & jnp.isfinite(lift), lift, 0.0) * jnp.eye(
        size, dtype=matrix.dtype
    )


def around(x_hat: dict[str, Array], roots: dict[str, Array]) -> dict[str, Array]:
    """Points around the means, as the covariances say, with a leading axis; the means where they are 0."""
    flat, unravel = ravel_pytree(x_hat)
    root = _whole(x_hat, roots)
    # Of each coordinate the quantiles of a normal law, in the order of a Sobol sequence.
    even = scipy.stats.qmc.Sobol(flat.size, scramble=False).random_base2(_DRAWS) + 0.5 / 2**_DRAWS
    normals = jnp.asarray(scipy.stats.norm.ppf(even), flat.dtype)
    return jax.vmap(unravel)(flat + (normals * root if root.ndim == 1 else normals @ root))


def averaged(entries: Array) -> Array:
    """Log of the mean of the exponentials along the first axis; what is not a number there counts as 0."""
    unknown = jnp.isnan(entries)
    entries = jnp.where(unknown & ~jnp.all(unknown, 0), -jnp.inf, entries)
    top = jax.lax.stop_gradient(jnp.max(entries, 0))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    mean = jnp.mean(jnp.exp(entries - top), 0)
    zero = mean == 0  # the log of 0 has no gradient
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, mean)) + top)


def _whole(x_hat: dict[str, Array], roots: dict[str, Array]) -> Array:
    """One root over all flattened sites: a diagonal where all are."""
    names = sorted(x_hat)  # the order in which a pytree of a dict is flattened
    if all(roots[n].shape == x_hat[n].shape for n in names):
        return jnp.concatenate([roots[n].ravel() for n in names])
    blocks = []
    for n in names:
        size = x_hat[n].size
        if roots[n].shape == x_hat[n].shape:
            blocks.append(jnp.diag(roots[n].ravel()))
            continue
        matrices = roots[n].reshape(-1, *roots[n].shape[-2:])
        blocks += list(matrices) if len(matrices) > 1 else [matrices[0].reshape(size, size)]
    return jax.scipy.linalg.block_diag(*blocks)
