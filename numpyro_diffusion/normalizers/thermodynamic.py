r"""The prior's normaliser, $L(t_{\min}) = \log \int e^{-E(x, t_{\min})} dx$, from data and without a sampler.

Noised data are draws of $p_t$ at every level if the data are draws of the energy's own distribution. Two
estimates rest on that. Where model and data differ, both are off by about the model's error, and the spread
over data is a sign of it; a run of the sampler on the prior alone (`prior_normalizer`) has no such error.

Scaling is free: $L$ is the same for densities of $x_t$ and of $u = x_t / \alpha_t$, since the Jacobian of
`energy.log_density` is that of the change of variable.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._prng import lean
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..density.paths import (
    check_data,
    check_finite,
    gauss_legendre,
    log_noise,
    over_examples,
    times_at,
)
from ..density.reference import Reference
from ..energies import AbstractEnergy
from ..energies.check import check_has_density

__all__ = ["Normalizer", "anchor_normalizer", "thermodynamic_normalizer"]


class Normalizer(NamedTuple):
    r"""An estimate of $L(t_{\min})$; `energy.with_log_normalizer(value, standard_error)` takes it.

    Attributes:
        value: $L(t_{\min})$ in nats.
        standard_error: Of `value`, in nats. It knows of chance alone, not of model error.
        method: How it was had.
        evaluations: Evaluations of the energy; `None` where they were not counted.
        spread: Standard deviation of what single examples say, in nats; NaN where nothing is said by
            single examples.
    """

    value: float
    standard_error: float
    method: str
    evaluations: int | None
    spread: float = math.nan

    __repr__ = record
    _repr_html_ = record_page


def thermodynamic_normalizer(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    *,
    num_nodes: int = 32,
    num_noises: int = 1,
    num_anchors: int = 2000,
    initial: Any = None,
    batch_size: int | None = 500,
) -> Normalizer:
    r"""Normaliser by thermodynamic integration over the noise levels of noised data.

    $L'(t) = -\mathbb{E}_{p_t}[\partial_t E(X_t, t)]$, integrated from $t_{\max}$, where an importance sample
    anchors it. Along a path $u_s = x_0 + s \epsilon$ the time derivative is a total derivative, known at the
    ends, less a score term, so that with $F = -\log p_s(u)$ up to $L$

    $$L(t_{\min}) = L(t_{\max}) + \mathbb{E}\Big[F(u_{s_{\max}}) - F(u_{s_{\min}})
      + \int \big(s \epsilon \cdot \nabla \log p_s + c\,(s \epsilon \cdot \nabla \log p_s
      + s^2 |\nabla \log p_s|^2)\big)\, d \log s\Big] .$$

    An offset of the energy that depends on time then enters at the ends alone. The bracket with $c$ has
    mean zero, for $\mathbb{E}[\epsilon \mid u_s] = -s \nabla \log p_s$; with $c = 1$, which is used, every
    example has the same mean if the energy is exact. The integral is by Gauss-Legendre in $\log s$, with
    fresh noise at every node and its mirror image; the same for the Gaussian of the data, where it is
    known to vanish, is subtracted. `adjacent_normalizer` is more precise at the same cost.

    Right if the data follow the energy's own distribution (exact draws of a closed form; about so for the
    data of a well-trained prior) and if the energies of all levels belong together. Otherwise biased by the
    model's error, of which `spread` is a sign. The standard error is that of independent examples.

    Args:
        energy: The prior. A stored `log_normalizer` is not looked at.
        data: Clean examples of shape `(num, *shape)`, in the units of the prior.
        key: PRNG key.
        num_nodes: Nodes in log noise level.
        num_noises: Pairs of mirrored noises an example and node.
        num_anchors: Draws of the importance sample at `t_max`.
        initial: Distribution that they are drawn from, with `sample(key)` and `log_prob(u)`; the Gaussian of
            `energy.moments(t_max)` by default.
        batch_size: Examples that are evaluated at once, to bound memory; all of them if `None`.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data or numbers cannot be used.
        FloatingPointError: If a log density is NaN or +inf; the message names the example.

    References:
        Li & Yan (2024), A Score-Based Density Formula, arXiv 2408.16765. Gelman & Meng (1998),
        Simulating normalizing constants, Statistical Science.
    """
    check_has_density("thermodynamic_normalizer", energy)
    counts = {"num_noises": num_noises, "num_nodes": num_nodes, "batch_size": batch_size}
    data = check_data(energy, data, num_anchors=num_anchors, **counts)
    log_s, weights = gauss_legendre(log_noise(energy, [energy.t_min, energy.t_max]), num_nodes)
    times = times_at(energy, log_s)
    key_anchor, key_data = jax.random.split(lean(key))
    caller = "thermodynamic_normalizer"
    anchor, anchor_error = anchor_normalizer(energy, key_anchor, num_anchors, initial, caller)
    keys = jax.random.split(key_data, len(data))
    nodes = times, jnp.asarray(weights[0], data.dtype)
    values = np.asarray(
        _path_values(energy, Reference.of(data), data, keys, nodes, num_noises, batch_size), float
    )
    check_finite(caller, values)
    spread = float(values.std(ddof=1))
    evaluations = 2 * len(data) * num_noises * (len(log_s) + 2) + num_anchors
    return Normalizer(
        anchor + float(values.mean()),
        math.hypot(anchor_error, spread / len(values) ** 0.5),
        f"thermodynamic integration over {len(data)} noised examples",
        evaluations,
        spread,
    )


@eqx.filter_jit
def _path_values(energy, reference, data, keys, nodes, num_noises, batch_size):
    """Each example's $L(t_{min}) - L(t_{max})$, shape `(num,)`."""
    ends = jnp.asarray([energy.t_min, energy.t_max], data.dtype)

    def both(u, t):
        value, score = unnormalized(energy, u, t)
        other, other_score = reference.log_density_and_score(u, energy.schedule.noise_level(t))
        return value, score, other, other_score

    def gap(x0, noise, t):
        """Of the log densities, to the reference."""
        value, _, other, _ = both(x0 + energy.schedule.noise_level(t) * noise, t)
        return value - other

    def slope(x0, noise, t):
        s = energy.schedule.noise_level(t)
        _, score, _, other = both(x0 + s * noise, t)
        term = lambda g: jnp.sum(s * g * (2 * noise + s * g))
        return term(score) - term(other)

    def mirrored(function, x0, key, t):
        noise = jax.random.normal(key, x0.shape, x0.dtype)
        return 0.5 * (function(x0, noise, t) + function(x0, -noise, t))

    def path(x0, key):
        times, weights = nodes
        keys = jax.random.split(lean(key), len(times) + 2)
        slopes = jax.lax.map(lambda at: mirrored(slope, x0, *at), (keys[2:], times))
        clean, noisy = jax.lax.map(lambda at: mirrored(gap, x0, *at), (keys[:2], ends))
        return clean - noisy + jnp.sum(weights * slopes)

    def one(x0, key):
        return jnp.mean(jax.lax.map(lambda k: path(x0, k), jax.random.split(key, num_noises)))

    return over_examples(one, batch_size, data, keys)


def unnormalized(energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
    """Log density of $u$ and its gradient as the energy alone has them, no normaliser taken off."""
    log_density, score = energy.log_density_and_score(u, t)
    return log_density + (0.0 if energy.log_normalizer is None else energy.log_normalizer), score


def anchor_normalizer(
    energy: AbstractEnergy,
    key: PRNGKey,
    num_draws: int,
    initial: Any = None,
    caller: str = "anchor_normalizer",
) -> tuple[float, float]:
    r"""$L(t_{\max})$ and its standard error, by importance sampling from a distribution of $u$ at `t_max`."""
    log_weights = np.asarray(_anchor_weights(energy, key, num_draws, initial), float)
    check_finite(caller, log_weights, "draws at t_max")
    top = log_weights.max()
    weights = np.exp(log_weights - top)
    error = weights.std(ddof=1) / weights.mean() / num_draws**0.5 if num_draws > 1 else math.inf
    return float(top + np.log(weights.mean())), float(error)


@eqx.filter_jit
def _anchor_weights(energy, key, num_draws, initial):
    t = jnp.asarray(energy.t_max, jnp.result_type(float))
    alpha_t, _ = energy.schedule(t)
    mean, variance = (m.astype(t.dtype) for m in energy.moments(t))

    def one(key):
        if initial is not None:
            u = initial.sample(key)
            return unnormalized(energy, u, t)[0] - initial.log_prob(u)
        noise = jax.random.normal(key, energy.shape, t.dtype)
        u = (mean + jnp.sqrt(variance) * noise) / alpha_t
        log_volume = jnp.log(2 * jnp.pi * variance) - 2 * jnp.log(alpha_t)
        return unnormalized(energy, u, t)[0] + 0.5 * jnp.sum(noise**2 + log_volume)

    return jax.vmap(one)(jax.random.split(key, num_draws))
