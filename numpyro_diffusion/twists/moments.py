"""Denoised mean with the covariance that the denoiser implies (moment matching, TMPD)."""

import math

import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance, denoised_mean, root_of

__all__ = ["Moments"]


class Moments(AbstractTwist):
    r"""The rest of the model sees $\mathcal{N}(\hat x, C)$ with $C = \tau^2\, \partial \hat x / \partial u$.

    Mean and covariance of the prior's variable given the noised one, by Tweedie's formulas of first and
    second order, $\tau^2 = s_t^2 - s_{t_{\min}}^2$. The Jacobian costs one evaluation a coordinate, so this
    is for tens of coordinates, or an energy that costs nothing. It is made symmetric and its eigenvalues are
    kept between 0 and $\tau^2$. Exact for Gaussian priors and linear Gaussian data.

    Drifts of moves leave out how $C$ changes with $u$, which would be a third derivative of the network;
    densities, and with them weights and accept steps, are exact.

    References:
        Boys et al. (2024), Tweedie Moment Projected Diffusions for Inverse Problems, TMLR.
    """

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        log_density, score = energy.log_density_and_score(u, t)
        return log_density, u + added_variance(energy, t) * score

    def evaluations(self, energy: AbstractDenoiser) -> int:
        """The denoised mean, and its derivative along every coordinate."""
        return 1 + math.prod(energy.shape)

    def covariance_root(self, energy: AbstractDenoiser, u: Array, t: Scalar) -> Array:
        flat = jax.lax.stop_gradient(u.ravel())
        mean = lambda v: denoised_mean(energy, v.reshape(u.shape), t).ravel()
        jacobian = jax.lax.stop_gradient(jax.jacfwd(mean)(flat))
        jacobian = jnp.nan_to_num(0.5 * (jacobian + jacobian.T), posinf=0.0, neginf=0.0)
        values, vectors = jnp.linalg.eigh(jacobian)
        root = root_of(jnp.clip(values, 0.0, 1.0) * added_variance(energy, t).astype(u.dtype))
        return jax.lax.stop_gradient((vectors * root) @ vectors.T)
