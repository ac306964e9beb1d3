r"""Denoising diffusion restoration models (DDRM)."""

import jax.numpy as jnp

from .. import _faq
from .restoration import AbstractRestoration, Draw

__all__ = ["DDRM"]


class DDRM(AbstractRestoration):
    r"""Denoising diffusion restoration: coordinates that are seen are drawn from their data.

    With $\hat x = u_t + s_t^2 \nabla \log p_t(u_t)$ the denoised mean, each along a singular vector $i$ (see
    `AbstractRestoration`), $u_s$ is Gaussian with

    * mean $\hat x_i + \sqrt{1 - \eta^2}\, (s_s / s_t)\, (u_{t,i} - \hat x_i)$ and variance $\eta^2 s_s^2$
      where nothing is seen;
    * mean $\hat x_i + \sqrt{1 - \eta^2}\, (s_s / \varsigma_i)\, (\bar y_i - \hat x_i)$ and variance
      $\eta^2 s_s^2$ where $s_s < \varsigma_i$, that is where the datum has more noise than the level;
    * mean $(1 - \eta_b)\, \hat x_i + \eta_b\, \bar y_i$ and variance $s_s^2 - \eta_b^2 \varsigma_i^2$
      elsewhere.

    As published it is biased even where nothing is seen: of a Gaussian it leaves a share $(1 + \sqrt{1 -
    \eta^2}) / 2$ of the variance in many steps, 0.76 at $\eta = 0.85$; where something is seen many steps end
    at the datum. It is meant for some 20.

    Attributes:
        eta: $\eta$. `None`: 0.85 as published; with weights that of the sampler's own steps, $\eta^2 = 1 -
            s_s^2 / s_t^2$.
        eta_b: $\eta_b$.

    With weights the noise is that of the sampler's own steps, and nowhere less, since narrower draws would
    have weights without a variance. A draw forgets the level before wherever the datum has less noise, so
    that every level costs weight: take few, such as `Twisted(levels=10, covariance=Full())`.
    `Twisted(conjugate=True)` has draws of the same kind that do not forget.

    References:
        Kawar, Elad, Ermon & Song (2022), Denoising Diffusion Restoration Models, NeurIPS, arXiv 2201.11793.
    """

    eta: float | None = None
    eta_b: float = 1.0

    def __check_init__(self):
        for name in ("eta", "eta_b"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(
                    f"`{name}` of `DDRM` is a number above 0 and at most 1; got {value}. Published are 0.85"
                    f" and 1. {_faq.numbers}"
                )

    def draw(self, at, published):
        eta2 = at.share if self.eta is None else jnp.asarray(self.eta) ** 2
        if published and self.eta is None:
            eta2 = jnp.asarray(0.85) ** 2
        kept = jnp.sqrt(1 - eta2) * at.clean
        deviation = jnp.where(at.seen, at.deviation, 1.0)
        toward = jnp.where(at.seen, (at.datum - at.x_hat) / deviation, (at.u - at.x_hat) / at.noisy)
        mean, variance = at.x_hat + kept * toward, eta2 * at.clean**2
        sharp = at.seen & (at.clean >= deviation)
        redrawn = at.clean**2 - (self.eta_b * deviation) ** 2
        if not published:
            redrawn = jnp.maximum(redrawn, at.own)
        mean = jnp.where(sharp, at.x_hat + self.eta_b * (at.datum - at.x_hat), mean)
        return Draw(mean, jnp.where(sharp, redrawn, variance), ~sharp & (not published))
