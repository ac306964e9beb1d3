r"""Eigenvalues of the posterior covariance that a denoiser implies: none of a true one is negative.

Not matfree's Lanczos, `matfree.decomp.tridiag_sym`: the Ritz values are the same, and it would be a
dependency for thirty lines.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import whole_number
from .._prng import check_key
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..density.paths import check_data
from ..energies import AbstractDenoiser
from .levels import by_level, check_times, mean_and_error, noise_levels, score_at

__all__ = ["Spectrum", "posterior_spectrum"]

MAX_EXACT = 64  # up to so many coordinates all eigenvalues are computed


class Spectrum(NamedTuple):
    r"""Eigenvalues of $\mathrm{Cov}(x_0 \mid x_t) / s^2$ by level; arrays of shape `(num_levels,)`.

    Attributes:
        times: The levels.
        noise_levels: $s = \sigma_t / \alpha_t$, in the units of the data.
        smallest: Mean over noised examples of the smallest eigenvalue.
        smallest_error: Its standard error.
        lowest: The least of them.
        negative_share: Weight of the negative eigenvalues among the absolute values of all.
        negative_share_error: Its standard error.
        negative_size: Mean over noised examples of how far the smallest eigenvalue is below 0.
        negative_examples: Share of the examples with an eigenvalue below 0 by more than rounding.
        exact: Whether all eigenvalues were computed; else they are those of Lanczos's method.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    smallest: np.ndarray
    smallest_error: np.ndarray
    lowest: np.ndarray
    negative_share: np.ndarray
    negative_share_error: np.ndarray
    negative_size: np.ndarray
    negative_examples: np.ndarray
    exact: bool

    __repr__ = record
    _repr_html_ = record_page


def posterior_spectrum(
    prior: AbstractDenoiser,
    data,
    key: PRNGKey,
    times=None,
    *,
    num_steps: int = 32,
    max_exact: int = MAX_EXACT,
    batch_size: int | None = 4096,
) -> Spectrum:
    r"""Positivity of Tweedie's covariance: no eigenvalue of a true one is negative.

    $\mathrm{Cov}(x_0 \mid u) / s^2 = \partial \hat x_0 / \partial u = I + s^2 \nabla^2 \log p_t(u)$ with
    $u = x_t / \alpha_t$. Second-order proposals and twists invert it. The symmetric part is taken, at
    noised examples. Where there are more than `max_exact` coordinates, `num_steps` of Lanczos's method from
    one random vector an example give extreme eigenvalues (the smallest from above) and the weight of the
    negative ones.

    Args:
        prior: An energy or a denoiser.
        data: Clean examples of shape `(num, *shape)`.
        key: PRNG key.
        times: Levels; eight in equal steps of log noise by default.
        num_steps: Steps of Lanczos's method, each one forward and one backward derivative.
        max_exact: Number of coordinates up to which all eigenvalues are computed.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        ValueError: If data, times or numbers cannot be used.

    References:
        Ubaru, Chen & Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J.
        Matrix Anal. Appl.
    """
    key = check_key(key)
    max_exact = whole_number("max_exact", max_exact, 0)
    data = check_data(prior, data, num_steps=num_steps, batch_size=batch_size)
    times = check_times(prior, times)
    size = data[0].size
    steps = None if size <= max_exact else min(num_steps, size)
    at = jnp.asarray(times, data.dtype)
    parts = _parts(prior, data, key, at, steps, batch_size)
    smallest, negative, absolute, is_negative = (np.asarray(part, float) for part in parts)
    share = negative.mean(0) / absolute.mean(0)
    influence = (negative - share * absolute) / absolute.mean(0)
    return Spectrum(
        times,
        noise_levels(prior, times),
        *mean_and_error(smallest),
        smallest.min(0),
        share,
        mean_and_error(influence)[1],
        np.maximum(-smallest, 0).mean(0),
        is_negative.mean(0),
        steps is None,
    )


@eqx.filter_jit
def _parts(prior, data, key, times, num_steps, batch_size):
    """Smallest eigenvalue, weight of the negative ones and of all, and whether one is negative."""

    def one(x0, key, t):
        s = prior.schedule.noise_level(t)
        noise, start = jax.random.normal(key, (2, *x0.shape), x0.dtype)
        u = x0 + s * noise
        score = lambda flat: score_at(prior, flat.reshape(x0.shape), t).ravel()
        _, push = jax.linearize(score, u.ravel())
        if num_steps is None:
            hessian = jax.vmap(push)(jnp.eye(u.size, dtype=u.dtype))
            matrix = jnp.eye(u.size) + 0.5 * s**2 * (hessian + hessian.T)
            values, weights = jnp.linalg.eigvalsh(matrix), jnp.full(u.size, 1.0)
        else:
            _, pull = jax.vjp(score, u.ravel())
            multiply = lambda v: v + 0.5 * s**2 * (push(v) + pull(v)[0])
            values, weights = _lanczos(multiply, start.ravel(), num_steps)
        # A direction without variance has the eigenvalue 0, which rounding turns either way.
        tolerance = 1e3 * jnp.finfo(u.dtype).eps * jnp.maximum(jnp.max(jnp.abs(values)), 1)
        negative = jnp.where(values < -tolerance, -values, 0)
        return (
            jnp.min(values),
            jnp.sum(weights * negative),
            jnp.sum(weights * jnp.abs(values)),
            jnp.any(negative > 0),
        )

    return by_level(one, data, key, times, batch_size, data[0].size if num_steps is None else 2)


def _lanczos(multiply, start: Array, num_steps: int) -> tuple[Array, Array]:
    """Ritz values of a symmetric operator, and their weights in its trace; both `(num_steps,)`."""

    def step(carry, _):
        basis, q, previous, beta, first = carry
        basis = jnp.concatenate([basis[1:], q[None]])
        image = multiply(q)
        alpha = jnp.where(jnp.isnan(first), q @ image, jnp.where(jnp.any(q != 0), q @ image, first))
        rest = image - alpha * q - beta * previous
        for _ in range(2):  # once loses orthogonality, twice is enough
            rest = rest - basis.T @ (basis @ rest)
        norm = jnp.linalg.norm(rest)
        # An invariant subspace was found: what follows hangs on nothing and has no weight.
        alive = norm > 1e2 * jnp.finfo(q.dtype).eps * (jnp.abs(alpha) + beta)
        norm = jnp.where(alive, norm, 0.0)
        after = jnp.where(alive, rest / jnp.where(alive, norm, 1), 0.0)
        first = jnp.where(jnp.isnan(first), alpha, first)
        return (basis, after, q, norm, first), (alpha, norm)

    q = start / jnp.linalg.norm(start)
    zero: Scalar = jnp.zeros((), q.dtype)
    basis = jnp.zeros((num_steps, len(q)), q.dtype)
    carry = (basis, q, jnp.zeros_like(q), zero, jnp.full((), jnp.nan, q.dtype))
    _, (alphas, betas) = jax.lax.scan(step, carry, None, num_steps)
    tridiagonal = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    return values, len(q) * vectors[0] ** 2
