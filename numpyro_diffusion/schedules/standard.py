r"""Noise schedules: how much signal and how much noise a level holds.

A schedule maps a time $t \in [0, 1]$ to a pair $(\alpha_t, \sigma_t)$ such that
$x_t = \alpha_t x_0 + \sigma_t \epsilon$ with $\epsilon \sim \mathcal{N}(0, I)$. Time 0 is data and
time 1 is noise; sampling runs from 1 to 0, so of two neighbouring times $s < t$ always. Everything
else (log-SNR, noise level in data units, reverse moments) follows from the pair. The times
themselves carry no meaning: two schedules that meet at the same log-SNR hold the same information.
"""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, Scalar
from .._written import one_line

__all__ = [
    "AbstractSchedule",
    "Cosine",
    "RectifiedFlow",
    "ReverseMoments",
    "VarianceExploding",
    "VariancePreserving",
    "log_snr_grid",
    "reverse_moments",
]


class ReverseMoments(NamedTuple):
    r"""Coefficients of $q(x_s \mid x_t, x_0) = \mathcal{N}(a\,x_t + b\,x_0,\ v I)$ for $s < t$."""

    noised: Scalar
    data: Scalar
    variance: Scalar


class AbstractSchedule(eqx.Module):
    r"""A map $t \mapsto (\alpha_t, \sigma_t)$ whose log-SNR falls strictly with $t$."""

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, t: Scalar) -> tuple[Scalar, Scalar]:
        r"""Signal and noise coefficients $(\alpha_t, \sigma_t)$, both of shape `()`."""

    @abc.abstractmethod
    def time(self, log_snr: Scalar) -> Scalar:
        r"""Inverse of `log_snr`: the time at which $\log(\alpha_t^2/\sigma_t^2)$ has this value."""

    def time_at_noise(self, s: Scalar | float) -> Scalar:
        r"""Inverse of `noise_level`: the time at which $\sigma_t / \alpha_t$ is $s$."""
        return self.time(-2 * jnp.log(s))

    def log_snr(self, t: Scalar) -> Scalar:
        r"""$\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$, in nats; falls from data to noise."""
        alpha_t, sigma_t = self(t)
        return 2 * (jnp.log(alpha_t) - jnp.log(sigma_t))

    def noise_level(self, t: Scalar) -> Scalar:
        r"""$\sigma_t / \alpha_t$: the standard deviation of the noise in the units of the data."""
        alpha_t, sigma_t = self(t)
        return sigma_t / alpha_t

    def horizon(self, log_snr_min: float = -9.2, log_snr_max: float = 11.0) -> tuple[float, float]:
        """Times `(t_min, t_max)` in [0, 1] whose log-SNR stays inside the two bounds.

        The defaults run from noise of 0.4 % of a unit to noise of 100 units.
        """
        with jax.ensure_compile_time_eval():
            ends = jnp.asarray([log_snr_max, log_snr_min])
            t_min, t_max = np.asarray(_times(self, ends))
            return max(float(t_min), 0.0), min(float(t_max), 1.0)


@eqx.filter_jit
def _times(schedule: AbstractSchedule, log_snrs: Array) -> Array:
    return jax.vmap(schedule.time)(log_snrs)


class VariancePreserving(AbstractSchedule):
    r"""Linear-beta diffusion: $\alpha_t^2 = e^{-B(t)}$, $\sigma_t^2 = 1 - e^{-B(t)}$.

    $B(t) = \beta_{\min} t + \tfrac12 (\beta_{\max} - \beta_{\min}) t^2$.

    Attributes:
        beta_min: Rate of noising at $t = 0$, positive.
        beta_max: Rate of noising at $t = 1$, at least `beta_min`.

    Raises:
        ValueError: If the rates are not $0 < \beta_{\min} \le \beta_{\max}$.

    References:
        Song et al. (2021), Score-Based Generative Modeling through SDEs, ICLR.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __check_init__(self):
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                "`VariancePreserving` expects 0 < beta_min <= beta_max; got "
                f"beta_min={self.beta_min}, beta_max={self.beta_max}. Swap or raise "
                f"them. {_faq.schedules}"
            )

    def __call__(self, t):
        b = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2
        return jnp.exp(-0.5 * b), jnp.sqrt(-jnp.expm1(-b))

    def time(self, log_snr):
        # B = softplus(-lambda); the root of the quadratic in the form that survives slope -> 0.
        b = jax.nn.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * b))


class VarianceExploding(AbstractSchedule):
    r"""Noise is added, nothing shrinks: $\alpha_t = 1$, $\sigma_t = \sigma_{\min}^{1-t} \sigma_{\max}^t$.

    Attributes:
        sigma_min: Noise level at $t = 0$, in units of the data.
        sigma_max: Noise level at $t = 1$; well above the spread of the data.

    Raises:
        ValueError: If not $0 < \sigma_{\min} < \sigma_{\max}$.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __check_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "`VarianceExploding` expects 0 < sigma_min < sigma_max; got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}. Swap or raise "
                f"them. {_faq.schedules}"
            )

    def __call__(self, t):
        ratio = math.log(self.sigma_max / self.sigma_min)
        sigma_t = self.sigma_min * jnp.exp(ratio * t)
        return jnp.ones_like(sigma_t), sigma_t

    def time(self, log_snr):
        ratio = math.log(self.sigma_max / self.sigma_min)
        return (-0.5 * log_snr - math.log(self.sigma_min)) / ratio


class Cosine(AbstractSchedule):
    r"""$\alpha_t = \cos(\pi t / 2)$, $\sigma_t = \sin(\pi t / 2)$.

    The signal vanishes at $t = 1$, so levels stop a little before it (see `log_snr_grid`).

    References:
        Nichol & Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, ICML.
    """

    def __call__(self, t):
        angle = 0.5 * jnp.pi * jnp.asarray(t)
        return jnp.cos(angle), jnp.sin(angle)

    def time(self, log_snr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * log_snr))


class RectifiedFlow(AbstractSchedule):
    r"""Straight lines between data and noise: $\alpha_t = 1 - t$, $\sigma_t = t$.

    References:
        Liu, Gong & Liu (2023), Flow Straight and Fast, ICLR.
    """

    def __call__(self, t):
        t = jnp.asarray(t)
        return 1 - t, t

    def time(self, log_snr):
        return jax.nn.sigmoid(-0.5 * log_snr)


def log_snr_grid(schedule: AbstractSchedule, num_levels: int, t_min: float, t_max: float) -> Array:
    """Times from `t_max` down to `t_min`, equally spaced in log-SNR.

    Args:
        schedule: The noise schedule.
        num_levels: Number of steps; the grid has one more point.
        t_min: Last time, nearest the data.
        t_max: First time, nearest the noise.

    Returns:
        Falling times of shape `(num_levels + 1,)`; both ends are exact.

    Raises:
        ValueError: If `num_levels < 1` or the times are not $0 \\le t_{min} < t_{max} \\le 1$.
    """
    num_levels = whole_number("num_levels", num_levels, 1)
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(
            f"levels run from t_max down to t_min with 0 <= t_min < t_max <= 1; got t_min={t_min}, "
            f"t_max={t_max}. Did you pass them in data-to-noise order? {_faq.schedules}"
        )
    ends = jnp.stack([schedule.log_snr(jnp.asarray(t)) for t in (t_max, t_min)])
    if not bool(jnp.all(jnp.isfinite(ends))):
        raise ValueError(
            f"log-SNR must be finite at both ends; got {ends} at t = {t_max}, {t_min}. "
            f"Move the ends inside (0, 1). {_faq.schedules}"
        )
    inner = jax.vmap(schedule.time)(jnp.linspace(ends[0], ends[1], num_levels + 1))
    return inner.at[0].set(t_max).at[-1].set(t_min)


def reverse_moments(schedule: AbstractSchedule, t: Scalar, s: Scalar) -> ReverseMoments:
    r"""Moments of the exact reverse kernel $q(x_s \mid x_t, x_0)$ for $s < t$.

    With $r = 1 - e^{\lambda_t - \lambda_s}$: mean
    $\frac{\alpha_s}{\alpha_t} (1 - r)\, x_t + \alpha_s r\, x_0$ and variance $\sigma_s^2 r$. The form
    in log-SNR keeps its digits when $s$ and $t$ are close.

    Args:
        schedule: The noise schedule.
        t: Time of the noisier point, shape `()`.
        s: Time of the cleaner point, shape `()`.
    """
    alpha_t, _ = schedule(t)
    alpha_s, sigma_s = schedule(s)
    r = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))
    return ReverseMoments(alpha_s / alpha_t * (1 - r), alpha_s * r, sigma_s**2 * r)
