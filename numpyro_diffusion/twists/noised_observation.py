"""Noised-observation likelihoods (FPS, MCGDiff): data are noised as much as the variable."""

import jax.numpy as jnp

from .._typing import Array, Scalar
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance
from .low_rank import LowRank

__all__ = ["NoisedObservation"]


class NoisedObservation(AbstractTwist):
    r"""The rest of the model sees $\mathcal{N}(u_t, \tau^2 I)$: the noised variable and its own noise.

    For linear Gaussian data $y = H x + e$ this is the distribution of data noised as the variable is,
    $\mathcal{N}(y; H u_t, \Sigma_y + \tau^2 H H^\top)$ with $\tau^2 = s_t^2 - s_{t_{\min}}^2$: noised data
    paths with their noise integrated out. No derivative of the network is taken, so a score is enough and a
    level costs one evaluation. It knows nothing of the prior, which `Tweedie` and its relatives do.

    With `Twisted(conjugate=True)` each step draws from its product with the sampler's own step, in closed
    form.

    References:
        Cardoso, Janati El Idrissi, Le Corff & Moulines (2024), Monte Carlo guided Denoising Diffusion models
        for Bayesian linear inverse problems, ICLR. Dou & Song (2024), Diffusion Posterior Sampling for
        Linear Inverse Problem Solving: A Filtering Perspective, ICLR.
    """

    def of_denoised(self, u: Array, x_hat: Array) -> Array:
        del x_hat
        return u

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        return energy.log_density(u, t), u

    def covariance_root(self, energy: AbstractDenoiser, u: Array, t: Scalar) -> LowRank:
        none = jnp.zeros((1, 1, u.size), u.dtype)
        return LowRank(none, none, added_variance(energy, t).astype(u.dtype)[None])
