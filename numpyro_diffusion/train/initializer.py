r"""Initial states of the chains of recovery likelihood, by a denoiser that is trained alongside."""

from collections.abc import Callable
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser

__all__ = ["Initializer"]


class Initializer(eqx.Module):
    r"""Gaussian guess of less noisy data $u$, of level $s$, from noisier data $u'$ of level $s'$.

    $$u \mid u' \sim \mathcal{N}\big(u' + r\,(D(u') - u'),\; r s^2 I\big), \qquad r = 1 - s^2 / s'^2,$$

    which is the reverse kernel of diffusion with the denoiser

    $$D(u') = m + \frac{d^2}{d^2 + s'^2} (u' - m) + \frac{d s'}{\sqrt{d^2 + s'^2}}\, F(w, \tfrac14 \log s'),
      \qquad w = \frac{u' - m}{\sqrt{d^2 + s'^2}} .$$

    Attributes:
        net: Backbone $F$, `net(w, c_noise)` of shape `shape`.
        mean: $m$, of shape `shape`, in data units.
        scale: $d$, the standard deviation of each coordinate, of shape `shape`.

    References:
        Zhu et al. (2024), arXiv 2309.05153.
    """

    net: Callable[[Array, Scalar], Array]
    mean: Array
    scale: Array

    @classmethod
    def from_energy(cls, net: Callable[[Array, Scalar], Array], energy: AbstractDenoiser) -> Self:
        """An untrained initialiser with the Gaussian that the energy takes its data for."""
        t = jnp.asarray(energy.t_min, jnp.result_type(float))
        alpha_t, sigma_t = energy.schedule(t)
        mean, variance = energy.moments(t)
        least = 0.1 * sigma_t  # data without any spread in a coordinate
        return cls(
            net, mean / alpha_t, jnp.sqrt(jnp.maximum(variance - sigma_t**2, least**2)) / alpha_t
        )

    def denoise(self, u: Array, s: Scalar) -> Array:
        r"""$D(u')$, of the shape of `u`, in data units."""
        mean, scale = self.mean.astype(u.dtype), self.scale.astype(u.dtype)
        total = jnp.sqrt(scale**2 + s**2)
        w = (u - mean) / total
        return mean + scale / total * (scale * w + s * self.net(w, 0.25 * jnp.log(s)))

    def draw(self, key: PRNGKey, u_next: Array, s: Scalar, s_next: Scalar) -> Array:
        """Draw less noisy data; no gradient goes through it."""
        r = 1 - (s / s_next) ** 2
        mean = u_next + r * (self.denoise(u_next, s_next) - u_next)
        noise = jax.random.normal(key, u_next.shape, u_next.dtype)
        return jax.lax.stop_gradient(mean + jnp.sqrt(r) * s * noise)

    def error(self, u: Array, u_next: Array, s: Scalar, s_next: Scalar) -> Scalar:
        r"""Squared error of the mean, in units in which a useless $F$ costs about 1 a dimension."""
        r = 1 - (s / s_next) ** 2
        target = u_next + (u - u_next) / r  # the denoised point that would have led to u
        weight = 1 / s_next**2 + 1 / self.scale.astype(u.dtype) ** 2
        return jnp.mean(weight * (self.denoise(u_next, s_next) - target) ** 2)
