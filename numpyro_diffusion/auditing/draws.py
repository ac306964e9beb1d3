r"""Draws of a prior against held-out data: moments, and a two-sample comparison.

Not `scipy.stats.energy_distance`, which is for numbers and not for vectors.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number, whole_numbers, whole_or_none
from .._prng import lean
from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data, over_examples
from ..energies import AbstractDenoiser
from ..energies.reverse import draw_prior

__all__ = ["Draws", "compare_draws", "many_draws", "noised_to_prior"]


class Draws(NamedTuple):
    r"""Draws of a prior against data. Sizes are in standard deviations of the data.

    Under one distribution for both, z scores are standard normal, the chi-squares average 1 and p-values are
    uniform.

    Attributes:
        num_draws: Number of draws.
        num_data: Number of examples.
        mean_z: Error of the mean of each coordinate in standard errors, of the shape of one example.
        variance_z: The same for its variance.
        mean_shift: Root mean square error of the means of the leading directions, chance taken off.
        mean_chi_square: Mean of their squared z scores.
        mean_p: P-value of `mean_chi_square`, by permutation.
        scale: Standard deviation of the draws over that of the data, all directions together.
        scale_error: Its standard error.
        covariance_shift: Root mean square error of the entries of the whitened covariance, chance taken off.
        covariance_chi_square: Mean of their squared z scores.
        covariance_p: P-value of `covariance_chi_square`, by permutation.
        energy_distance: $2 E|X - Y| - E|X - X'| - E|Y - Y'|$ over $2 E|X - Y|$, in [0, 1].
        energy_p: Its p-value, by permutation.
        num_directions: Leading directions of the data that the summaries look at.
    """

    num_draws: int
    num_data: int
    mean_z: np.ndarray
    variance_z: np.ndarray
    mean_shift: float
    mean_chi_square: float
    mean_p: float
    scale: float
    scale_error: float
    covariance_shift: float
    covariance_chi_square: float
    covariance_p: float
    energy_distance: float
    energy_p: float
    num_directions: int

    __repr__ = record
    _repr_html_ = record_page


def compare_draws(
    draws,
    data,
    key: PRNGKey,
    *,
    num_directions: int | None = None,
    num_permutations: int = 999,
    max_points: int | None = 1000,
) -> Draws:
    r"""Two samples compared: mean, covariance, and the energy distance, with permutation p-values.

    Coordinates are compared one by one. Summaries look at the leading principal directions of both samples
    together: $z$ scores of their means, and of the entries of their covariance once whitened. Labels are
    permuted to say how large the sums of squares are by chance, so that no distribution is assumed. The
    energy distance sees differences of any kind, but small ones in many dimensions poorly.

    Neither sample may be weighted. To compare a prior with data, give the data the noise that the prior
    keeps at `t_min` (`noised_to_prior`).

    Args:
        draws: Shape `(num_draws, *shape)`.
        data: Shape `(num_data, *shape)`.
        key: PRNG key.
        num_directions: Directions; by default one for ten examples of the smaller sample, 20 at most.
        num_permutations: Permutations of the labels.
        max_points: Examples of each sample that the energy distance looks at; memory goes with its square.

    Raises:
        ValueError: If shapes disagree or a sample has fewer than 20 examples.

    References:
        Székely & Rizzo (2013), Energy statistics: a class of statistics based on distances, J. Stat. Plan.
        Inference.
    """
    num_permutations = whole_number("num_permutations", num_permutations, 1)
    num_directions = whole_or_none("num_directions", num_directions, 1, "`None` chooses.")
    max_points = whole_or_none("max_points", max_points, 2, "`None` takes all.")
    draws, data = np.asarray(draws, float), np.asarray(data, float)
    if draws.shape[1:] != data.shape[1:] or min(len(draws), len(data)) < 20:
        raise ValueError(
            "`compare_draws` expects two samples of one shape, at least 20 examples each; got shapes "
            f"{draws.shape} and {data.shape}. Stack examples along the first axis. {_faq.examples}"
        )
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    x, y = (sample.reshape(len(sample), -1) for sample in (draws, data))
    second = lambda a: (a - a.mean(0)) ** 2
    mean_z, variance_z = (
        _z(*_difference(*pair)).reshape(data.shape[1:]) for pair in ((x, y), (second(x), second(y)))
    )
    count = min(num_directions or 20, min(len(x), len(y)) // 10, x.shape[1])
    white = _whitened(np.concatenate([x, y]), count)
    label = np.arange(len(white)) < len(x)
    orders = np.array([rng.permutation(label) for _ in range(num_permutations)])
    rows, columns = np.triu_indices(white.shape[1])
    products = white[:, rows] * white[:, columns]
    totals = [second(a).sum(1) for a in (x, y)]
    scale = float((totals[0].mean() / totals[1].mean()) ** 0.5)
    relative = [t.std(ddof=1) / t.mean() / len(t) ** 0.5 for t in totals]
    mean_shift, mean_chi_square, mean_p = _moment_test(white, label, orders)
    covariance_shift, covariance_chi_square, covariance_p = _moment_test(products, label, orders)
    energy_distance, energy_p = _energy_test(
        _some(rng, x, max_points), _some(rng, y, max_points), rng, num_permutations
    )
    return Draws(
        num_draws=len(x),
        num_data=len(y),
        mean_z=mean_z,
        variance_z=variance_z,
        mean_shift=mean_shift,
        mean_chi_square=mean_chi_square,
        mean_p=mean_p,
        scale=scale,
        scale_error=float(0.5 * scale * np.hypot(*relative)),
        covariance_shift=covariance_shift,
        covariance_chi_square=covariance_chi_square,
        covariance_p=covariance_p,
        energy_distance=energy_distance,
        energy_p=energy_p,
        num_directions=white.shape[1],
    )


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means and its standard error, by column."""
    variance = a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)
    return a.mean(0) - b.mean(0), np.sqrt(variance)


def _z(gap: np.ndarray, error: np.ndarray) -> np.ndarray:
    """In standard errors; 0 where nothing varies."""
    return np.divide(gap, error, out=np.zeros_like(gap), where=error > 0)


def _whitened(both: np.ndarray, count: int) -> np.ndarray:
    """Leading principal coordinates of both samples, of unit variance, shape `(num, count)`."""
    centred = both - both.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(count, int(np.sum(sizes > 1e-6 * sizes[0])))
    return left[:, :kept] * len(both) ** 0.5


def _moment_test(
    features: np.ndarray, label: np.ndarray, orders: np.ndarray
) -> tuple[float, float, float]:
    """Size, chi-square over its degrees and p-value of a difference in the means of features."""
    gap, error = _difference(features[label], features[~label])
    size = np.sqrt(max(float(np.mean(gap**2 - error**2)), 0.0))
    centred = features - features.mean(0)
    unit = centred / np.maximum(centred.std(0), 1e-300)
    factor = 1 / (1 / label.sum() + 1 / (~label).sum())
    shares = np.concatenate([label[None], orders]).astype(float)
    means = (
        shares @ unit / label.sum()
    )  # of the draws; those of the data follow, since all sum to 0
    gaps = means * (1 + label.sum() / (~label).sum())
    chi = factor * np.mean(gaps**2, 1)
    return float(size), float(np.mean(_z(gap, error) ** 2)), _p_value(chi)


def _p_value(statistics: np.ndarray) -> float:
    """Rank of the first among all, those of the permuted labels included."""
    return float(np.mean(statistics >= statistics[0] - 1e-12 * np.abs(statistics).max()))


def _some(rng, points: np.ndarray, limit: int | None) -> np.ndarray:
    if limit is None or len(points) <= limit:
        return points
    return points[rng.choice(len(points), limit, replace=False)]


def _energy_test(x: np.ndarray, y: np.ndarray, rng, num: int) -> tuple[float, float]:
    both = np.concatenate([x, y])
    both = both - both.mean(0)
    squares = (both**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0))
    np.fill_diagonal(distance, 0)
    label = np.arange(len(both)) < len(x)
    orders = np.concatenate([label[None], [rng.permutation(label) for _ in range(num)]]).astype(
        float
    )
    sums = orders @ distance
    within, total = np.sum(sums * orders, 1), distance.sum()
    crossed = np.sum(sums, 1) - within
    other = total - within - 2 * crossed
    m, n = len(x), len(y)
    between = 2 * crossed / (m * n)
    gap = between - within / (m * (m - 1)) - other / (n * (n - 1))
    return float(max(gap[0], 0) / between[0]), _p_value(gap)


def noised_to_prior(prior: AbstractDenoiser, data, key: PRNGKey) -> np.ndarray:
    """Clean examples with the noise that the prior keeps at `t_min`, of the shape of `data`."""
    data = check_data(prior, data)
    level = prior.schedule.noise_level(jnp.asarray(prior.t_min, data.dtype))
    return np.asarray(data + level * jax.random.normal(key, data.shape, data.dtype))


def many_draws(
    prior: AbstractDenoiser,
    key: PRNGKey,
    num: int,
    *,
    num_steps: int = 200,
    batch_size: int | None = 4096,
) -> np.ndarray:
    r"""Draws of the prior in the units of the data, shape `(num, *shape)`.

    Exact where the energy has a closed form, else by the reverse process. Its distribution differs from that
    of the energy by an error of order one over `num_steps`.

    Args:
        prior: An energy or a denoiser.
        key: PRNG key.
        num: Number of draws.
        num_steps: Steps of the reverse process.
        batch_size: Draws at once, to bound memory; all of them if `None`.
    """
    num, num_steps = whole_numbers(1, num=num, num_steps=num_steps)
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    return np.asarray(_many(prior, jax.random.split(lean(key), num), num_steps, batch_size))


@eqx.filter_jit
def _many(prior, keys, num_steps, batch_size):
    one = lambda _, key: draw_prior(prior, key, num_steps)
    return over_examples(one, batch_size, jnp.zeros(len(keys)), keys)
