r"""Calibration of energy differences between regions and noise levels against the scores."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import whole_number, whole_numbers
from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data
from ..energies import AbstractEnergy
from ..energies.check import check_has_density
from ..train import score_log_density
from .levels import by_level, check_times, mean_and_error, noise_levels

__all__ = ["Offsets", "normalizer_spread"]

HEADROOM = (
    8.0  # how far the largest noise level must lie above one at which densities are asked for
)


class Offsets(NamedTuple):
    r"""Normalisers point by point, by level; arrays of shape `(num_levels,)`, in nats.

    NaN at levels too near `t_max` for the score formula.

    Attributes:
        times: The levels.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        value: Mean over noised examples of $\hat L(t, x)$.
        value_error: Its standard error.
        spread: Standard deviation over $x$ beyond Monte Carlo error; 0 for an exact energy.
        spread_error: Its standard error.
        noise: Standard deviation by Monte Carlo of one $\hat L(t, x)$, which was taken off.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    value: np.ndarray
    value_error: np.ndarray
    spread: np.ndarray
    spread_error: np.ndarray
    noise: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def normalizer_spread(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    times=None,
    *,
    num_nodes: int = 32,
    num_draws: int = 16,
    num_repeats: int = 2,
    batch_size: int | None = 4096,
) -> Offsets:
    r"""Pointwise estimates of the normaliser, $\hat L(t, x) = -\log \hat p_t(x) - E(x, t)$, by noise level.

    $\log \hat p_t$ is the score formula (`score_log_density`): it knows scores of the levels from $t$ up, and
    no energy. For an exact energy $\hat L$ is the same at every $x$. Where it is not, energies of different
    regions are off against each other, and with them the probabilities of modes. Its mean at `t_min` is to
    be compared with `log_normalizer`. How it goes with $t$ tells whether levels can be compared, which
    `thermodynamic_normalizer` needs and posteriors do not.

    Each point is valued `num_repeats` times with fresh noise. The variance within points, by Monte Carlo, is
    taken off that between them; where the difference is negative the spread is 0.

    Args:
        energy: The energy. A stored `log_normalizer` is not looked at.
        data: Clean examples of shape `(num, *shape)`, which are noised to each level.
        key: PRNG key.
        times: Levels; `t_min` alone by default.
        num_nodes: Nodes of the score formula.
        num_draws: Noises a node, even.
        num_repeats: Values a point, at least 2.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data, times or numbers cannot be used.

    References:
        Li & Yan (2024), A Score-Based Density Formula, arXiv 2408.16765.
    """
    num_nodes = whole_number("num_nodes", num_nodes, 1)
    num_draws, num_repeats = whole_numbers(2, num_draws=num_draws, num_repeats=num_repeats)
    check_has_density("normalizer_spread", energy)
    counts = {"num_nodes": num_nodes, "num_draws": num_draws // 2, "num_repeats": num_repeats - 1}
    data = check_data(energy, data, batch_size=batch_size, **counts)
    times = check_times(energy, [energy.t_min] if times is None else times)
    levels = noise_levels(energy, times)
    known = HEADROOM * levels <= noise_levels(energy, np.array([energy.t_max]))
    columns = np.full((5, len(times)), np.nan)
    if known.any():
        at = jnp.asarray(times[known], data.dtype)
        sizes = num_nodes, 2 * (num_draws // 2), num_repeats
        values = np.asarray(_values(energy, data, key, at, sizes, batch_size), float)
        columns[:, known] = _columns(values)
    return Offsets(times, levels, *columns)


def _columns(values: np.ndarray) -> np.ndarray:
    """Statistics of values of shape `(num, num_levels, num_repeats)`, by level."""
    repeats = values.shape[-1]
    by_point, within = values.mean(-1), values.var(-1, ddof=1)
    count = len(values)
    squares = (by_point - by_point.mean(0)) ** 2 * count / (count - 1) - within / repeats
    variance, variance_error = mean_and_error(squares)
    spread = np.sqrt(np.maximum(variance, 0))
    # By the delta method, which fails at 0: there the error of the variance alone sets the scale.
    spread_error = variance_error / np.maximum(2 * spread, np.sqrt(variance_error) + 1e-300)
    noise = np.sqrt(within.mean(0))
    return np.stack([*mean_and_error(by_point), spread, spread_error, noise])


@eqx.filter_jit
def _values(energy, data, key, times, sizes, batch_size):
    num_nodes, num_draws, num_repeats = sizes

    def one(x0, key, t):
        key_noise, *key_repeats = jax.random.split(key, 1 + num_repeats)
        alpha_t, _ = energy.schedule(t)
        noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
        u = x0 + energy.schedule.noise_level(t) * noise
        log_density = u.size * jnp.log(alpha_t) - energy.energy(alpha_t * u, t)

        def by_score(key):
            return score_log_density(energy, key, u, t, num_levels=num_nodes, num_draws=num_draws)

        return log_density - jax.lax.map(by_score, jnp.stack(key_repeats))

    return by_level(one, data, key, times, batch_size, num_nodes * num_draws)
