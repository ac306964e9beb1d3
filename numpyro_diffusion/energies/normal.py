r"""Log densities of Gaussians, and covariances as eigenvalues and eigenvectors with noise added to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar
from .._written import MOST
from .checks import is_traced, numbers

__all__ = [
    "coloured",
    "decompose",
    "log_noised_normal",
    "log_normal",
    "log_normal_of_root",
    "root",
    "variances",
]


def log_normal(gap: Array, variance: Array | Scalar | float) -> Array:
    r"""$\log \mathcal{N}(\text{gap}; 0, \text{variance})$ in nats, elementwise."""
    return -0.5 * (gap**2 / variance + jnp.log(2 * jnp.pi * variance))


def log_normal_of_root(gap: Array, root: Array) -> Scalar:
    r"""$\log \mathcal{N}(\text{gap}; 0, L L^\top)$ in nats, of a lower triangular $L$."""
    white = jax.scipy.linalg.solve_triangular(root, gap, lower=True)
    return -0.5 * jnp.sum(white**2 + jnp.log(2 * jnp.pi) + 2 * jnp.log(jnp.diag(root)))


def decompose(covariances, dimension: int, what: str) -> tuple[Any, Any]:
    """Eigenvalues `(k, d)` and eigenvectors `(k, d, d)` of symmetric positive definite matrices.

    Of traced ones `None` and the matrices themselves.
    """
    covariances = numbers(covariances, what)
    if covariances.shape[-2:] != (dimension, dimension):
        raise ValueError(
            f"`{what}` must have shape (..., {dimension}, {dimension}) to match the mean; got "
            f"{covariances.shape}. Use `np.diag(variances)` for independent "
            f"coordinates. {_faq.covariances}"
        )
    if is_traced(covariances):
        return None, covariances
    if not np.allclose(covariances, np.swapaxes(covariances, -1, -2)):
        raise ValueError(
            f"`{what}` must be symmetric; average it with its transpose. {_faq.covariances}"
        )
    values, vectors = np.linalg.eigh(covariances)
    if values.astype(jnp.result_type(float)).min() <= 0:
        raise ValueError(
            f"`{what}` must be positive definite; its smallest eigenvalue is {values.min():.3g}. "
            f"Add a small multiple of the identity. {_faq.covariances}"
        )
    return values, vectors


def recomposed(values: Any, vectors: Any) -> Any:
    """The matrices that were decomposed, to six digits, for printing; of large ones the shape."""
    traced = is_traced(values) or is_traced(vectors)
    if values is None and not traced:
        return np.asarray(vectors)
    if traced or np.size(vectors) > MOST:
        return jax.ShapeDtypeStruct(np.shape(vectors), vectors.dtype)
    values, vectors = np.asarray(values, float), np.asarray(vectors, float)
    matrix = np.einsum("...ij,...j,...kj->...ik", vectors, values, vectors)
    digits = 6 - int(np.ceil(np.log10(np.abs(matrix).max())))
    return np.round(matrix, digits) + 0.0


def log_noised_normal(x: Array, mean: Array, values: Array | None, vectors: Array, noise) -> Scalar:
    r"""Log density of $\mathcal{N}(\alpha m, \alpha^2 S + \sigma^2 I)$, `noise` the pair of coefficients.

    NaN where $S$ is traced and not positive definite.
    """
    alpha_t, sigma_t = noise
    if values is None:
        return log_normal_of_root(x - alpha_t * mean, root(vectors, alpha_t, sigma_t))
    noised = alpha_t**2 * values + sigma_t**2
    # Divided before it is squared: scores of the noisiest levels keep their last digits in 32 bits.
    white = (vectors.T @ (x - alpha_t * mean)) / jnp.sqrt(noised)
    return -0.5 * (jnp.sum(white**2) + jnp.sum(jnp.log(2 * jnp.pi * noised)))


def root(covariance: Array, alpha_t: Scalar, sigma_t: Scalar) -> Array:
    r"""Cholesky factor of $\alpha^2 S + \sigma^2 I$; NaN if $S$ itself is not positive definite."""
    proper = jnp.all(jnp.isfinite(jnp.linalg.cholesky(jax.lax.stop_gradient(covariance))))
    noised = alpha_t**2 * covariance + sigma_t**2 * jnp.eye(len(covariance), dtype=covariance.dtype)
    return jnp.linalg.cholesky(jnp.where(proper, noised, jnp.nan))


def variances(values: Array | None, vectors: Array) -> Array:
    """Diagonals of matrices, of which there may be several."""
    if values is None:
        return jnp.diagonal(vectors, axis1=-2, axis2=-1)
    return jnp.einsum("...ij,...j,...ij->...i", vectors, values, vectors)


def coloured(white: Array, values: Any, vectors: Array, alpha_t, sigma_t) -> Array:
    """White noise with the covariance of a level."""
    if values is None:
        return root(vectors, alpha_t, sigma_t) @ white
    return vectors @ (jnp.sqrt(alpha_t**2 * values + sigma_t**2) * white)
