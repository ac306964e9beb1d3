r"""Denoising diffusion models for plug-and-play image restoration (DiffPIR)."""

import jax.numpy as jnp

from .. import _faq
from .restoration import AbstractRestoration, Draw

__all__ = ["DiffPIR"]


class DiffPIR(AbstractRestoration):
    r"""Plug-and-play restoration: a proximal step of the data from the denoised mean, and noise again.

    $$\hat x' = \arg\min_x\ |\Sigma_y^{-1/2} (y - H x)|^2 + \lambda |x - \hat x|^2 / s_t^2, \qquad
    u_s \sim \mathcal{N}\big(\hat x' + \sqrt{1 - \zeta}\, (s_s / s_t)\, (u_t - \hat x'),\ \zeta s_s^2
    I\big).$$

    Attributes:
        strength: $\lambda$: at 1 the clean variable is taken to lie within $s_t$ of the denoised mean.
        zeta: $\zeta$, the share of fresh noise. `None`: 1 as published for inpainting; with weights $1 -
            s_s^2 / s_t^2$, that of the sampler's own steps. With weights it is part of the mean alone: noise
            is that of the sampler, since narrower draws would have weights without a variance.

    References:
        Zhu, Zhang, Liang, Cao, Wen, Timofte & Van Gool (2023), Denoising Diffusion Models for Plug-and-Play
        Image Restoration, CVPR workshops, arXiv 2305.08995.
    """

    strength: float = 1.0
    zeta: float | None = None

    def __check_init__(self):
        if not self.strength > 0:
            raise ValueError(
                f"`strength` of `DiffPIR` must be positive; got {self.strength}. Try "
                f"1. {_faq.numbers}"
            )
        if self.zeta is not None and not 0 < self.zeta <= 1:
            raise ValueError(
                f"`zeta` of `DiffPIR` is a share above 0 and at most 1, or `None`; got "
                f"{self.zeta}. Published are"
                f" 0.1 to 1. {_faq.numbers}"
            )

    def draw(self, at, published):
        zeta = at.share if self.zeta is None else jnp.asarray(self.zeta)
        if published and self.zeta is None:
            zeta = jnp.ones(())
        gain = at.noisy**2 / (at.noisy**2 + self.strength * at.deviation**2)
        proximal = at.x_hat + gain * (at.datum - at.x_hat)
        kept = jnp.sqrt(1 - zeta) * at.clean / at.noisy
        variance = jnp.broadcast_to(zeta * at.clean**2, at.u.shape)
        mean = proximal + kept * (at.u - proximal)
        return Draw(mean, variance, jnp.full_like(at.seen, not published))
