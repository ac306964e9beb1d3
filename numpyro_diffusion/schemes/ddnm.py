r"""The denoising diffusion null-space model (DDNM), for noisy data (DDNM+)."""

import jax.numpy as jnp

from .restoration import AbstractRestoration, Draw

__all__ = ["DDNM"]


class DDNM(AbstractRestoration):
    r"""Denoising diffusion null-space model: the denoised mean takes from the data what they see.

    Along a singular vector $i$ (see `AbstractRestoration`) the denoised mean becomes $\hat x_i' = \hat x_i +
    \lambda_i (\bar y_i - \hat x_i)$, with $\lambda_i = 0$ where nothing is seen: for data without noise
    $\hat x' = H^+ y + (I - H^+ H) \hat x$, the null space from the prior and the range from the data. The
    step is the usual one about it, with $a = 1 - s_s^2 / s_t^2$ and $\sigma^2 = a s_s^2$,

    $$u_{s,i} \sim \mathcal{N}\big(u_{t,i} + a (\hat x_i' - u_{t,i}),\ \sigma^2 - a^2 \lambda_i^2
    \varsigma_i^2\big), \qquad \lambda_i = \min\big(1,\ \sigma / (a \varsigma_i)\big),$$

    so that noise of the datum and fresh noise together have the variance $\sigma^2$ (DDNM+; with $\eta$ in
    the place of these steps, as in the authors' program, it is `DDRM(eta_b=1)`).

    Where $\lambda_i < 1$ there is no fresh noise at all, and a draw has no density. With weights the mean is
    the same with $\lambda_i = \min(1, s_s / \varsigma_i)$, which is smaller by $\sqrt a$ and lets the
    weights of many steps converge, and the noise is that of the sampler's own steps.

    References:
        Wang, Yu & Zhang (2023), Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, ICLR,
        arXiv 2212.00490.
    """

    def draw(self, at, published):
        deviation = jnp.where(at.seen, at.deviation, 1.0)
        largest = at.clean / (jnp.sqrt(at.share) if published else 1.0)
        taken = jnp.where(at.seen, jnp.minimum(1.0, largest / deviation), 0.0)
        mean = at.u + at.share * (at.x_hat + taken * (at.datum - at.x_hat) - at.u)
        variance = at.share * at.clean**2 - (at.share * taken * deviation) ** 2
        return Draw(mean, variance, jnp.full_like(at.seen, not published))
