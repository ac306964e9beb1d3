"""Denoised mean with an isotropic variance by noise level (PiGDM)."""

import equinox as eqx
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance, root_of

__all__ = ["Widened"]


class Widened(AbstractTwist):
    r"""The rest of the model sees $\mathcal{N}(\hat x, r_t^2)$, with $\hat x$ the denoised mean.

    $r_t^2 = \tau^2 d^2 / (\tau^2 + d^2)$ with $\tau^2 = s_t^2 - s_{t_{\min}}^2$ the noise between the prior
    and this level and $d^2$ the prior's variance, coordinate by coordinate: what a Gaussian prior would leave
    open. The likelihood is averaged over it (see `bridge.widening`), so that precise data stay compatible
    with a noisy variable, each direction as far as it must. The average is a matrix over all coordinates of
    the diffusion sites: for hundreds of them, not for thousands.

    Attributes:
        scale: Factor on $r_t$.

    References:
        Song et al. (2023), Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR.
    """

    scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not self.scale > 0:
            raise ValueError(
                f"`scale` of `Widened` must be positive; got {self.scale}. Try 1. {_faq.numbers}"
            )

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        log_density, score = energy.log_density_and_score(u, t)
        return log_density, u + added_variance(energy, t) * score

    def covariance_root(self, energy: AbstractDenoiser, u: Array, t: Scalar) -> Array:
        tau = added_variance(energy, t)
        alpha_t, _ = energy.schedule(jnp.asarray(energy.t_min, tau.dtype))
        _, variance = energy.moments(jnp.asarray(energy.t_min, tau.dtype))
        d = (variance / alpha_t**2).astype(u.dtype)
        return self.scale * root_of(jnp.broadcast_to(tau * d / (tau + d), u.shape)).astype(u.dtype)
