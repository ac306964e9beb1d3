"""Tweedie's denoised mean: the default twist."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance

__all__ = ["Tweedie"]


class Tweedie(AbstractTwist):
    r"""The rest of the model sees the mean of the prior's variable given the noised one.

    $\hat x = \mathbb{E}[u_{t_{\min}} \mid u_t] = u_t + (s_t^2 - s_{t_{\min}}^2)\,
    \nabla_u \log p_t(u_t)$ with noise levels $s = \sigma / \alpha$.

    Proof: $u_t = u_{t_{\min}} + \mathcal{N}(0, (s_t^2 - s_{t_{\min}}^2) I)$ with independent noise,
    so this is Tweedie's formula with that variance; at `t_min` it is 0 and $\hat x = u$.

    The gradient of a likelihood of $\hat x$ needs $\partial \hat x / \partial u$, a second derivative of
    the network. With `reuse_score` that factor is replaced by its value for a Gaussian of the prior's
    variance, so that a gradient costs no more than the score, which is at hand. Densities, and with them
    weights and accept steps, stay exact; only the drift of a move (MALA, HMC) or the centre of a proposal is
    approximate, and both are corrected. Not for optimisation or variational inference.

    Attributes:
        reuse_score: Whether drifts leave the second derivative out.

    References:
        Efron (2011), Tweedie's Formula and Selection Bias, JASA.
        Chung et al. (2023), Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR.
    """

    reuse_score: bool = eqx.field(static=True, default=False)

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        both = _first_order if self.reuse_score else _exact
        log_density, score = both(energy, u, t)
        return log_density, u + added_variance(energy, t) * score


def _exact(energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
    return energy.log_density_and_score(u, t)


@eqx.filter_custom_jvp
def _first_order(energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
    return energy.log_density_and_score(u, t)


@_first_order.def_jvp
def _first_order_jvp(primals, tangents):
    energy, u, t = primals
    along_energy, along_u, along_t = tangents
    rest = lambda energy, t: energy.log_density_and_score(u, t)
    if any(leaf is not None for leaf in jax.tree.leaves((along_energy, along_t))):
        both, (value, slope) = eqx.filter_jvp(rest, (energy, t), (along_energy, along_t))
    else:
        both = rest(energy, t)
        value, slope = jnp.zeros_like(both[0]), jnp.zeros_like(both[1])
    if along_u is not None:
        alpha_t, _ = energy.schedule(t)
        _, variance = energy.moments(t)
        # The second derivative of a Gaussian with the prior's variance at this level.
        value = value + jnp.sum(both[1] * along_u)
        slope = slope - alpha_t**2 / variance * along_u
    return both, (value, slope)
