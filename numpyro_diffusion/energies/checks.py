"""Checks of a composition before it is sampled: parts that match, powers that can be normalised."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from ..schedules import AbstractSchedule
from .base import AbstractDenoiser

__all__ = [
    "at_one_time",
    "check_alike",
    "check_normalizable",
    "horizon_of",
    "is_traced",
    "numbers",
    "refuse_traced",
    "sum_to_one",
]

_ROUNDING = 2e-3  # of a sum, as three digits of a few weights leave
_FAR = 20.0, 40.0  # standard deviations


def is_traced(values) -> bool:
    """Test whether some of the values are tracers, as inside `jit`, `grad` and the models of MCMC."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def sum_to_one(name: str, weights: np.ndarray) -> None:
    """Refuse weights of a mixture that are no probabilities: a slip of the pen would be another distribution.

    Raises:
        ValueError: If their sum is off 1 by more than rounding.
    """
    with np.errstate(over="ignore"):
        total = float(np.sum(np.asarray(weights, float)))
    if not abs(total - 1) <= _ROUNDING:
        raise ValueError(
            f"`{name}` of a mixture must sum to 1; got {np.asarray(weights).tolist()}, of sum {total:.6g}. "
            f"If their ratios are what is meant, divide them by their sum. {_faq.numbers}"
        )


def refuse_traced(**values) -> None:
    """Refuse values that are not known when an energy is made, and so cannot be checked or factorised."""
    for name, value in values.items():
        if is_traced(value):
            raise TypeError(
                f"`{name}` of an energy must be known when it is made; got traced values, such as those of "
                "latent sites or of the arguments of a model. Make the energy outside and pass it as an "
                "argument; for an unknown location and scale write `x = mu + scale * z` with `z` from a "
                f"fixed prior. {_faq.needs_values}"
            )


def numbers(values, what: str) -> Any:
    """Finite parameters as floats of NumPy, which may be looked at, or traced ones, which may not."""
    if is_traced(values):
        return jnp.asarray(values, jnp.result_type(float))
    if np.iscomplexobj(values):
        raise TypeError(
            f"`{what}` must be real; got complex numbers. Stack real and imaginary "
            f"parts. {_faq.real_numbers}"
        )
    try:
        array = np.asarray(values, float)
    except ValueError as error:
        raise TypeError(
            f"`{what}` must be an array of numbers: {error}. {_faq.real_numbers}"
        ) from error
    with np.errstate(over="ignore"):
        bad = int(np.sum(~np.isfinite(array.astype(jnp.result_type(float)))))
    if bad:
        raise ValueError(
            f"`{what}` must be finite; {bad} of its {array.size} numbers are NaN or infinite. Look for "
            f"missing values in the data. {_faq.finite}"
        )
    return array


def horizon_of(schedule, t_min, t_max) -> tuple[float, float]:
    """First and last time of an energy; those of its schedule by default."""
    if not isinstance(schedule, AbstractSchedule):
        raise TypeError(
            "`schedule` must be a noise schedule, such as `VariancePreserving()`; got "
            f"{schedule!r:.40}. {_faq.kinds}"
        )
    default_min, default_max = schedule.horizon()
    return default_min if t_min is None else t_min, default_max if t_max is None else t_max


def check_alike(what: str, parts: tuple[AbstractDenoiser, ...]) -> None:
    """Refuse parts of different shapes or schedules."""
    first = parts[0]
    for other in parts[1:]:
        if other.shape != first.shape:
            raise ValueError(
                f"{what} must share one shape; got {first.shape} and {other.shape}. {_faq.shapes}"
            )
        if not eqx.tree_equal(other.schedule, first.schedule):
            raise ValueError(
                f"{what} must share one schedule; got {first.schedule} and {other.schedule}. Train or "
                f"wrap them under the same one. {_faq.schedules}"
            )


def at_one_time(parts: tuple) -> tuple:
    """The parts read at the largest `t_min` of all; normalisers that hold elsewhere are forgotten."""
    latest = max(part.t_min for part in parts)
    return tuple(p if p.t_min == latest else p.with_horizon(t_min=latest) for p in parts)


def check_normalizable(energy) -> None:
    """Refuse powers that fall too fast with the noise; warn of densities that grow far from the data."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(energy)):
        return
    with jax.ensure_compile_time_eval():
        if any(callable(power) for power in energy.powers):
            _check_noise(energy)
        lowest = min(float(b) for b in energy.powers_at(jnp.asarray(energy.t_min)))
        if lowest < 0 and _grows(energy):
            warnings.warn(
                f"the density of the composition with powers {energy.powers} grows from {_FAR[0]:g} to "
                f"{_FAR[1]:g} standard deviations away from the data in some direction: it may have no "
                "normaliser, and particles that get there never come back. Lower the negative powers, or "
                f"confine it with `Restrict`. {_faq.compositions}",
                stacklevel=5,
            )


def _check_noise(energy) -> None:
    schedule = energy.schedule
    ends = [float(schedule.log_snr(jnp.asarray(t))) for t in (energy.t_max, energy.t_min)]
    times = jax.vmap(schedule.time)(jnp.linspace(ends[0], ends[1], 65))
    powers = np.asarray(jax.vmap(energy.concentration)(times))
    noise = np.asarray(jax.vmap(energy.kernel_noise)(times))
    if not (np.all(powers > 0) and np.all(np.diff(noise) < 0)):
        raise ValueError(
            "powers that are functions of the time must have a positive sum B, and the noise s / sqrt(B) "
            f"must grow with the time; got sums from {powers.min():.3g} to {powers.max():.3g}. A power "
            f"that rises towards the data from 1 to its value is usual. {_faq.compositions}"
        )


def _grows(energy) -> bool:
    """Whether the density at `t_min` rises along some direction, far from the data."""
    t = jnp.asarray(energy.t_min)
    mean, variance = energy.moments(t)
    directions = np.random.default_rng(0).standard_normal((32, *energy.shape))
    size = np.sqrt(np.sum(directions**2, axis=tuple(range(1, directions.ndim)), keepdims=True))
    directions = jnp.asarray(directions / size, mean.dtype)
    near, far = (
        eqx.filter_jit(eqx.filter_vmap(lambda x: energy.energy(x, t)))(
            mean + radius * jnp.sqrt(variance) * directions
        )
        for radius in _FAR
    )
    return not bool(jnp.all(far > near))
