"""Chains of Langevin steps: their slope, what they take, and what is refused of where they end."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._arguments import check_callable, check_instance
from .._numbers import number, one_number, real_array
from .._records import record, record_page
from .._typing import Array, Scalar
from ..density.stability import steepest
from ..energies import AbstractDenoiser

__all__ = ["LangevinDraws", "Slope", "chains", "checked", "found", "last_noise", "posterior"]


class Slope(eqx.Module):
    r"""$\nabla \log p_t + \nabla \log L_s$ at one level, of ONE example."""

    denoiser: AbstractDenoiser
    log_likelihood: Callable[[Array, Scalar], Scalar] | None
    t: Scalar
    noise: Scalar

    def __call__(self, u: Array) -> Array:
        slope = self.denoiser.data_score(u, self.t)
        if self.log_likelihood is None:
            return slope
        return (slope + jax.grad(self.log_likelihood)(u, self.noise)).astype(u.dtype)


class _OfBoth(eqx.Module):
    """A log likelihood of an example and its noise level, whose answer is one number."""

    fn: Callable[..., Scalar]
    takes_noise: bool = eqx.field(static=True)

    def __call__(self, u: Array, noise: Scalar) -> Scalar:
        found = self.fn(u, noise) if self.takes_noise else self.fn(u)
        return one_number("a log likelihood of ONE example", found)


class LangevinDraws(NamedTuple):
    """Last states of Langevin chains.

    Attributes:
        positions: Shape `(num_samples, *shape)`, in units of the data.
        target: The distribution that was sampled, in words.
        exact: Whether that is the distribution of the score in a limit that the run approaches: it is not.
    """

    positions: Array
    target: str
    exact: bool = False

    __repr__ = record
    _repr_html_ = record_page


def posterior(log_likelihood) -> str:
    return "p(x, t_min)" if log_likelihood is None else "p(x, t_min) p(y | x)"


def last_noise(denoiser: AbstractDenoiser) -> Scalar:
    return denoiser.schedule.noise_level(jnp.asarray(denoiser.t_min, jnp.result_type(float)))


def checked(who, denoiser, num_samples, initial, step_size, log_likelihood, takes_noise: bool):
    """Step size, starts and log likelihood as the chains take them."""
    check_instance("denoiser", denoiser, AbstractDenoiser, "nd.ScoreFunction(...)", optional=False)
    # At noisy levels the curvature is that of the noise, and steps are counted in it.
    most = (
        {"below": 4, "remedy": "From 4 on chains diverge where noise is all."}
        if takes_noise
        else {}
    )
    step_size = number(f"step_size` of `{who}", step_size, above=0, **most)
    shape = (num_samples, *denoiser.shape)
    if initial is not None and not isinstance(initial, Tracer):
        initial = jnp.asarray(
            real_array("initial", initial, f"of shape {shape}"), jnp.result_type(float)
        )
    if initial is not None and jnp.shape(initial) != shape:
        raise ValueError(
            f"`initial` must have shape {shape}; got {jnp.shape(initial)}. {_faq.shapes}"
        )
    if log_likelihood is not None:
        form = "(u, noise level) -> log likelihood" if takes_noise else "u -> log likelihood"
        check_callable("log_likelihood", log_likelihood, form)
        log_likelihood = _OfBoth(log_likelihood, takes_noise)
    return step_size, initial, log_likelihood


def found(who: str, key, positions: Array, slope: Slope, sizes, target: str) -> LangevinDraws:
    """The last states, if finite and where the likelihood is; a warning if steps cannot be stable."""
    if not isinstance(positions, Tracer):
        lost = np.any(~np.isfinite(np.asarray(positions)).reshape(len(positions), -1), 1)
        if lost.any():
            raise FloatingPointError(
                f"`{who}` lost {int(lost.sum())} of {len(positions)} chains, the first is number "
                f"{int(lost.argmax())}: their positions are not finite. Take a smaller "
                f"`step_size`, and look at "
                f"the score where chains start (`initial`). {_faq.lost}"
            )
        _check_likelihood(who, slope, positions)
        steep = float(sizes[-1]) * float(steepest(key, slope, positions))
        if steep > 4:
            warnings.warn(
                f"steps of `{who}` are too large to be stable where its chains ended: `step_size` times the "
                f"largest curvature of the log density is {steep:.3g} there, and a Gaussian's chains diverge "
                f"from 4 on. Divide `step_size` by {steep / 0.4:.2g}. {_faq.numbers}",
                stacklevel=3,
            )
    return LangevinDraws(positions, target)


def _check_likelihood(who: str, slope: Slope, positions: Array) -> None:
    """Refuse ends at which the likelihood is 0: its slope there is none, and chains do not see it."""
    if slope.log_likelihood is None:
        return
    values = np.asarray(_values(slope, positions))
    lost = ~np.isfinite(values)
    if lost.any():
        raise FloatingPointError(
            f"{int(lost.sum())} of {len(values)} chains of `{who}` ended where the log likelihood is "
            f"{values[lost.argmax()]}: it has no slope there that would lead out. Use a likelihood that is "
            f"positive everywhere, or `energy + nd.factors.Restrict(...)` and a weighted sampler. {_faq.lost}"
        )


@eqx.filter_jit
def _values(slope, positions):
    return jax.vmap(lambda u: slope.log_likelihood(u, slope.noise))(positions)


@eqx.filter_jit
def chains(keys, denoiser, log_likelihood, times, sizes, num_steps, initial):
    mean, variance = denoiser.data_moments(times[0])
    noises = jax.vmap(denoiser.schedule.noise_level)(times)

    def chain(key, first):
        key_start, key_steps = jax.random.split(key)
        white = jax.random.normal(key_start, denoiser.shape, sizes.dtype)
        u = mean + jnp.sqrt(variance) * white if first is None else jnp.asarray(first, sizes.dtype)

        def step(u, at):
            i, j = at
            slope = Slope(denoiser, log_likelihood, times[i], noises[i])(u)
            noise = jax.random.normal(jax.random.fold_in(key_steps, j), u.shape, u.dtype)
            return (u + 0.5 * sizes[i] * slope + jnp.sqrt(sizes[i]) * noise).astype(u.dtype), None

        j = jnp.arange(len(times) * num_steps)
        return jax.lax.scan(step, u, (j // num_steps, j))[0]

    return jax.vmap(chain, in_axes=(0, None if initial is None else 0))(keys, initial)
