r"""Other parametrisations of a network energy: squared norm, autoencoder, scalar head.

They share the preconditioning of `AbstractNetworkEnergy` and differ in how the output of the backbone
becomes a number. `InnerProductEnergy` and `ProperEnergy` are what to use by default; these are for
comparison, and for backbones that come from elsewhere.
"""

import jax.numpy as jnp

from .preconditioned import AbstractNetworkEnergy

__all__ = ["AutoencoderEnergy", "ScalarEnergy", "SquaredEnergy"]


class SquaredEnergy(AbstractNetworkEnergy):
    r"""Half the squared norm of a network, $\tfrac12 \sum_i (w_i - \kappa_i F_i)^2$.

    The Gaussian of the data where $F = 0$, never negative, and a proper distribution where $F$ grows more
    slowly than $|w|$. A region of high density must be a near-zero of the whole vector, so far modes of
    unequal weight are hard for it. Arguments are those of `AbstractNetworkEnergy`.

    References:
        Salimans & Ho (2021), Should EBMs Model the Energy or the Score?, ICLR workshop. Du et al. (2023),
        Reduce, Reuse, Recycle, ICML.
    """

    def form(self, w, f, kappa):
        return 0.5 * jnp.sum((w - kappa * f) ** 2)


class AutoencoderEnergy(AbstractNetworkEnergy):
    r"""Distance of a point from its reconstruction, $\lVert v - D(v) \rVert^2 / 2 s^2$.

    $D(v) = c_{skip} v + c_{out} F$ with Karras's coefficients, so that the backbone of a pretrained denoiser
    can be used as it is. The denoiser that the energy implies is another one: its score has the factor
    $(I - J_D)^\top$. Even for a Gaussian distribution $D$ is not its denoiser, and where $F = 0$ the energy
    is *not* that of the Gaussian of the data but $s^2 / (s^2 + d^2)$ times as steep. Train or distil it
    before use. Arguments are those of `AbstractNetworkEnergy`.

    References:
        Du et al. (2023), Reduce, Reuse, Recycle, ICML.
    """

    def form(self, w, f, kappa):
        return 0.5 * jnp.sum((w - kappa * f) ** 2 / (1 + kappa**2))


class ScalarEnergy(AbstractNetworkEnergy):
    r"""A scalar head: $\tfrac12 |w|^2 - \sum_i \kappa_i F_i(w)$.

    The sum over the output of the backbone is its head; nothing ties it to $w$, so no denoiser's weights can
    be taken over. The Gaussian of the data where $F = 0$; not bounded below unless $F$ is. Arguments are
    those of `AbstractNetworkEnergy`.
    """

    def form(self, w, f, kappa):
        return 0.5 * jnp.sum(w**2) - jnp.sum(kappa * f)
