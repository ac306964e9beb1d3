r"""Network energies: inner product, and the same with its square completed, which is proper.

`InnerProductEnergy` is the one of the literature. `ProperEnergy` is a proper distribution whatever the
weights: prefer it where $e^{-E}$ is to be sampled.
"""

import jax.numpy as jnp

from .preconditioned import AbstractNetworkEnergy

__all__ = ["InnerProductEnergy", "ProperEnergy"]


class InnerProductEnergy(AbstractNetworkEnergy):
    r"""Preconditioned inner-product energy: $\tfrac12 |w|^2 - \sum_i \kappa_i w_i F_i$.

    Its denoiser is the EDM form $c_{skip} v + c_{out} (F + J_F^\top w)$ where all $d_i$ agree, with
    $c_{skip} = d^2/(s^2 + d^2)$ and $c_{out} = s d / \sqrt{s^2 + d^2}$. Written with $\kappa = d/s$ no two
    large numbers cancel, at low noise in float32 either.

    Nothing bounds it from below: a network that grows as fast as $|w|$ makes $e^{-E}$ impossible to
    normalise, and a long chain finds where. See `ProperEnergy`. Arguments are those of
    `AbstractNetworkEnergy`.

    References:
        Thornton et al. (2025), Composition and Control with Distilled Energy Diffusion Models and
        Sequential Monte Carlo. Karras et al. (2022), Elucidating the Design Space of Diffusion-Based
        Generative Models, Table 1.
    """

    def form(self, w, f, kappa):
        return 0.5 * jnp.sum(w**2) - jnp.sum(kappa * w * f)


class ProperEnergy(AbstractNetworkEnergy):
    r"""Inner-product energy with its square completed, a proper distribution whatever the weights.

    $\tfrac12 \rho |w|^2 + \tfrac12 |\sqrt{1-\rho}\,w - \kappa F|^2$ with $\rho = \tfrac12$; multiplied out,
    $\tfrac12 |w|^2 - \sqrt{1-\rho}\sum_i \kappa_i w_i F_i + \tfrac12 \sum_i (\kappa_i F_i)^2$: the inner
    product plus a price on large corrections. It is never below $\tfrac12\rho |w|^2$, so $e^{-E}$ has a
    finite integral and Gaussian tails at every level, and a chain that leaves the data comes back.
    Arguments are those of `AbstractNetworkEnergy`.
    """

    def form(self, w, f, kappa):
        # rho = 1/2: tails at most sqrt(2) wider than those of the Gaussian of the data.
        return 0.25 * jnp.sum(w**2) + 0.5 * jnp.sum((0.5**0.5 * w - kappa * f) ** 2)
