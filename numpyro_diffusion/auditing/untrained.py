"""Whether a network prior is still the Gaussian it was initialised as."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PRNGKey
from ..energies import AbstractDenoiser

__all__ = ["is_affine"]


def is_affine(prior: AbstractDenoiser, data, key: PRNGKey, times: np.ndarray) -> bool:
    r"""Test whether the denoiser is an affine function of noised data at all levels, to rounding.

    It is for a Gaussian distribution, and so for an energy of this package whose network was never trained.
    Of two noised examples $u, v$, $\hat x_0(\tfrac12(u + v))$ is compared with the mean of $\hat x_0(u)$ and
    $\hat x_0(v)$.

    Args:
        prior: An energy or a denoiser.
        data: Clean examples of shape `(num, *shape)`, at least 2.
        key: PRNG key.
        times: The levels.
    """
    data = jnp.asarray(data, jnp.result_type(float))
    pairs = len(data) // 2
    first, second = data[:pairs], data[pairs : 2 * pairs]
    gap, size = _gaps(prior, first, second, key, jnp.asarray(times, data.dtype))
    return bool(
        np.all(np.asarray(gap) <= 1e3 * float(jnp.finfo(data.dtype).eps) * np.asarray(size))
    )


@eqx.filter_jit
def _gaps(prior, first, second, key, times):
    """Largest deviation from the mean of two, and what to compare it with, by level."""

    def at(t):
        alpha_t, _ = prior.schedule(t)
        s = prior.schedule.noise_level(t)
        u, v = (
            x + s * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip((first, second), jax.random.split(key), strict=True)
        )
        denoise = lambda u: jax.lax.map(lambda u: prior.denoise(alpha_t * u, t), u, batch_size=256)
        gap = denoise(0.5 * (u + v)) - 0.5 * (denoise(u) + denoise(v))
        return jnp.max(jnp.abs(gap)), jnp.max(jnp.abs(u)) + jnp.max(jnp.abs(v))

    return jax.lax.map(at, times)
