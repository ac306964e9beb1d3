r"""Energies and scores from plain functions.

Someone else's model enters by a lambda that speaks our conventions: one example of noised data $x_t$,
our time $t \in [0, 1]$, nats. A model with its own clock or its own prediction type needs one line:

- a noise prediction $\epsilon(x_t)$ is the score $-\epsilon / \sigma_t$;
- a network trained on $(u, s)$ with $u = x_t/\alpha_t$, $s = \sigma_t/\alpha_t$ sees those two numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import whole_number
from .._typing import Array, Params, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .base import AbstractDenoiser
from .checks import refuse_traced
from .energy import AbstractEnergy

__all__ = ["EnergyFunction", "ScoreFunction"]


def _broadcasts(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(small, shape) == shape
    except ValueError:
        return False


def _settings(name, function, shape, schedule, mean, variance, t_min, t_max):
    """The arguments that both wrappers share, checked and with their defaults."""
    if not callable(function):
        raise TypeError(
            f"`{name}` expects a function of (x, t), or of (params, x, t) with `params` given; got "
            f"{type(function).__name__}. Pass a network's `apply` with its parameters."
        )
    schedule = VariancePreserving() if schedule is None else schedule
    if not isinstance(schedule, AbstractSchedule):
        raise TypeError(
            f"`{name}` expects a schedule, e.g. `VariancePreserving()`; got {schedule!r}."
        )
    sizes = shape if isinstance(shape, Iterable) else (shape,)
    shape = tuple(whole_number("shape", size, 1) for size in sizes)
    refuse_traced(mean=mean, variance=variance)
    mean, variance = (np.asarray(moment, float) for moment in (mean, variance))
    for moment, what in ((mean, "mean"), (variance, "variance")):
        if not _broadcasts(moment.shape, shape):
            raise ValueError(
                f"`{what}` of `{name}` must broadcast to the shape {shape} of one example; got "
                f"{moment.shape}."
            )
    if not (np.all(np.isfinite(mean)) and np.all(variance > 0) and np.all(np.isfinite(variance))):
        raise ValueError(
            f"`{name}` expects a finite mean and positive variances of the data; got mean={mean}, "
            f"variance={variance}. Rough values suffice."
        )
    default_min, default_max = schedule.horizon()
    t_min = default_min if t_min is None else float(t_min)
    t_max = default_max if t_max is None else float(t_max)
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(
            f"`{name}` expects 0 <= t_min < t_max <= 1; got t_min={t_min}, t_max={t_max}. "
            "Time 0 is data."
        )
    return shape, schedule, jnp.asarray(mean), jnp.asarray(variance), t_min, t_max


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """What a function returned, if it has the right shape and is real."""
    if isinstance(value, jax.Array | np.ndarray | np.generic | float):
        got = f"an array of shape {jnp.shape(value)} and type {jnp.result_type(value)}"
        if jnp.shape(value) == shape and jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return value
    else:
        got = type(value).__name__
    raise TypeError(
        f"the function of `{name}` must return real numbers of shape {shape} for one example; got {got}. Sum "
        "over the entries for an energy, and make integers floats."
    )


def _moments(model, t: Scalar) -> tuple[Array, Array]:
    alpha_t, sigma_t = model.schedule(t)
    mean = jnp.broadcast_to(alpha_t * model.mean.astype(alpha_t.dtype), model.shape)
    variance = alpha_t**2 * model.variance.astype(alpha_t.dtype) + sigma_t**2
    return mean, jnp.broadcast_to(variance, model.shape)


class EnergyFunction(AbstractEnergy):
    r"""A function as an energy: $E(x, t) = f(x, t)$ or $f(\mathrm{params}, x, t)$.

    The score is its gradient, so it must be differentiable in `x`; `check_energy` tells whether it is.

    Args:
        fn: `fn(x, t)`, or `fn(params, x, t)` where `params` is given, for one example; returns
            $E(x_t, t)$ in nats, shape `()`.
        shape: Shape of one example.
        schedule: Noise schedule that the function belongs to. The default is `VariancePreserving()`.
        params: Parameters as a pytree of arrays. What `fn` closes over is a constant of the compiled
            program: pass large networks here.
        mean: Rough mean of clean data, broadcast to `shape`.
        variance: Rough variance of clean data, broadcast to `shape`.
        t_min: Time at which the prior is read.
        t_max: Time at which sampling starts.
        log_normalizer: $\log \int e^{-E(x, t_{\min})} dx$ in nats, where known.
        log_normalizer_error: Its standard error.

    Raises:
        TypeError: If `fn` is not callable; later, if what it returns is no real number.
        ValueError: If shape, moments or times make no sense.
    """

    fn: Callable[..., Scalar]
    params: Params
    mean: Array
    variance: Array
    schedule: AbstractSchedule
    shape: tuple[int, ...] = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def __init__(
        self,
        fn: Callable[..., Scalar],
        shape: tuple[int, ...] | int,
        schedule: AbstractSchedule | None = None,
        *,
        params: Params = None,
        mean=0.0,
        variance=1.0,
        t_min: float | None = None,
        t_max: float | None = None,
        log_normalizer: float | None = None,
        log_normalizer_error: float = 0.0,
    ):
        settings = _settings("EnergyFunction", fn, shape, schedule, mean, variance, t_min, t_max)
        self.fn, self.params = fn, params
        self.shape, self.schedule, self.mean, self.variance, self.t_min, self.t_max = settings
        self.log_normalizer, self.log_normalizer_error = log_normalizer, log_normalizer_error

    def energy(self, x: Array, t: Scalar) -> Scalar:
        value = self.fn(x, t) if self.params is None else self.fn(self.params, x, t)
        return _checked("EnergyFunction", value, ())

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return _moments(self, t)


class ScoreFunction(AbstractDenoiser):
    r"""A function as a score, $\nabla \log p_t(x) = f(x, t)$ or $f(\mathrm{params}, x, t)$.

    It is a denoiser, $\hat x_0 = (x_t + \sigma_t^2 f(x_t, t)) / \alpha_t$, and *not* an energy: no
    density can be had from it, so it can be sampled and used in path space, but not in a Metropolis
    step. Where the energy is known, use `EnergyFunction`.

    Args:
        fn: `fn(x, t)`, or `fn(params, x, t)` where `params` is given, for one example; returns the
            score in nats a unit, of the shape of `x`.
        shape: Shape of one example.
        schedule: Noise schedule that the function belongs to. The default is `VariancePreserving()`.
        params: Parameters as a pytree of arrays.
        mean: Rough mean of clean data, broadcast to `shape`.
        variance: Rough variance of clean data, broadcast to `shape`.
        t_min: Time at which the prior is read.
        t_max: Time at which sampling starts.

    Raises:
        TypeError: If `fn` is not callable; later, if what it returns has not the shape of `x`.
        ValueError: If shape, moments or times make no sense.
    """

    fn: Callable[..., Array]
    params: Params
    mean: Array
    variance: Array
    schedule: AbstractSchedule
    shape: tuple[int, ...] = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[..., Array],
        shape: tuple[int, ...] | int,
        schedule: AbstractSchedule | None = None,
        *,
        params: Params = None,
        mean=0.0,
        variance=1.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        settings = _settings("ScoreFunction", fn, shape, schedule, mean, variance, t_min, t_max)
        self.fn, self.params = fn, params
        self.shape, self.schedule, self.mean, self.variance, self.t_min, self.t_max = settings

    def denoise(self, x: Array, t: Scalar) -> Array:
        alpha_t, sigma_t = self.schedule(t)
        value = self.fn(x, t) if self.params is None else self.fn(self.params, x, t)
        score = _checked("ScoreFunction", value, x.shape)
        return (x + sigma_t**2 * score) / alpha_t

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return _moments(self, t)
