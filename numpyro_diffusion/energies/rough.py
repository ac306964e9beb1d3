"""Models given by functions: their arguments, and the Gaussian of rough moments."""

import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_shape
from .._typing import Array, Scalar
from ..schedules import AbstractSchedule, VariancePreserving
from .checks import refuse_traced

__all__ = ["rough_moments", "rough_settings"]


def _broadcasts(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(small, shape) == shape
    except ValueError:
        return False


def rough_settings(name, function, shape, schedule, mean, variance, t_min, t_max):
    """The arguments that both wrappers share, checked and with their defaults."""
    if not callable(function):
        raise TypeError(
            f"`{name}` expects a function of (x, t), or of (params, x, t) with `params` given; got "
            f"{type(function).__name__}. Pass a network's `apply` with its "
            f"parameters. {_faq.kinds}"
        )
    schedule = VariancePreserving() if schedule is None else schedule
    if not isinstance(schedule, AbstractSchedule):
        raise TypeError(
            f"`{name}` expects a schedule, e.g. `VariancePreserving()`; got "
            f"{schedule!r}. {_faq.kinds}"
        )
    shape = whole_shape(shape)
    refuse_traced(mean=mean, variance=variance)
    mean, variance = (np.asarray(moment, float) for moment in (mean, variance))
    for moment, what in ((mean, "mean"), (variance, "variance")):
        if not _broadcasts(moment.shape, shape):
            raise ValueError(
                f"`{what}` of `{name}` must broadcast to the shape {shape} of one example; got "
                f"{moment.shape}. {_faq.shapes}"
            )
    if not (np.all(np.isfinite(mean)) and np.all(variance > 0) and np.all(np.isfinite(variance))):
        raise ValueError(
            f"`{name}` expects a finite mean and positive variances of the data; got mean={mean}, "
            f"variance={variance}. Rough values suffice. {_faq.numbers}"
        )
    default_min, default_max = schedule.horizon()
    t_min = default_min if t_min is None else float(t_min)
    t_max = default_max if t_max is None else float(t_max)
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(
            f"`{name}` expects 0 <= t_min < t_max <= 1; got t_min={t_min}, t_max={t_max}. "
            f"Time 0 is data. {_faq.schedules}"
        )
    return shape, schedule, jnp.asarray(mean), jnp.asarray(variance), t_min, t_max


def rough_moments(model, t: Scalar) -> tuple[Array, Array]:
    """Mean and variance at a time of a model with rough moments `mean` and `variance` of clean data."""
    alpha_t, sigma_t = model.schedule(t)
    mean = jnp.broadcast_to(alpha_t * model.mean.astype(alpha_t.dtype), model.shape)
    variance = alpha_t**2 * model.variance.astype(alpha_t.dtype) + sigma_t**2
    return mean, jnp.broadcast_to(variance, model.shape)
