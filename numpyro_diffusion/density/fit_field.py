r"""Density fields from data: regression of $p$ and $\nabla p$ on Gaussian bumps, a linear problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._typing import PRNGKey
from .field import Bumps, DensityField, bumps

__all__ = ["fit_density_field", "project_field"]


def fit_density_field(
    key: PRNGKey,
    data,
    *,
    noise: float | None = None,
    width: float | None = None,
    num_centers: int = 100,
) -> DensityField:
    r"""Learn a density and its gradient from examples, without a normaliser and without a score.

    With $N_\epsilon$ the density of a little noise, $\mathcal{N}(0, \epsilon I)$, the minima of

    $$\mathbb{E}_x\, s(x)^2 - 2\, \mathbb{E}_{x, x'}\, s(x)\, N_\epsilon(x - x'), \qquad
      \mathbb{E}_x\, |g(x)|^2 - 2\, \mathbb{E}_{x, x'}\, g(x) \cdot \nabla_x N_\epsilon(x - x')$$

    are the noised density $p * N_\epsilon$ and its gradient. Both are squares in $s$ and $g$, so with sums of
    Gaussian bumps a minimum is a least-squares fit to the sums over the *other* examples. Nothing says what
    the fields are far from data; bumps end there. Exact as examples and centers become many and the noise
    small; that takes a number of examples that is exponential in the dimension, so use it in one to three.

    Args:
        key: PRNG key, of the choice of centers among the examples.
        data: Finite examples of shape `(num, dimension)`, at least 10.
        noise: $\sqrt\epsilon$; by default $\sigma\, n^{-1/(d + 4)}$, $\sigma$ the standard deviation of the
            data.
        width: Standard deviation of a bump; twice the noise by default.
        num_centers: Bumps, at most.

    Raises:
        ValueError: If data are not finite, of another shape, or constant; if a number is out of range.

    References:
        Li et al. (2024), arXiv 2410.01796, whose networks and sliced losses, for more dimensions, are not
        here.
    """
    num_centers = whole_number("num_centers", num_centers, 1)
    rows = np.asarray(data, float)
    if rows.ndim != 2 or len(rows) < 10 or not rows.shape[1] or not np.isfinite(rows).all():
        raise ValueError(
            f"`data` must be finite, of shape (num, dimension) with num >= 10; got shape {rows.shape}. Put "
            f"examples along the first axis. {_faq.finite}"
        )
    num, dimension = rows.shape
    rule = float(np.sqrt(rows.var(0).mean())) * num ** (-1 / (dimension + 4))
    spread: float = rule if noise is None else noise
    reach: float = 2 * spread if width is None else width
    _check_sizes(noise=spread, width=reach)
    value, gradient = np.empty(num), np.empty((num, dimension))
    step = max(1, 2**22 // num)
    for begin in range(0, num, step):
        block = slice(begin, begin + step)
        gaps = rows[block, None] - rows
        near = np.exp(-0.5 * np.sum((gaps / spread) ** 2, -1))
        near[np.arange(len(near)), begin + np.arange(len(near))] = 0.0  # x' is another example
        near /= (np.sqrt(2 * np.pi) * spread) ** dimension * (num - 1)
        value[block] = near.sum(1)
        gradient[block] = -np.einsum("ij,ijd->id", near, gaps) / spread**2
    chosen = jax.random.permutation(key, num)[:num_centers]
    return _regressed(rows, rows[np.asarray(chosen)], reach, value, gradient)


def project_field(field: DensityField, points, centers, width: float) -> DensityField:
    r"""The field of Gaussian bumps that is nearest to a given one at some points, in the mean square.

    A field that was mixed or pushed forward many times becomes one of fixed cost. With `push_affine`,
    $s \leftarrow \Pi\, \mathbb{E}_R\, \gamma^{-d} s((\cdot - R)/\gamma)$ repeated is the Bellman operator
    of the distribution of discounted returns, whose error after $k$ rounds is of order $\gamma^k$, beside
    that of the bumps.

    Args:
        field: The field to be approached.
        points: Where it is looked at, shape `(num, dimension)`; they should cover its support.
        centers: Centers of the bumps, shape `(num_centers, dimension)`.
        width: Their standard deviation, no wider than what is to be seen; near the distance of the centers.

    Raises:
        ValueError: If shapes disagree, or something is not finite.
    """
    points, centers = np.asarray(points, float), np.asarray(centers, float)
    shapes = points.shape, centers.shape
    if points.ndim != 2 or centers.shape != (len(centers), points.shape[1]) or not len(centers):
        raise ValueError(
            f"`points` and `centers` must have shapes (num, dimension); got {shapes[0]} and "
            f"{shapes[1]}. {_faq.shapes}"
        )
    _check_sizes(width=width)
    found = [np.asarray(part, float) for part in _at(field, jnp.asarray(points))]
    if not all(np.isfinite(part).all() for part in (centers, *found)):
        raise ValueError(
            "`project_field` met a field that is not finite at `points`, or `centers` that are "
            f"not. {_faq.finite}"
        )
    return _regressed(points, centers, width, *found)


@eqx.filter_jit
def _at(field, points):
    return jax.vmap(field.value)(points), jax.vmap(field.gradient)(points)


def _regressed(points, centers, width, value, gradient) -> DensityField:
    table = np.asarray(
        jax.vmap(lambda x: bumps(x, jnp.asarray(centers), width))(jnp.asarray(points)), float
    )
    # Neighbouring bumps are nearly alike: directions below a thousandth of the largest are left out.
    weights = np.linalg.lstsq(table, np.column_stack([value, gradient]), rcond=1e-3)[0]
    dtype = jnp.result_type(float)
    weights, centers = jnp.asarray(weights, dtype), jnp.asarray(centers, dtype)
    width = jnp.asarray(width, dtype)
    return DensityField(Bumps(weights[:, 0], centers, width), Bumps(weights[:, 1:], centers, width))


def _check_sizes(**sizes: float) -> None:
    for name, size in sizes.items():
        if not (size > 0 and np.isfinite(size)):
            raise ValueError(
                f"`{name}` must be positive and finite, a standard deviation in units of the data; got "
                f"{size}. {_faq.numbers}"
            )
