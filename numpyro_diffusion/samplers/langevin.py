r"""Unadjusted and annealed Langevin algorithms: chains that follow a score, without a Metropolis test."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._arguments import check_instance, whole_numbers
from .._prng import lean
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser

__all__ = ["LangevinDraws", "annealed_langevin", "unadjusted_langevin"]


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
        FloatingPointError: If a chain's position is not finite.

    References:
        Roberts & Tweedie (1996), Exponential convergence of Langevin distributions and their discrete
        approximations, Bernoulli.
    """
    num_steps, num_samples = whole_numbers(1, num_steps=num_steps, num_samples=num_samples)
    _check("unadjusted_langevin", denoiser, num_samples, initial, step_size=step_size)
    times = jnp.full(1, denoiser.t_min, jnp.result_type(float))
    sizes = jnp.full(1, step_size, times.dtype)
    keys = jax.random.split(lean(key), num_samples)
    alone = None if log_likelihood is None else lambda u, s: log_likelihood(u)
    draws = _chains(keys, denoiser, alone, times, sizes, num_steps, initial)
    target = (
        f"unadjusted Langevin steps of size {step_size:g}, {num_steps} a chain; in the "
        f"limit of small steps"
    )
    return _found("unadjusted_langevin", draws, f"{target}: {_posterior(log_likelihood)}")


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
        step_size: $\epsilon$: the step in squared noise levels. Song & Ermon have 0.2 (2e-5 over 0.01
            squared).
        num_levels: $L$.
        num_steps: Steps at each level.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts at `t_max`, shape `(num_samples, *shape)`; by default draws of the Gaussian of
            `denoiser.data_moments(t_max)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `denoiser` is none.
        FloatingPointError: If a chain's position is not finite.

    References:
        Song & Ermon (2019), Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS,
        arXiv 1907.05600. Jalal, Arvinte, Daras, Price, Dimakis & Tamir (2021), Robust Compressed Sensing MRI
        with Deep Generative Priors, NeurIPS, arXiv 2108.01368.
    """
    num_steps, num_samples, num_levels = whole_numbers(
        1, num_steps=num_steps, num_samples=num_samples, num_levels=num_levels
    )
    _check("annealed_langevin", denoiser, num_samples, initial, step_size=step_size)
    schedule = denoiser.schedule
    noisy, clean = (schedule.log_snr(jnp.asarray(t)) for t in (denoiser.t_max, denoiser.t_min))
    shares = jnp.linspace(0.0, 1.0, num_levels) if num_levels > 1 else jnp.ones(1)
    times = schedule.time(noisy + shares * (clean - noisy))
    times = jnp.clip(times, denoiser.t_min, denoiser.t_max)
    sizes = step_size * jax.vmap(schedule.noise_level)(times) ** 2
    keys = jax.random.split(lean(key), num_samples)
    draws = _chains(keys, denoiser, log_likelihood, times, sizes, num_steps, initial)
    target = (
        f"annealed Langevin steps of {step_size:g} squared noise levels, {num_steps} at each of "
        f"{num_levels}; in the "
        f"limit of small steps and many: {_posterior(log_likelihood)}"
    )
    return _found("annealed_langevin", draws, target)


def _posterior(log_likelihood) -> str:
    return "p(x, t_min)" if log_likelihood is None else "p(x, t_min) p(y | x)"


def _check(who, denoiser, num_samples, initial, step_size) -> None:
    check_instance("denoiser", denoiser, AbstractDenoiser, "nd.ScoreFunction(...)", optional=False)
    if isinstance(step_size, bool) or not 0 < step_size < np.inf:
        raise ValueError(
            f"`step_size` of `{who}` must be positive and finite; got {step_size}. {_faq.numbers}"
        )
    shape = (num_samples, *denoiser.shape)
    if initial is not None and jnp.shape(initial) != shape:
        raise ValueError(
            f"`initial` must have shape {shape}; got {jnp.shape(initial)}. {_faq.shapes}"
        )


def _found(who: str, positions: Array, target: str) -> LangevinDraws:
    if not isinstance(positions, Tracer):
        lost = np.any(~np.isfinite(np.asarray(positions)).reshape(len(positions), -1), 1)
        if lost.any():
            raise FloatingPointError(
                f"`{who}` lost {int(lost.sum())} of {len(positions)} chains, the first is number "
                f"{int(lost.argmax())}: their positions are not finite. Take a smaller "
                f"`step_size`, and look at "
                f"the score where chains start (`initial`). {_faq.lost}"
            )
    return LangevinDraws(positions, target)


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
            slope = denoiser.data_score(u, times[i])
            if log_likelihood is not None:
                slope = slope + jax.grad(log_likelihood)(u, noises[i])
            noise = jax.random.normal(jax.random.fold_in(key_steps, j), u.shape, u.dtype)
            return (u + 0.5 * sizes[i] * slope + jnp.sqrt(sizes[i]) * noise).astype(u.dtype), None

        j = jnp.arange(len(times) * num_steps)
        return jax.lax.scan(step, u, (j // num_steps, j))[0]

    return jax.vmap(chain, in_axes=(0, None if initial is None else 0))(keys, initial)
