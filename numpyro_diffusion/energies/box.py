r"""The uniform distribution on a box, noised in closed form: flat priors of simulators.

A coordinate that is uniform on $(a, b)$ has at level $t$ the density
$[\Phi(\tfrac{x - \alpha a}{\sigma}) - \Phi(\tfrac{x - \alpha b}{\sigma})] / (\alpha (b - a))$. The
difference is taken in logarithms and in the tail where it keeps its digits, so that the walls are walls in
32 bits too: steep, finite, and with a gradient that points inside.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .checks import horizon_of, refuse_traced
from .energy import AbstractEnergy

__all__ = ["Box", "log_normal_interval"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# (-1)^n (2n - 1)!!: the asymptotic series of the Mills ratio, highest order first for `polyval`.
_SERIES = np.cumprod([1.0] + [-(2.0 * n - 1) for n in range(1, 11)])[::-1]
_FAR = 12.0  # sigmas from which the series holds to the last digit


def _log_tail(z: Array) -> Array:
    r"""$\log \Phi(-z) + \tfrac12 \max(z, 0)^2$: what is left of a tail without its parabola."""
    near, far = jnp.minimum(z, _FAR), jnp.maximum(z, _FAR)
    direct = log_ndtr(-near) + 0.5 * jnp.maximum(near, 0.0) ** 2
    series = jnp.polyval(jnp.asarray(_SERIES, z.dtype), 1 / far**2)
    return jnp.where(
        z < _FAR, direct, jnp.log(series / (far * jnp.sqrt(2 * jnp.pi)).astype(z.dtype))
    )


def log_normal_interval(distance: Array, half_width: Array) -> Array:
    r"""$\log \int_{|m| - h}^{|m| + h} \mathcal{N}(z; 0, 1)\, dz$, elementwise, to rounding.

    Far in the tail both ends are logarithms of tails, with the parabola that they share taken out. An
    interval much narrower than a sigma is integrated over eight nodes instead, since its ends would cancel.

    Args:
        distance: $m$, the middle of the interval, in standard deviations.
        half_width: $h$, positive, of the same shape.
    """
    m = jnp.abs(distance)
    narrow = 2 * half_width * (1 + m) < 1
    # Each branch sees values that are harmless to it, or its derivative would spoil the other's.
    h = jnp.where(narrow, half_width, 0.5 / (1 + m))
    z = jnp.multiply.outer(jnp.asarray(_NODES, m.dtype), h)
    inside = jnp.log(_weighted(jnp.exp(-z * m - 0.5 * z**2)) * h)
    middle = inside - 0.5 * m**2 - 0.5 * jnp.log(2 * jnp.pi).astype(m.dtype)

    h = jnp.where(narrow, 0.5 / (1 + m), half_width)
    near, width = m - h, 2 * h
    squares = jnp.where(near > 0, width * m, 0.5 * (near + width) ** 2)
    gap = _log_tail(near) - _log_tail(near + width) + squares
    ends = _log_tail(near) - 0.5 * jnp.maximum(near, 0.0) ** 2 + jnp.log(-jnp.expm1(-gap))
    return jnp.where(narrow, middle, ends)


def _weighted(values: Array) -> Array:
    return jnp.tensordot(jnp.asarray(_WEIGHTS, values.dtype), values, axes=1)


class Box(AbstractEnergy):
    r"""Uniform distribution on a box, noised exactly.

    $E(x, t) = -\sum_i \log \frac{\Phi(z_i^a) - \Phi(z_i^b)}{\alpha_t (b_i - a_i)}$ with
    $z_i^a = (x_i - \alpha_t a_i) / \sigma_t$. Normalised at every level, so `log_normalizer` is 0. At `t_min`
    the walls are as soft as the noise there; for walls a hundred times sharper give a `t_min` with log-SNR
    beyond 20: `t_min=float(schedule.time(20.0))`. Draws are exact.

    Args:
        low: Lower corner, of the shape of an example.
        high: Upper corner, of the same shape.
        schedule: Noise schedule.
        t_min: Time at which the prior is read. The default adds noise of 0.4 % of one unit.
        t_max: Time at which sampling starts. The default adds noise of 100 units.

    Raises:
        ValueError: If the corners have different shapes, are not finite, or are not ordered.

    Example:
        >>> import numpyro_diffusion as nd
        >>> nd.DiffusionPrior(nd.energies.Box([-1.0, 0.0], [1.0, 3.0])).event_shape
        (2,)
    """

    low: Array
    high: Array
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=0.0)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)
    normalized = True

    def __init__(
        self,
        low=(-1.0, 0.0),
        high=(1.0, 3.0),
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        refuse_traced(low=low, high=high)
        low, high = np.asarray(low, float), np.asarray(high, float)
        if low.shape != high.shape:
            raise ValueError(
                "`low` and `high` must have the shape of one example; got "
                f"{low.shape} and {high.shape}. Use `np.full` for sides that are "
                f"alike. {_faq.shapes}"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(
                f"a box has finite corners with low < high; got {low} and {high}. Swap them, or use "
                f"`Gaussian` for a coordinate without bounds. {_faq.numbers}"
            )
        self.low, self.high = jnp.asarray(low), jnp.asarray(high)
        self.schedule = VariancePreserving() if schedule is None else schedule
        self.t_min, self.t_max = horizon_of(self.schedule, t_min, t_max)
        self.log_normalizer, self.log_normalizer_error = 0.0, 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape

    def energy(self, x: Array, t: Scalar) -> Scalar:
        alpha_t, sigma_t = self.schedule(t)
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        share = log_normal_interval((x - alpha_t * middle) / sigma_t, alpha_t * half / sigma_t)
        return jnp.sum(jnp.log(2 * alpha_t * half) - share)

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        alpha_t, sigma_t = self.schedule(t)
        variance = (self.high - self.low) ** 2 / 12
        return alpha_t * 0.5 * (self.low + self.high), alpha_t**2 * variance + sigma_t**2

    def draw(self, key: PRNGKey, t: Scalar) -> Array:
        key_place, key_noise = jax.random.split(key)
        alpha_t, sigma_t = self.schedule(t)
        place = jax.random.uniform(key_place, self.shape, self.low.dtype)
        noise = jax.random.normal(key_noise, self.shape, self.low.dtype)
        return alpha_t * (self.low + (self.high - self.low) * place) + sigma_t * noise
