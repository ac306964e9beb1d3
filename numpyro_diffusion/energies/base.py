r"""Base class of denoisers, and so of energies.

A *denoiser* gives the mean of clean data given noised data. An *energy* knows more: a scalar
$E(x_t, t)$, in nats, with $p_t(x_t) = e^{-E(x_t, t) - L(t)}$. Its gradient is minus the score, and
Tweedie's formula turns the score into the denoiser, so an energy is a denoiser whose vector field is
certain to be a gradient. That certainty is what Metropolis steps and weights need.

All methods take ONE example of shape `shape`; `vmap` lives in the callers.
"""

import abc
import copy
import math
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jax.core import Tracer

from .. import _faq
from .._typing import Array, Scalar, Shaped
from .._written import alike, one_line
from ..schedules import AbstractSchedule, VariancePreserving

__all__ = ["AbstractDenoiser", "Power"]

Power = float | Callable[[Scalar], Scalar | float]  # an exponent, or a function of the time


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


class AbstractDenoiser(eqx.Module):
    r"""A noise schedule and a map $(x_t, t) \mapsto \mathbb{E}[x_0 \mid x_t]$.

    Attributes:
        schedule: The noise schedule $(\alpha_t, \sigma_t)$.
        shape: Shape of one example.
        t_min: Smallest time at which the model is trusted. Its distribution at `t_min` *is* the prior.
        t_max: Largest time; the distribution there is close to the Gaussian given by `moments(t_max)`.
    """

    __repr__ = one_line

    schedule: AbstractVar[AbstractSchedule]
    shape: AbstractVar[tuple[int, ...]]
    t_min: AbstractVar[float]
    t_max: AbstractVar[float]

    def __check_init__(self):
        name, times = type(self).__name__, (self.t_min, self.t_max)
        if not (all(map(_is_number, times)) and 0 <= times[0] < times[1] <= 1):
            raise ValueError(
                f"`{name}` expects plain numbers 0 <= t_min < t_max <= 1; got {times[0]!r:.40} and "
                f"{times[1]!r:.40}. Times run from data, 0, to noise, 1; `float` makes a number of "
                f"an array. {_faq.schedules}"
            )
        known, error = (getattr(self, f"log_normalizer{end}", None) for end in ("", "_error"))
        if known is not None and not (_is_number(known) and math.isfinite(known)):
            raise ValueError(
                f"`log_normalizer` of `{name}` must be a finite number of nats, or None where it is not "
                f"known; got {known!r:.40}. {_faq.needs_normaliser}"
            )
        if error is not None and not (_is_number(error) and 0 <= error < math.inf):
            raise ValueError(
                f"`log_normalizer_error` of `{name}` must be finite and not negative; got "
                f"{error!r:.40}. {_faq.needs_normaliser}"
            )

    def _written(self) -> dict[str, Any]:
        """For `one_line`: `None` for a schedule and times that are those by default."""
        found: dict[str, Any] = {}
        if alike(self.schedule, VariancePreserving()):
            found["schedule"] = None
        try:
            ends = self.schedule.horizon()
        except Exception:  # of a traced or faulty schedule, times are written
            return found
        pairs = zip(("t_min", "t_max"), ends, strict=True)
        return found | {name: None for name, end in pairs if getattr(self, name) == end}

    @abc.abstractmethod
    def denoise(self, x: Shaped, t: Scalar) -> Shaped:
        r"""$\hat x_0(x_t) = \mathbb{E}[x_0 \mid x_t]$, of the shape of `x`."""

    @abc.abstractmethod
    def moments(self, t: Scalar) -> tuple[Shaped, Shaped]:
        """Mean and variance, each of shape `shape`, of a Gaussian roughly like the distribution at `t`.

        Used as the initial distribution at `t_max` and to scale positions from level to level. Both uses
        are corrected by weights, so roughly is enough.
        """

    def data_moments(self, t: Scalar) -> tuple[Array, Array]:
        r"""The moments of $u_t = x_t / \alpha_t$, in units of the data."""
        mean, variance = self.moments(t)
        alpha_t, _ = self.schedule(t)
        return mean / alpha_t, variance / alpha_t**2

    def data_score(self, u: Shaped, t: Scalar) -> Shaped:
        r"""$\nabla_u \log p_t(u)$ of $u = x_t / \alpha_t$, of the shape of `u`: $(\hat x_0 - u) / s_t^2$."""
        alpha_t, sigma_t = self.schedule(t)
        return (self.denoise(alpha_t * u, t) - u) * (alpha_t / sigma_t) ** 2

    def concentration(self, t: Scalar) -> Scalar | float:
        r"""$B_t$ such that at high noise the distribution of $u_t$ is about as wide as $s_t / \sqrt{B_t}$.

        1 for a noised distribution. A product of distributions to powers is narrower than the noise of its
        parts: $B$ is the sum of the powers.
        """
        del t
        return 1.0

    def kernel_noise(self, t: Scalar) -> Scalar:
        r"""Noise level $s_t / \sqrt{B_t}$ of the kernels between levels, in units of the data.

        To a power $B$ the noising kernel $\mathcal{N}(u_s, v)$ is $\mathcal{N}(u_s, v / B)$ and the reverse
        kernel is narrower alike. With both to the same power the weight of a level is the ratio of
        their normalisers, which no longer depends on the noise that was drawn. Any kernel is valid, and
        a ratio whose powers add up to nothing or less keeps that of a single distribution.
        """
        power = jnp.asarray(self.concentration(t))
        level = self.schedule.noise_level(t)
        return level / jnp.sqrt(jnp.where(power > 0, power, 1.0)).astype(level.dtype)

    def __add__(self, other) -> Any:
        """Product of distributions, or of a distribution and a factor."""
        return _combine((self, other), (1.0, 1.0))

    def __radd__(self, other) -> Any:
        return _combine((self, other), (1.0, 1.0))

    def __sub__(self, other: "AbstractDenoiser") -> Any:
        """Ratio of distributions."""
        return _combine((self, other), (1.0, -1.0))

    def __mul__(self, power: "Power") -> Any:
        """The distribution to a power, a number or a function of the time."""
        return _combine((self,), (power,))

    def __rmul__(self, power: "Power") -> Any:
        return _combine((self,), (power,))

    def __truediv__(self, temperature: "Power") -> Any:
        """The distribution at a temperature: to the power of one over it."""
        return _combine((self,), (_inverse(temperature),))

    def __neg__(self) -> Any:
        return _combine((self,), (-1.0,))

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        r"""Return the same model with other first and last times: the prior is read at `t_min`, particles
        start at `t_max`.

        Another `t_min` is another distribution, so a stored `log_normalizer` is then forgotten, unless the
        energy is normalised at every level. Another `t_max` moves no distribution; a learned offset $b(t)$
        is stretched over the new horizon. A model that was trained knows nothing outside the times it was
        trained on.

        Args:
            t_min: Time at which the prior is read; as it is by default.
            t_max: Time at which sampling starts; as it is by default.

        Raises:
            ValueError: If not $0 \le t_{min} < t_{max} \le 1$, or the log-SNR is infinite at an end.
            TypeError: If the class keeps its times elsewhere than in fields.
        """
        low = self.t_min if t_min is None else float(t_min)
        high = self.t_max if t_max is None else float(t_max)
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"`with_horizon` expects 0 <= t_min < t_max <= 1; got t_min={low}, t_max={high}. Time 0 "
                "is data and time 1 is noise; `schedule.time(log_snr)` gives the time of a noise "
                f"level. {_faq.schedules}"
            )
        with jax.ensure_compile_time_eval():
            ends = [float(self.schedule.log_snr(jnp.asarray(t))) for t in (low, high)]
        if not all(map(math.isfinite, ends)):
            raise ValueError(
                f"log-SNR must be finite at both ends; got {ends} at t = {low}, {high}. Move the ends "
                f"inside (0, 1). {_faq.schedules}"
            )
        changes = {"t_min": low, "t_max": high} | (
            {} if low == self.t_min else self.unknown_elsewhere
        )
        return replaced(self, "with_horizon", changes)

    @property
    def unknown_elsewhere(self) -> dict[str, Any]:
        """Fields that hold at `t_min` alone, as they are where nothing is known."""
        return {}


def replaced(module, method: str, changes: dict[str, Any]):
    """A copy of a module with other values in static fields, which `eqx.tree_at` does not reach."""
    missing = sorted(set(changes) - set(module.__dataclass_fields__))
    if missing:
        raise TypeError(
            f"`{type(module).__name__}` has no fields {missing}, so `{method}` cannot set them. Change the "
            f"parts it is made of, or make them fields. {_faq.kinds}"
        )
    other = copy.copy(module)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


def _combine(parts, powers) -> Any:
    from .algebra import combine  # algebra builds on these classes, so it is met at call time

    return combine(parts, powers)


def _inverse(temperature: Power) -> Power:
    from .exponents import Inverse

    if callable(temperature):
        return Inverse(temperature)
    if not isinstance(temperature, Tracer) and temperature == 0:
        raise ValueError(
            "expected a temperature other than 0, where nothing but the mode is left; got 0. Take a low one, "
            f"such as `energy / 0.01`. {_faq.numbers}"
        )
    return 1.0 / temperature
