r"""Noise levels from the minimax rate of density estimation: where to stop, and how far to noise.

*A rule from a theorem, and no implementation of it.* For densities of smoothness $s$ in $d$ dimensions a
diffusion model with the right networks, stopped early and started after a time of order $\log n$, is as good
an estimator as any: the total variation to the truth is of order $n^{-s/(2s+d)}$ up to logarithms.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._records import record, record_page
from ..schedules import AbstractSchedule, VariancePreserving

__all__ = ["RateTimes", "rate_optimal_times"]


class RateTimes(NamedTuple):
    r"""Result of `rate_optimal_times`.

    Attributes:
        t_min: Time at which the prior is read, for `with_horizon(t_min=...)`.
        t_max: Time from which it is sampled, for `with_horizon(t_max=...)`.
        noise_min: Noise level $\sigma/\alpha$ at `t_min`, in units of the data, and `noise_min` of a network
            energy's `from_data`.
        noise_max: That at `t_max`.
        rate: $n^{-s/(2s+d)}$, the order of the total variation; its constant is not known.
    """

    t_min: float
    t_max: float
    noise_min: float
    noise_max: float
    rate: float

    __repr__ = record
    _repr_html_ = record_page


def rate_optimal_times(
    num: int,
    dimension: int,
    smoothness: float = 2.0,
    *,
    scale: float = 1.0,
    schedule: AbstractSchedule = VariancePreserving(),  # noqa: B008 - it never changes
) -> RateTimes:
    r"""First and last time of a diffusion fitted to $n$ examples, as the minimax rate asks for them.

    $$\frac{\sigma}{\alpha}\Big|_{t_{\min}} = c\, n^{-1/(2 \min(s, 2) + d)}, \qquad
      \frac{\sigma}{\alpha}\Big|_{t_{\max}} = c\, \sqrt{n^{2s/(2s + d)} - 1} .$$

    *Stop.* With the *empirical* score the reverse process stopped at $t$ is a Gaussian kernel density
    estimate with bandwidth $\sigma_t/\alpha_t$, exactly: this is the bandwidth that balances bias and
    variance. The kernel gains nothing from smoothness above 2. A network is smooth by itself and may be
    read at less noise: with the right networks the theorem allows any negative power of $n$. Take the rule
    as the level at which memorised examples would do no harm.

    *Start.* In the theorem, $\bar T = s \log n / (2s + d)$ on the clock on which $\alpha = e^{-t}$: the
    signal left, $\alpha = n^{-s/(2s+d)}$ for data of unit scale, and with it the error of starting from
    noise, is of the order of the rate. A weighted sampler is right from any start.

    Both are orders of magnitude; constants are conventions.

    Args:
        num: $n$, the examples.
        dimension: $d$, that of the data, or of the linear subspace that they fill.
        smoothness: $s > 0$, in derivatives.
        scale: $c$, in units of the data: their standard deviation.
        schedule: The noise schedule that the times are of; `energy.schedule`.

    Raises:
        ValueError: If a number is out of range, or the schedule does not reach the levels in this order.

    Example:
        >>> import numpyro_diffusion as nd
        >>> times = nd.density.rate_optimal_times(100_000, 1)
        >>> round(times.noise_min, 4), round(times.rate, 4)
        (0.1, 0.01)

    References:
        Oko, Akiyama & Suzuki (2023), Diffusion models are minimax optimal distribution estimators, ICML,
        arXiv 2303.01861. Silverman (1986), Density estimation, for the bandwidth.
    """
    num, dimension = whole_number("num", num, 2), whole_number("dimension", dimension, 1)
    for name, value in {"smoothness": smoothness, "scale": scale}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be positive and finite; got {value}. {_faq.numbers}")
    low = scale * num ** (-1 / (2 * min(smoothness, 2.0) + dimension))
    rate = num ** (-smoothness / (2 * smoothness + dimension))
    high = scale * math.sqrt(rate**-2 - 1)
    with jax.ensure_compile_time_eval():
        ends = [float(schedule.time(jnp.asarray(-2 * math.log(s)))) for s in (low, high)]
    t_min, t_max = (min(max(t, 0.0), 1.0) for t in ends)
    if not t_min < t_max:
        raise ValueError(
            f"expected to stop at less noise than to start from; got noise levels {low:.3g} and {high:.3g}, "
            f"times {t_min:.3g} and {t_max:.3g} of `{type(schedule).__name__}`. With so few examples for the "
            f"dimension the rate says nothing. {_faq.schedules}"
        )
    with jax.ensure_compile_time_eval():
        levels = [float(schedule.noise_level(jnp.asarray(t))) for t in (t_min, t_max)]
    return RateTimes(t_min, t_max, levels[0], levels[1], rate)
