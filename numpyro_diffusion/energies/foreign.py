r"""Energies and scores from plain functions.

Someone else's model enters by a lambda that speaks our conventions: one example of noised data $x_t$,
our time $t \in [0, 1]$, nats. A model with its own clock or its own prediction type needs one line:

- a noise prediction $\epsilon(x_t)$ is the score $-\epsilon / \sigma_t$;
- a network trained on $(u, s)$ with $u = x_t/\alpha_t$, $s = \sigma_t/\alpha_t$ sees those two numbers.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Params, Scalar
from ..schedules import AbstractSchedule
from .base import AbstractDenoiser
from .energy import AbstractEnergy
from .rough import rough_moments, rough_settings

__all__ = ["EnergyFunction", "ScoreFunction"]


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
        f"over the entries for an energy, and make integers floats. {_faq.real_numbers}"
    )


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
        settings = rough_settings(
            "EnergyFunction", fn, shape, schedule, mean, variance, t_min, t_max
        )
        self.fn, self.params = fn, params
        self.shape, self.schedule, self.mean, self.variance, self.t_min, self.t_max = settings
        self.log_normalizer, self.log_normalizer_error = log_normalizer, log_normalizer_error

    def energy(self, x: Array, t: Scalar) -> Scalar:
        value = self.fn(x, t) if self.params is None else self.fn(self.params, x, t)
        return _checked("EnergyFunction", value, ())

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return rough_moments(self, t)


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
        settings = rough_settings(
            "ScoreFunction", fn, shape, schedule, mean, variance, t_min, t_max
        )
        self.fn, self.params = fn, params
        self.shape, self.schedule, self.mean, self.variance, self.t_min, self.t_max = settings

    def denoise(self, x: Array, t: Scalar) -> Array:
        alpha_t, sigma_t = self.schedule(t)
        value = self.fn(x, t) if self.params is None else self.fn(self.params, x, t)
        score = _checked("ScoreFunction", value, x.shape)
        return (x + sigma_t**2 * score) / alpha_t

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        return rough_moments(self, t)
