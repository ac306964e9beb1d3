r"""Consistency losses between neighbouring noise levels of an energy.

Scores at each level say nothing of how energies at different levels go together. The diffusion does. In the
units of the data, $u = x_t / \alpha_t$ at noise level $s$, with $\log p(u, s) = n \log \alpha_t - E - L$, it
is the heat equation for logarithms,

$$\frac{\partial \log p}{\partial \log s} = s^2 \big(\Delta \log p + |\nabla \log p|^2\big),$$

which `fokker_planck_loss` asks for, and, over a step that adds noise of variance $v = s'^2 - s^2$, Bayes'
rule with the reverse kernel $B$,

$$\log p(u', s') + \log B(u \mid u') = \log p(u, s) + \log \mathcal{N}(u' \mid u, v I) .$$

Each is a loss; both measure the same error of a rate, in nats a unit of log noise. They fix the energy *and*
its log normaliser $L$ at every level, up to one constant for all levels. A network energy has an offset
$b(t)$ of its own that takes the place of $L$: it comes out normalised alike at every level. An energy that
is kept as it is gets a `LevelNormalizer`.

References:
    He et al. (2025), RNE: plug-and-play diffusion inference-time control and energy-based training.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_or_none
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from .losses import Levels, uniform_log_snr

__all__ = ["consistency_loss", "step_errors"]

Normalizer = Callable[[Scalar], Scalar]
r"""`normalizer(t)`, $L(t)$ in nats up to a constant."""


def consistency_loss(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    normalizer: Normalizer | None = None,
    step: float = 0.1,
    num_probes: int | None = None,
    reverse: AbstractDenoiser | None = None,
    levels: Levels = uniform_log_snr,
) -> Scalar:
    r"""Mean square of `step_errors`, a dimension: how far Bayes' rule fails from a level to the next.

    As `step` falls it tends to the mean square residual of the heat equation, and so does its gradient: 0
    for the exact distribution, with an excess of order `step` where that is not Gaussian. Training
    differentiates a network twice.

    Args:
        energy: Energy to be judged.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`. They say only where the rule is asked for.
        normalizer: $L(t)$, for example a `LevelNormalizer`; 0 by default, and the energy learns it.
        step: Difference of log noise between the two levels; less than their range.
        num_probes: `None` for the whole covariance of the reverse kernel. A number for its mean variance from
            as many random probes; a wrong covariance would bias a square, so two independent steps are then
            made from each point and their errors multiplied, which may be negative.
        reverse: Whose score makes the reverse kernel; see `step_errors`.
        levels: Draws the times.

    Raises:
        ValueError: If `step` is not positive.
    """
    num_probes = whole_or_none("num_probes", num_probes, 1, "`None` takes the whole covariance.")
    size = math.prod(data.shape[1:])
    options = {"normalizer": normalizer, "step": step, "num_probes": num_probes, "reverse": reverse}
    if num_probes is None:
        errors, _ = step_errors(energy, key, data, levels=levels, **options)
        return jnp.mean(errors**2) / size
    key_start, key_step = jax.random.split(key)
    log_s, u = _starts(energy, key_start, data, step, levels)
    walk = lambda key: _walk(energy, key, u, log_s, **options)
    first, second = (walk(key) for key in jax.random.split(key_step))
    return jnp.mean(first * second) / size


def step_errors(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    normalizer: Normalizer | None = None,
    step: float = 0.1,
    num_probes: int | None = None,
    reverse: AbstractDenoiser | None = None,
    levels: Levels = uniform_log_snr,
) -> tuple[Array, tuple[Array, Array]]:
    r"""Errors of Bayes' rule between neighbouring levels along noised data, and the levels.

    $$\frac{1}{\delta}\big[\log p(u', s') + \log B(u \mid u') - \log p(u, s) - \log q(u' \mid u)\big],
      \qquad s' = e^\delta s.$$

    $B$ is the Gaussian with mean $u' + v g$ and covariance $v (I + v \nabla g)$, which are those of the exact
    kernel where $g = \nabla \log p(u', s')$ is exact. What its skewness leaves of an example is of order
    $\delta^{1/2}$, with a mean of order $\delta^2$.

    The gradient goes through the mean of $B$ but not through its covariance: to leading order, that is the
    gradient of the squared residual of the heat equation. Stopped altogether while $B$ follows the energy,
    it would not be a descent: errors $\varphi$ that the diffusion changes faster than the flow does grow.

    Args:
        energy: Energy to be judged.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`.
        normalizer: $L(t)$; 0 by default.
        step: $\delta$.
        num_probes: `None` for all second derivatives, a derivative of the score a dimension and one
            eigendecomposition; or the number of random probes for the mean variance alone.
        reverse: Denoiser whose score is $g$, a teacher for instance; no gradient goes through it. By default
            the energy itself.
        levels: Draws the times.

    Returns:
        Errors of shape `(num,)`, in nats a unit of log noise, and the times of the lower and upper level.

    Raises:
        ValueError: If `step` is not positive.
    """
    num_probes = whole_or_none("num_probes", num_probes, 1, "`None` takes the whole covariance.")
    key_start, key_step = jax.random.split(key)
    log_s, u = _starts(energy, key_start, data, step, levels)
    errors = _walk(energy, key_step, u, log_s, normalizer, step, num_probes, reverse)
    time = jax.vmap(lambda log_s: energy.schedule.time(-2 * log_s))
    return errors, (time(log_s), time(log_s + step))


def _starts(energy, key: PRNGKey, data: Array, step: float, levels: Levels) -> tuple[Array, Array]:
    """Log noise levels with room for a step above them, and data noised to them."""
    if not step > 0:
        raise ValueError(
            f"`step` must be a positive difference of log noise; got {step}. Try "
            f"0.1. {_faq.numbers}"
        )
    key_level, key_noise = jax.random.split(key)
    low, high = log_levels(energy, jnp.asarray([energy.t_min, energy.t_max]))
    drawn = log_levels(energy, levels(key_level, energy, len(data)))
    squeeze = jnp.maximum(1 - step / (high - low), 0)
    log_s = (low + (drawn - low) * squeeze).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)
    return log_s, data + jnp.exp(log_s)[(...,) + (None,) * (data.ndim - 1)] * noise


def _walk(energy, key, points, log_levels, normalizer, step, num_probes, reverse) -> Array:
    """One step of noise from each point, and the error of Bayes' rule over it."""
    log_p = log_density(energy, normalizer)
    own = jax.grad(log_density(energy, None))  # no L in a score
    score = own if reverse is None else _score(_stopped(reverse))
    still = jax.grad(log_density(_stopped(energy), None)) if reverse is None else score

    def one(u, log_s, key):
        key_step, key_probe = jax.random.split(key)
        log_next, v = log_s + step, jnp.exp(2 * log_s) * math.expm1(2 * step)
        eta = jax.random.normal(key_step, u.shape, u.dtype)
        u_next = u + jnp.sqrt(v) * eta
        # Deviations from the two means, in units of sqrt(v).
        forward, back = eta.ravel(), -(eta + jnp.sqrt(v) * score(u_next, log_next)).ravel()
        slope = lambda tangent: v * jvp(lambda u: still(u, log_next), u_next, tangent)
        # Data of one point leave exp(-2 step) of v. Laws narrower than noise allows must not be hidden.
        least = 0.25 * math.exp(-2 * step)
        if num_probes is None:
            units = jnp.eye(u.size, dtype=u.dtype).reshape(u.size, *u.shape)
            matrix = jax.vmap(slope)(units).reshape(u.size, u.size)
            values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(0.5 * (matrix + matrix.T)))
            back, spread = vectors.T @ back, jnp.maximum(1 + values, least)
        else:
            signs = jax.random.rademacher(key_probe, (num_probes, *u.shape), u.dtype)
            trace = jnp.mean(jax.vmap(lambda z: jnp.sum(z * slope(z)))(signs))
            spread = jax.lax.stop_gradient(jnp.maximum(1 + trace / u.size, least))
            spread = spread * jnp.ones_like(back)
        kernels = 0.5 * jnp.sum(forward**2 - back**2 / spread - jnp.log(spread))
        return (log_p(u_next, log_next) - log_p(u, log_s) + kernels) / step

    return jax.vmap(one)(points, log_levels, jax.random.split(key, len(points)))


def log_density(energy, normalizer: Normalizer | None) -> Callable[[Array, Scalar], Scalar]:
    """Log density of data noised to a log noise level, in units of the data."""

    def log_p(u, log_s):
        t = energy.schedule.time(-2 * log_s)
        alpha_t, _ = energy.schedule(t)
        constant = 0.0 if normalizer is None else normalizer(t)
        return u.size * jnp.log(alpha_t) - energy.energy(alpha_t * u, t) - constant

    return log_p


def _score(denoiser: AbstractDenoiser) -> Callable[[Array, Scalar], Array]:
    """Score of data noised to a log noise level, at the same level under the denoiser's own schedule."""

    def score(u, log_s):
        t = denoiser.schedule.time(-2 * log_s)
        alpha_t, _ = denoiser.schedule(t)
        return (denoiser.denoise(alpha_t * u, t) - u) / jnp.exp(2 * log_s)

    return score


def log_levels(energy, times: Array) -> Array:
    return jnp.log(jax.vmap(energy.schedule.noise_level)(times))


def _stopped(tree):
    stop = lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(stop, tree)


def jvp(function: Callable, at: Array, tangent: Array) -> Array:
    return jax.jvp(function, (at,), (tangent,))[1]
