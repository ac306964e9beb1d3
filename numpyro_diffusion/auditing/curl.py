r"""Curl of a score: how much of it is not the gradient of any log density."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data
from ..energies import AbstractDenoiser, AbstractEnergy
from .levels import by_level, check_times, noise_levels, score_at

__all__ = ["Curl", "curl_ratio"]


class Curl(NamedTuple):
    r"""Curl of the score by level; arrays of shape `(num_levels,)`.

    Attributes:
        times: The levels.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        ratio: $\lVert J - J^\top \rVert_F / \lVert J + J^\top \rVert_F$; 0 for the gradient of an energy.
        ratio_error: Its standard error.
        rounding: What rounding alone may make of a ratio of 0.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    ratio: np.ndarray
    ratio_error: np.ndarray
    rounding: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def curl_ratio(
    prior: AbstractDenoiser,
    data,
    key: PRNGKey,
    times=None,
    *,
    num_probes: int = 4,
    batch_size: int | None = 4096,
) -> Curl:
    r"""Antisymmetric over symmetric part of the Jacobian $J$ of the score, by noise level.

    Where it is not 0 no density has this score: a Metropolis step cannot be right, and a Langevin step
    has a distribution that nobody knows. A score turned by an angle $\theta$ in its plane has the ratio
    $\tan \theta$. Norms are averaged over noised examples and by random signs $v$,
    $\lVert J \mp J^\top \rVert_F^2 = \mathbb{E} |J v \mp J^\top v|^2$, one forward and one backward
    derivative each; the error is by the delta method.

    Args:
        prior: An energy or a denoiser.
        data: Clean examples of shape `(num, *shape)`.
        key: PRNG key.
        times: Levels; eight in equal steps of log noise by default.
        num_probes: Random directions an example and level.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        ValueError: If data, times or numbers cannot be used.

    References:
        Hutchinson (1990), A stochastic estimator of the trace of the influence matrix, Commun. Stat.
    """
    data = check_data(prior, data, num_probes=num_probes, batch_size=batch_size)
    times = check_times(prior, times)
    squares = _squares(prior, data, key, jnp.asarray(times, data.dtype), num_probes, batch_size)
    curl, rest = (np.asarray(value, float) for value in squares)
    ratio = np.sqrt(curl.mean(0) / rest.mean(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        influence = np.where(curl.mean(0) > 0, curl / curl.mean(0), 0) - rest / rest.mean(0)
    error = 0.5 * ratio * influence.std(0, ddof=1) / len(data) ** 0.5
    # The score of a denoiser is a difference, in which digits cancel where it is small beside 1 / s.
    levels, size = noise_levels(prior, times), data[0].size
    unit = 0.0 if isinstance(prior, AbstractEnergy) else 2 * size**0.5 / levels**2
    precision = float(jnp.finfo(data.dtype).eps)
    rounding = 8 * precision * (1 + unit / np.sqrt(rest.mean(0)))
    return Curl(times, levels, ratio, error, rounding)


@eqx.filter_jit
def _squares(prior, data, key, times, num_probes, batch_size):
    """Squared norms of both parts, each of shape `(num, num_levels)`."""

    def one(x0, key, t):
        noises = jax.random.normal(key, (1 + num_probes, *x0.shape), x0.dtype)
        u = x0 + prior.schedule.noise_level(t) * noises[0]
        score = lambda u: score_at(prior, u, t)
        _, push = jax.linearize(score, u)
        _, pull = jax.vjp(score, u)

        def probe(v):
            forward, (backward,) = push(v), pull(v)
            return jnp.sum((forward - backward) ** 2), jnp.sum((forward + backward) ** 2)

        return jax.tree.map(jnp.mean, jax.vmap(probe)(jnp.sign(noises[1:])))

    return by_level(one, data, key, times, batch_size, num_probes)
