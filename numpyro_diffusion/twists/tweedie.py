"""The denoised mean as twist: the default."""

from .._typing import Array, Scalar
from ..energies.base import AbstractEnergy
from .base import AbstractTwist, added_variance

__all__ = ["Tweedie"]


class Tweedie(AbstractTwist):
    r"""The rest of the model sees the mean of the prior's variable given the noised one.

    $\hat x = \mathbb{E}[u_{t_{\min}} \mid u_t] = u_t + (s_t^2 - s_{t_{\min}}^2)\,
    \nabla_u \log p_t(u_t)$ with noise levels $s = \sigma / \alpha$.

    Proof: $u_t = u_{t_{\min}} + \mathcal{N}(0, (s_t^2 - s_{t_{\min}}^2) I)$ with independent noise,
    so this is Tweedie's formula with that variance; at `t_min` it is 0 and $\hat x = u$.

    References:
        Efron (2011), Tweedie's Formula and Selection Bias, JASA.
        Chung et al. (2023), Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR.
    """

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        log_density, score = energy.log_density_and_score(u, t)
        return log_density, u + added_variance(energy, t) * score
