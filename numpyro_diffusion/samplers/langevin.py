r"""Unadjusted and annealed Langevin algorithms: chains that follow a score, without a Metropolis test."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._arguments import check_callable, check_instance, whole_numbers
from .._numbers import number, one_number, real_array
from .._prng import check_key, lean
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..density.stability import steepest
from ..energies import AbstractDenoiser

__all__ = ["LangevinDraws", "annealed_langevin", "unadjusted_langevin"]


class _Slope(eqx.Module):
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


def unadjusted_langevin(
    key: PRNGKey,
    denoiser: AbstractDenoiser,
    log_likelihood: Callable[[Array], Scalar] | None = None,
    *,
    step_size: float = 0.05,
    num_steps: int = 200,
    num_samples: int = 1000,
    initial: Array | None = None,
) -> LangevinDraws:
    r"""Unadjusted Langevin algorithm (ULA) at `t_min`: a heuristic, biased by its step size.

    $$u \leftarrow u + \tfrac h2 \big(\nabla \log p(u) + \nabla \log L(u)\big) + \sqrt h\, \xi .$$

    Of a Gaussian with variance $s^2$ it keeps the mean and has the variance $s^2 / (1 - h / (4 s^2))$; it
    diverges from $h = 4 s^2$ on, with $s$ the smallest standard deviation of any direction, that of noise at
    `t_min` with a prior on a surface. Chains do not cross from mode to mode. Exact in the limit of small
    steps and long chains; with an energy use `MoveKernel` or `SMC`, with a score alone `Twisted`.

    Args:
        key: PRNG key.
        denoiser: The prior; a score is enough, and only that at `t_min` is used.
        log_likelihood: Log of $L$, `x -> ()` in nats for ONE example in units of the data; `None` for the
            prior.
        step_size: $h$, in squared units of the data.
        num_steps: Steps of each chain.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts, shape `(num_samples, *shape)`; by default draws of the Gaussian of
            `denoiser.data_moments(t_min)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `denoiser` is none.
        FloatingPointError: If a chain's position is not finite, or the likelihood is 0 there.

    Warns:
        UserWarning: If steps are too large to be stable where chains ended.

    References:
        Roberts & Tweedie (1996), Exponential convergence of Langevin distributions and their discrete
        approximations, Bernoulli.
    """
    key = check_key(key)
    num_steps, num_samples = whole_numbers(1, num_steps=num_steps, num_samples=num_samples)
    who = "unadjusted_langevin"
    step_size, initial, data = _checked(
        who, denoiser, num_samples, initial, step_size, log_likelihood, False
    )
    times = jnp.full(1, denoiser.t_min, jnp.result_type(float))
    sizes = jnp.full(1, step_size, times.dtype)
    draws = _chains(
        jax.random.split(lean(key), num_samples), denoiser, data, times, sizes, num_steps, initial
    )
    target = (
        f"unadjusted Langevin steps of size {step_size:g}, {num_steps} a chain; in the "
        f"limit of small steps: {_posterior(log_likelihood)}"
    )
    return _found(
        who, key, draws, _Slope(denoiser, data, times[-1], _noise(denoiser)), sizes, target
    )


def annealed_langevin(
    key: PRNGKey,
    denoiser: AbstractDenoiser,
    log_likelihood: Callable[[Array, Scalar], Scalar] | None = None,
    *,
    step_size: float = 0.2,
    num_levels: int = 10,
    num_steps: int = 100,
    num_samples: int = 1000,
    initial: Array | None = None,
) -> LangevinDraws:
    r"""Annealed Langevin dynamics: Langevin steps at one noise level after the other, as published.

    At noise levels $s_1 > \dots > s_L$, equal in log-SNR from `t_max` to `t_min`, `num_steps` steps each of

    $$u \leftarrow u + \tfrac{h_i}{2} \big(\nabla \log p_{s_i}(u) + \nabla \log L_{s_i}(u)\big) +
    \sqrt{h_i}\, \xi, \qquad h_i = \epsilon\, s_i^2 .$$

    A heuristic: of a Gaussian with variance $d^2$ a step multiplies the deviation from the mean by $1 - h_i
    / 2 (d^2 + s_i^2)$. Where $s_i \ll d$ that is hardly less than 1, and what earlier levels left is kept:
    with few steps the draws are too wide. With data the likelihood $L_s$ is that of the noised variable, and
    is to widen with the noise, $\mathcal{N}(y; H u, \sigma^2 + s^2)$ (Jalal et al.): steps are not stable
    where it is more precise than the level. The weighted method for a score is `Twisted`.

    Args:
        key: PRNG key.
        denoiser: The prior; a score is enough.
        log_likelihood: Log of $L_s$, `(u, s) -> ()` in nats for ONE noised example in units of the data and
            its noise level; `None` for the prior.
        step_size: $\epsilon$, below 4: the step in squared noise levels. Song & Ermon have 0.2 (2e-5 over
            0.01 squared).
        num_levels: $L$.
        num_steps: Steps at each level.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts at `t_max`, shape `(num_samples, *shape)`; by default draws of the Gaussian of
            `denoiser.data_moments(t_max)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `denoiser` is none.
        FloatingPointError: If a chain's position is not finite, or the likelihood is 0 there.

    Warns:
        UserWarning: If steps are too large to be stable where chains ended.

    References:
        Song & Ermon (2019), Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS,
        arXiv 1907.05600. Jalal, Arvinte, Daras, Price, Dimakis & Tamir (2021), Robust Compressed Sensing MRI
        with Deep Generative Priors, NeurIPS, arXiv 2108.01368.
    """
    key = check_key(key)
    num_steps, num_samples, num_levels = whole_numbers(
        1, num_steps=num_steps, num_samples=num_samples, num_levels=num_levels
    )
    who = "annealed_langevin"
    step_size, initial, data = _checked(
        who, denoiser, num_samples, initial, step_size, log_likelihood, True
    )
    schedule = denoiser.schedule
    noisy, clean = (schedule.log_snr(jnp.asarray(t)) for t in (denoiser.t_max, denoiser.t_min))
    shares = jnp.linspace(0.0, 1.0, num_levels) if num_levels > 1 else jnp.ones(1)
    times = schedule.time(noisy + shares * (clean - noisy))
    times = jnp.clip(times, denoiser.t_min, denoiser.t_max)
    sizes = step_size * jax.vmap(schedule.noise_level)(times) ** 2
    draws = _chains(
        jax.random.split(lean(key), num_samples), denoiser, data, times, sizes, num_steps, initial
    )
    target = (
        f"annealed Langevin steps of {step_size:g} squared noise levels, {num_steps} at each of "
        f"{num_levels}; in the "
        f"limit of small steps and many: {_posterior(log_likelihood)}"
    )
    return _found(
        who, key, draws, _Slope(denoiser, data, times[-1], _noise(denoiser)), sizes, target
    )


def _posterior(log_likelihood) -> str:
    return "p(x, t_min)" if log_likelihood is None else "p(x, t_min) p(y | x)"


def _noise(denoiser: AbstractDenoiser) -> Scalar:
    return denoiser.schedule.noise_level(jnp.asarray(denoiser.t_min, jnp.result_type(float)))


def _checked(who, denoiser, num_samples, initial, step_size, log_likelihood, takes_noise: bool):
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


def _found(who: str, key, positions: Array, slope: _Slope, sizes, target: str) -> LangevinDraws:
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


def _check_likelihood(who: str, slope: _Slope, positions: Array) -> None:
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
def _chains(keys, denoiser, log_likelihood, times, sizes, num_steps, initial):
    mean, variance = denoiser.data_moments(times[0])
    noises = jax.vmap(denoiser.schedule.noise_level)(times)

    def chain(key, first):
        key_start, key_steps = jax.random.split(key)
        white = jax.random.normal(key_start, denoiser.shape, sizes.dtype)
        u = mean + jnp.sqrt(variance) * white if first is None else jnp.asarray(first, sizes.dtype)

        def step(u, at):
            i, j = at
            slope = _Slope(denoiser, log_likelihood, times[i], noises[i])(u)
            noise = jax.random.normal(jax.random.fold_in(key_steps, j), u.shape, u.dtype)
            return (u + 0.5 * sizes[i] * slope + jnp.sqrt(sizes[i]) * noise).astype(u.dtype), None

        j = jnp.arange(len(times) * num_steps)
        return jax.lax.scan(step, u, (j // num_steps, j))[0]

    return jax.vmap(chain, in_axes=(0, None if initial is None else 0))(keys, initial)
