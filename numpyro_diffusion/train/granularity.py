r"""Multi-granularity targets of a series: coarse versions of it guide the noisy levels (MG-TSD).

A forecast of months that must also be right about years can be told so. The coarse series $x^g$ are means
over blocks, repeated to the length of the series. Noise drowns the fine structure first, so the noisy
levels are where a coarse series can stand in for the fine one: its process starts late, at the noise level
$s_g$, from the coarse series itself, and runs along the fine one's to the same end,

$$x^g_t = a\, x^g + \sqrt{\sigma_t^2 - a^2 \sigma_{t_g}^2}\; \epsilon, \qquad a = \alpha_t / \alpha_{t_g},$$

and one network tells the noise of all, at the time of the fine one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from .levels import Levels, Weight, karras_weight, uniform_log_snr
from .losses import given_each

__all__ = ["MultiGranularity", "block_means"]


def block_means(x: Array, block: int) -> Array:
    """Means over blocks of the first axis of a series, repeated to its length; the last block may be short.

    Args:
        x: A series of shape `(length, ...)`.
        block: Steps in a block, at least 1.

    Returns:
        The coarse series, of the shape of `x`.
    """
    block = whole_number("block", block, 1)
    of_step = np.arange(len(x)) // block
    mean = (of_step[:, None] == of_step) / np.bincount(of_step)[of_step][:, None]
    return jnp.tensordot(jnp.asarray(mean, x.dtype), x, 1)


class MultiGranularity(eqx.Module):
    r"""$\sum_g \omega_g\, 1\{s_t \ge s_g\}\, \lambda(s_t)\, \lVert \hat x_0(x^g_t) - x^{g}_{0,t} \rVert^2$ a
    dimension: a loss for `fit(loss=)`.

    With $x^g_{0,t} = (x^g_t - \sigma_t \epsilon) / \alpha_t$, which is the series itself for $g = 1$, and
    $\lambda = 1 / s_t^2$, a term is the squared error of the noise, as published. Below $s_g$ a
    granularity has no part: its series would be seen without noise, and the noise that is asked for could
    not be told from it. Published code lacks this mask, and its network learns there to say too little
    noise: `masked=False`.

    A heuristic: above the least $s_g > 0$ the optimum is no score of the noised data but one drawn to
    their coarse means, which is a bias that few data can be worth. Below it the optimum is the score, so the
    distribution of an *energy* read at `t_min` is that of the data,
    and samplers that weigh with it are exact for it.

    Attributes:
        blocks: Steps in a block of each granularity, the first axis of an example being time. The first is 1,
            the series itself.
        starts: $s_g$, noise levels in units of the data, one a granularity. The first is 0.
        weights: $\omega_g > 0$.
        data_scale: $d$ of `karras_weight`, the standard deviation of the data.
        levels: Draws the times, `levels(key, denoiser, num)`.
        weight: $\lambda(s)$: `karras_weight` or `likelihood_weight`, the latter as published.
        masked: Whether a granularity has no part below its start.

    Raises:
        ValueError: If the three tuples differ in length, or hold what makes no sense.

    References:
        Fan, Wu, Xu, Huang, Liu & Bian (2024), MG-TSD: multi-granularity time series diffusion models with
        guided learning process, ICLR, arXiv 2403.05751.
    """

    blocks: tuple[int, ...] = eqx.field(static=True, default=(1, 4))
    starts: tuple[float, ...] = eqx.field(static=True, default=(0.0, 1.0))
    weights: tuple[float, ...] = eqx.field(static=True, default=(0.9, 0.1))
    data_scale: float = 1.0
    levels: Levels = eqx.field(static=True, default=uniform_log_snr)
    weight: Weight = eqx.field(static=True, default=karras_weight)
    masked: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        parts = self.blocks, self.starts, self.weights
        alike = len({len(part) for part in parts}) == 1
        if not alike or self.blocks[:1] != (1,) or self.starts[:1] != (0,):
            raise ValueError(
                "`MultiGranularity` expects one block, start and weight a granularity, the first of them the "
                f"series itself with block 1 from noise level 0; got blocks={self.blocks}, "
                f"starts={self.starts}, weights={self.weights}. Try (1, 4), (0.0, 1.0), (0.9, "
                f"0.1). {_faq.numbers}"
            )
        for block in self.blocks:
            whole_number("blocks", block, 1)
        sizes = np.asarray([self.starts, self.weights], float)
        if not (np.isfinite(sizes).all() and (sizes[0] >= 0).all() and (sizes[1] > 0).all()):
            raise ValueError(
                "`starts` of `MultiGranularity` must be finite and not negative, `weights` finite and "
                f"positive; got {self.starts} and {self.weights}. Leave out a granularity of "
                f"weight 0. {_faq.numbers}"
            )

    def __call__(
        self,
        denoiser: AbstractDenoiser,
        key: PRNGKey,
        data: Array,
        *,
        condition: Array | None = None,
    ) -> Scalar:
        """The loss of examples of shape `(num, length, ...)`; one noise serves all granularities of one."""
        key_level, key_noise = jax.random.split(key)
        times = self.levels(key_level, denoiser, len(data)).astype(data.dtype)
        noise = jax.random.normal(key_noise, data.shape, data.dtype)

        def one(x_0, t, epsilon, c):
            alpha_t, sigma_t = denoiser.schedule(t)
            s = sigma_t / alpha_t
            model, total = given_each(denoiser, c), jnp.zeros((), x_0.dtype)
            for block, start, share in zip(self.blocks, self.starts, self.weights, strict=True):
                a, spread = self.coarse_noise(denoiser, t, start)
                x = a * block_means(x_0, block) + spread * epsilon
                target = (x - sigma_t * epsilon) / alpha_t
                error = jnp.mean((model.denoise(x, t) - target) ** 2)
                takes_part = (s >= start) | (not self.masked)
                total = total + jnp.where(takes_part, share * error, 0.0)
            return self.weight(s, self.data_scale) * total

        return jnp.mean(jax.vmap(one)(data, times, noise, condition))

    @staticmethod
    def coarse_noise(denoiser: AbstractDenoiser, t: Scalar, start: float) -> tuple[Scalar, Scalar]:
        r"""$a$ and the standard deviation of the noise of a process that starts at a noise level.

        That of the data themselves, $(\alpha_t, \sigma_t)$, for a start of 0; at times before the start, the
        coarse series as it is.
        """
        alpha_t, sigma_t = denoiser.schedule(t)
        if start == 0:  # the log of a level of 0 is no number
            return alpha_t, sigma_t
        begin = denoiser.schedule.time(-2 * jnp.log(jnp.asarray(start, alpha_t.dtype)))
        alpha_g, sigma_g = denoiser.schedule(begin)
        a = alpha_t / alpha_g
        variance = (sigma_t - a * sigma_g) * (sigma_t + a * sigma_g)
        return jnp.where(variance > 0, a, 1.0), jnp.sqrt(jnp.maximum(variance, 0.0))
