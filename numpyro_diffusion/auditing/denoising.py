r"""Denoising error by noise level, against the best linear (Wiener) denoiser and the prior's own claim."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data
from ..density.reference import Reference
from ..energies import AbstractDenoiser
from .levels import by_level, check_times, mean_and_error, noise_levels

__all__ = ["Denoising", "denoising_residual"]


class Denoising(NamedTuple):
    r"""Squared error of the denoiser by level; arrays of shape `(num_levels,)`, per coordinate.

    Attributes:
        times: The levels.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        residual: $\mathbb{E} |\hat x_0(x_t) - x_0|^2 / n$, in squared units of the data.
        residual_error: Its standard error.
        linear: The same for the best linear denoiser, that of the Gaussian with the data's moments.
        linear_error: Its standard error.
        saving_error: Standard error of `linear - residual`; the noise is shared, so it is smaller.
        predicted: What the denoiser's own derivative says the residual should be.
        predicted_error: Its standard error.
        excess_error: Standard error of `residual - predicted`.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    residual: np.ndarray
    residual_error: np.ndarray
    linear: np.ndarray
    linear_error: np.ndarray
    saving_error: np.ndarray
    predicted: np.ndarray
    predicted_error: np.ndarray
    excess_error: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def denoising_residual(
    prior: AbstractDenoiser,
    data,
    key: PRNGKey,
    times=None,
    *,
    reference: Any = None,
    num_noises: int = 4,
    batch_size: int | None = 4096,
) -> Denoising:
    r"""Residual of the denoiser by noise level, with a floor and a prediction to compare it with.

    The *floor* is the residual of $\hat x_0 = m + S (S + s^2 I)^{-1} (u - m)$, $u = x_t / \alpha_t$: a prior
    that is not below it has learned no more than a mean and a covariance. The *prediction* is Tweedie's
    formula of second order. For an exact denoiser $\mathrm{Cov}(x_0 \mid u) = s^2\, \partial \hat x_0 /
    \partial u$, so that

    $$\mathbb{E} |\hat x_0 - x_0|^2
      = s^2\, \mathbb{E} \operatorname{tr} \frac{\partial \hat x_0}{\partial u} ,$$

    with the trace by one random direction. Where the residual is larger than the prediction, the prior is
    surer of its answers than it should be.

    Args:
        prior: An energy or a denoiser.
        data: Clean examples of shape `(num, *shape)`, best those that the prior never saw.
        key: PRNG key.
        times: Levels; eight in equal steps of log noise by default.
        reference: Examples whose moments make the linear denoiser; `data` by default, which flatters it
            where examples are not many more than coordinates.
        num_noises: Noises an example and level.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        ValueError: If data, times or numbers cannot be used.

    References:
        Efron (2011), Tweedie's formula and selection bias, JASA.
    """
    data = check_data(prior, data, num_noises=num_noises, batch_size=batch_size)
    times = check_times(prior, times)
    moments = Reference.of(data if reference is None else check_data(prior, reference))
    values = _values(
        prior, moments, data, key, jnp.asarray(times, data.dtype), num_noises, batch_size
    )
    residual, linear, predicted = (np.asarray(value, float) for value in values)
    return Denoising(
        times,
        noise_levels(prior, times),
        *mean_and_error(residual),
        *mean_and_error(linear),
        mean_and_error(linear - residual)[1],
        *mean_and_error(predicted),
        mean_and_error(residual - predicted)[1],
    )


@eqx.filter_jit
def _values(prior, reference, data, key, times, num_noises, batch_size):
    def one(x0, key, t):
        alpha_t, _ = prior.schedule(t)
        s = prior.schedule.noise_level(t)

        def noised(noise, v):
            u = x0 + s * noise
            x_hat, pushed = jax.jvp(lambda u: prior.denoise(alpha_t * u, t), (u,), (v,))
            linear = u + s**2 * reference.log_density_and_score(u, s)[1]
            return (
                jnp.mean((x_hat - x0) ** 2),
                jnp.mean((linear - x0) ** 2),
                s**2 * jnp.mean(v * pushed),
            )

        noises = jax.random.normal(key, (2, num_noises, *x0.shape), x0.dtype)
        values = jax.vmap(noised)(noises[0], jnp.sign(noises[1]))
        return jax.tree.map(jnp.mean, values)

    return by_level(one, data, key, times, batch_size, num_noises)
