r"""Differences of log densities at the same points with the same noises.

Two estimates that share their noises err alike, so their difference is far better known than either. What
chance is left is told by the replicates of an estimate, paired one by one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import Array
from .estimate import Point

__all__ = ["Comparison", "compared", "errors_of"]


class Comparison(NamedTuple):
    r"""Mean log densities over examples and all their differences, for `m` priors or distributions; in nats.

    Printed, it is a table from the best to the worst.

    Attributes:
        names: What is compared.
        log_density: Mean over examples of $\log p(x)$, shape `(m,)`.
        standard_error: Of the means, from the spread over examples, noise of the estimates included.
        noise_error: The part of it that is by the noise of the estimates, which more evaluations lower.
        difference: Mean of the first less mean of the second, shape `(m, m)`.
        difference_error: Standard errors of the differences over paired examples, same shape.
        spread: Standard deviation over examples of the difference, beyond the noise of the estimates; 0 where
            two distributions differ by nothing or by a constant.
        laws: Which density of the model each is, `m` strings.
        num_examples: Number of examples.
    """

    names: tuple[str, ...]
    log_density: np.ndarray
    standard_error: np.ndarray
    noise_error: np.ndarray
    difference: np.ndarray
    difference_error: np.ndarray
    spread: np.ndarray
    laws: tuple[str, ...]
    num_examples: int

    __repr__ = record
    _repr_html_ = record_page

    def __str__(self) -> str:
        order = np.argsort(-self.log_density)
        best = order[0]
        width = max(map(len, self.names)) + 1
        head = ("rank", "log p", "se", "noise", "diff", "dse", "spread")
        lines = [" " * width + "".join(f"{name:>9}" for name in head)]
        for rank, i in enumerate(order):
            numbers = (
                self.log_density[i],
                self.standard_error[i],
                self.noise_error[i],
                self.difference[best, i],
                self.difference_error[best, i],
                self.spread[best, i],
            )
            row = "".join(f"{number:9.3f}" for number in numbers)
            lines.append(f"{self.names[i]:<{width}}{rank:9d}{row}")
        return "\n".join(lines)


def compared(
    names: Sequence[str], laws: Sequence[str], points: Sequence[Point], common: Sequence[float]
) -> Comparison:
    """A comparison of estimates at `n` points each.

    Args:
        names: One an estimate.
        laws: One an estimate.
        points: Estimates, leaves of shape `(n, ...)`.
        common: Standard error of what all points of an estimate share, such as that of a normaliser.
    """
    values = np.stack([np.asarray(point.value, float) for point in points])
    common_error = np.asarray(common, float)
    variances = np.stack([np.asarray(point.variance, float) for point in points])
    num = values.shape[1]
    gaps = values[:, None] - values[None]
    noise = np.array([[_noise(a, b).mean() for b in points] for a in points])
    apart = np.hypot(common_error[:, None], common_error[None])
    np.fill_diagonal(apart, 0.0)
    return Comparison(
        tuple(names),
        values.mean(1),
        np.hypot(values.std(1, ddof=1) / num**0.5, common_error),
        np.sqrt(variances.mean(1) / num),
        gaps.mean(2),
        np.hypot(gaps.std(2, ddof=1) / num**0.5, apart),
        np.sqrt(np.maximum(gaps.var(2, ddof=1) - noise, 0.0)),
        tuple(laws),
        num,
    )


def _noise(a: Point, b: Point) -> np.ndarray:
    """Variance of the difference by noise, at each point; paired where both have as many replicates."""
    if a is b:
        return np.zeros(len(a.value))
    if a.replicates is None or b.replicates is None or a.replicates.shape != b.replicates.shape:
        return np.asarray(a.variance + b.variance, float)
    gaps = np.asarray(a.replicates - b.replicates, float)
    return gaps.var(-1, ddof=1) / gaps.shape[-1]


def errors_of(points: Point, jacobian: Array) -> Array:
    r"""Standard errors of `jacobian @ value`, by the delta method and with the noises that are shared.

    Args:
        points: `m` estimates with the same noises, leaves of shape `(..., m)` and `(..., m, k)`.
        jacobian: Shape `(..., r, m)`.

    Returns:
        Shape `(..., r)`.
    """
    if points.replicates is None:
        return jnp.sqrt(jnp.einsum("...rm,...m->...r", jacobian**2, points.variance))
    parts = jnp.einsum("...rm,...mk->...rk", jacobian, points.replicates)
    return jnp.std(parts, -1, ddof=1) / parts.shape[-1] ** 0.5
