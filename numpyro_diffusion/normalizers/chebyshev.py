"""Polynomials through the normalisers at the nodes of a grid."""

import math
import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import _faq
from ..energies import NormalizerTable

__all__ = ["CLOCKS", "Found", "fitted"]

CLOCKS = np.linspace(0.0, 1.0, 17)
_DEGREE = 8
_MISFIT = 3.0  # standard errors


class Found(NamedTuple):
    """What a run tells of one node: the normaliser, its slope, and what it was at noisy levels."""

    value: float
    error: float
    slope: np.ndarray
    slope_error: np.ndarray
    on_the_way: np.ndarray | None


def fitted(axes, nodes, found: list[Found], degree: int | None) -> NormalizerTable:
    """Polynomials through normalisers and their slopes at the nodes, by weighted least squares."""
    # In several coordinates a product of polynomials that vanish at all nodes must be of higher degree.
    most = [min(len(axis) - (len(axes) > 1), _DEGREE) for axis in axes]
    degrees = most if degree is None else [min(degree, n) for n in most]
    logarithmic = tuple(bool(axis[0] > 0 and axis[-1] >= 3 * axis[0]) for axis in axes)
    values, slopes = _design(axes, nodes, degrees, logarithmic)
    least = 1e-5  # nats: where chance has no part, rounding does
    rows = [values / np.array([max(f.error, least) for f in found])[:, None]]
    right = [np.array([f.value / max(f.error, least) for f in found])]
    for i, slope in enumerate(slopes):
        errors = np.array([max(f.slope_error[i], least) for f in found])
        rows.append(slope / errors[:, None])
        right.append(np.array([f.slope[i] for f in found]) / errors)
    matrix, target = np.concatenate(rows), np.concatenate(right)
    clean = np.linalg.lstsq(matrix, target, rcond=None)[0]
    freedom = len(target) - len(clean)
    misfit = math.sqrt(np.sum((matrix @ clean - target) ** 2) / freedom) if freedom > 0 else 1.0
    if misfit > _MISFIT:
        warnings.warn(
            f"the table of normalisers misses its nodes by {misfit:.1f} standard errors: the log normaliser "
            "changes too fast for polynomials. Take more nodes, or a narrower grid; errors are "
            f"that much larger. {_faq.table_range}",
            stacklevel=3,
        )
    covariance = np.linalg.pinv(matrix.T @ matrix) * max(1.0, misfit) ** 2
    clocks, coefficients = np.array([0.0, 1.0]), np.stack([clean, clean])
    if all(f.on_the_way is not None for f in found):
        clocks = CLOCKS
        rough = _orders(degrees) <= np.array([len(axis) // 2 for axis in axes])
        keep = rough.all(1)
        noisy = np.zeros((len(clocks), len(clean)))
        passed: Any = np.stack([f.on_the_way for f in found])  # pyright: ignore
        noisy[:, keep] = np.linalg.lstsq(values[:, keep], passed, rcond=None)[0].T
        coefficients = np.concatenate([clean[None], noisy[1:]])
    arrays = [clocks, coefficients, covariance, nodes]
    arrays += [np.array([f.value for f in found]), np.array([f.error for f in found])]
    return NormalizerTable(  # pyright: ignore[reportCallIssue]
        tuple(float(axis[0]) for axis in axes),
        tuple(float(axis[-1]) for axis in axes),
        logarithmic,
        tuple(degrees),
        *map(jnp.asarray, arrays),
        misfit=misfit,
    )


def _orders(degrees) -> np.ndarray:
    """Order of each term in each coordinate, shape `(num_terms, num_coordinates)`."""
    return np.stack(
        [o.ravel() for o in np.meshgrid(*(np.arange(d + 1) for d in degrees), indexing="ij")], 1
    )


def _design(axes, nodes, degrees, logarithmic) -> tuple[np.ndarray, list[np.ndarray]]:
    """Terms at the nodes, and their derivatives in each coordinate."""
    terms, derivatives = [], []
    for i, (axis, degree, log) in enumerate(zip(axes, degrees, logarithmic, strict=True)):
        scale = np.log if log else np.asarray
        low, high = scale(axis[0]), scale(axis[-1])
        place = (2 * scale(nodes[:, i]) - low - high) / (high - low)
        change = 2 / (high - low) / (nodes[:, i] if log else 1.0)
        unit = np.eye(degree + 1)
        cheb = np.polynomial.chebyshev
        terms.append(cheb.chebvander(place, degree))
        slope = np.stack([cheb.chebval(place, cheb.chebder(row)) for row in unit], 1)
        derivatives.append(slope * np.broadcast_to(change, place.shape)[:, None])

    def product(parts):
        whole = np.ones((len(nodes), 1))
        for part in parts:
            whole = (whole[:, :, None] * part[:, None, :]).reshape(len(nodes), -1)
        return whole

    swapped = [[*terms[:i], d, *terms[i + 1 :]] for i, d in enumerate(derivatives)]
    return product(terms), [product(parts) for parts in swapped]
