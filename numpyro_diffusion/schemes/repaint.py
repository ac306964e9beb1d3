r"""RePaint: inpainting by replacement, with resampling loops."""

import equinox as eqx
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .restoration import AbstractRestoration, Draw

__all__ = ["RePaint"]


class RePaint(AbstractRestoration):
    r"""Inpainting by replacement: what is seen is replaced by its datum, noised as much as the level.

    $u_{s,i} \sim \mathcal{N}(\bar y_i, s_s^2)$ where something is seen, and the usual step $\mathcal{N}(u_t
    + a (\hat x - u_t),\ a s_s^2)$, $a = 1 - s_s^2 / s_t^2$, elsewhere. Then noise is added back, $u_t = u_s +
    \mathcal{N}(0, s_t^2 - s_s^2)$, and the level is gone through again, `num_repeats` times in all, so that
    both parts come to fit each other. For a mask the singular vectors are the coordinates, as published; any
    linear operator will do. The data are taken for exact, whatever their noise.

    A heuristic alone, for `schemes.unweighted`. Its draws of what is seen are independent from level to
    level, within $s_s$ of the datum, so that paths on which it is off by its own noise never occur: weights
    would be products of thousands of rare factors with no finite variance, and noise of the data could not
    come back in. The exact version draws data noised alike, with their noise integrated out:
    `Twisted(conjugate=True)` with `twist=twists.NoisedObservation()`.

    Attributes:
        num_repeats: Draws from each level to the next; each costs an evaluation. The loop of one level is the
            published one with a jump length of 1.

    References:
        Lugmayr, Danelljan, Romero, Yu, Timofte & Van Gool (2022), RePaint: Inpainting using Denoising
        Diffusion Probabilistic Models, CVPR, arXiv 2201.09865.
    """

    num_repeats: int = eqx.field(static=True, converter=plain, default=10)
    weighed = False

    def __check_init__(self):
        check_counts(self, "1 is replacement without loops.", num_repeats=1)

    def draw(self, at, published):
        mean = jnp.where(at.seen, at.datum, at.u + at.share * (at.x_hat - at.u))
        variance = jnp.where(at.seen, at.clean**2, at.share * at.clean**2)
        return Draw(mean, variance, jnp.zeros_like(at.seen))
