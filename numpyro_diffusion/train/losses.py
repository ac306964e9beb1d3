r"""Losses: denoising score matching, and agreement of energies across levels.

*Denoising* teaches the score at each level. For $x_t = \alpha_t x_0 + \sigma_t \epsilon$ and noise level
$s = \sigma_t/\alpha_t$ the loss is $\lambda(s)\,\lVert \hat x_0(x_t) - x_0 \rVert^2$ with Karras's weight
$\lambda(s) = (s^2 + d^2) / (s d)^2$, in units where a useless denoiser costs about 1 a dimension at
every level. The levels are drawn by a function that the caller may replace.

Denoising alone leaves energies between far-off regions almost free: at low noise no example lies
between two digits, so nothing says which is the more likely, and nothing keeps regions without data
up. *Level classification* does. Given $x$ noised to one of several levels, Bayes' rule says which from
the energies alone; the cross-entropy of that guess ties every level to the next, up to pure noise,
where the regions overlap. A sampler that anneals from noise to data needs exactly this.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from .anchors import Anchors, anchor_loss
from .levels import Levels, Weight, karras_weight, level_bounds, times_at_levels, uniform_log_snr

__all__ = ["denoising_loss", "energy_loss", "given_each", "level_loss", "weighted_error"]


def given_each(denoiser: Any, condition: Array | None) -> Any:
    """The denoiser under a condition; as it is for none."""
    return denoiser if condition is None else denoiser.given(condition)


def weighted_error(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    target: Callable[[Array, Array, Scalar, Array | None], Array],
    *,
    levels: Levels,
    data_scale: Scalar | float,
    condition: Array | None,
    weight: Weight = karras_weight,
    worst: Callable[[Callable[[Array], Array], Array, Scalar], Array] | None = None,
) -> Scalar:
    r"""Mean over examples and dimensions of $\lambda(s)\,(\hat x_0(u_t) - \text{target})^2$ on noised data.

    Args:
        denoiser: Energy or denoiser to be judged.
        key: PRNG key.
        data: Examples $x_0$ of shape `(num, *shape)`.
        target: `target(x_0, u, s, condition)`, what the denoiser should say of $u = x_0 + s \epsilon$.
        levels: Draws the times, `levels(key, denoiser, num)`.
        data_scale: $d$, the standard deviation of the data in $\lambda$.
        condition: One an example, leading with `(num,)`, or `None`.
        weight: $\lambda(s)$.
        worst: `worst(error, x, t)`, the error to be counted where the denoiser is judged elsewhere than at
            $x_t$; `error(x)` is the denoiser's there. `error(x)` itself by default.
    """
    key_level, key_noise = jax.random.split(key)
    times = levels(key_level, denoiser, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def one(x_0, t, epsilon, c):
        alpha_t, sigma_t = denoiser.schedule(t)
        s = sigma_t / alpha_t
        u = x_0 + s * epsilon
        own = given_each(denoiser, c)
        error_at = lambda x: own.denoise(x, t) - target(x_0, u, s, c)
        x = alpha_t * u
        error = error_at(x) if worst is None else worst(error_at, x, t)
        return weight(s, data_scale) * jnp.mean(error**2)

    return jnp.mean(jax.vmap(one)(data, times, noise, condition))


def denoising_loss(
    denoiser: AbstractDenoiser,
    key: PRNGKey,
    data: Array,
    *,
    levels: Levels = uniform_log_snr,
    data_scale: Scalar | float = 1.0,
    condition: Array | None = None,
    weight: Weight = karras_weight,
) -> Scalar:
    r"""Mean over examples and dimensions of $\lambda(s)\,(\hat x_0 - x_0)^2$, one level an example.

    Args:
        denoiser: Energy or denoiser to be judged.
        key: PRNG key. The same key gives the same noise, so that two denoisers compare in pairs.
        data: Examples of shape `(num, *shape)`.
        levels: Draws the times, `levels(key, denoiser, num)`.
        data_scale: $d$, the standard deviation of the data in $\lambda$.
        condition: One an example, leading with `(num,)`, or `None`.
        weight: `karras_weight` or `likelihood_weight`, which makes the loss a likelihood.
    """
    clean = lambda x_0, u, s, c: x_0
    options = {"levels": levels, "data_scale": data_scale, "condition": condition}
    return weighted_error(denoiser, key, data, clean, weight=weight, **options)


def level_loss(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    group: int = 8,
    window: float = 0.1,
    condition: Array | None = None,
) -> Scalar:
    r"""Cross-entropy, in nats, of guessing the level of noised data from its energies.

    In a group of $k$ examples noised to levels $t_1, \dots, t_k$ (as densities of $u = x_t/\alpha_t$),
    $p(j \mid u) = \mathrm{softmax}_j\big(n \log \alpha_{t_j} - E(\alpha_{t_j} u, t_j)\big)$. Half of the
    groups spread over all levels, half over a short window of them.

    Args:
        energy: Energy to be judged.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`; the last `num % group` are left out, and fewer than
            `group` are repeated, each at several levels.
        group: Levels among which to guess, at least 2.
        window: Width of the short windows, as a fraction of the range of log-SNR.
        condition: One an example, leading with `(num,)`, or `None`.

    Raises:
        ValueError: If there is no example, or `group` is below 2.

    References:
        Yadin, Elata & Michaeli (2024), Classification Diffusion Models, NeurIPS.
    """
    group = whole_number("group", group, 2)
    if group < 2 or len(data) == 0:
        raise ValueError(
            f"expected at least 1 example and a `group` of at least 2 levels; got {len(data)} examples and "
            f"group={group}. Use the default, 8 levels. {_faq.examples}"
        )
    # An example may stand at several levels, with other noise at each.
    copies = -(-group // len(data))
    data, condition = jax.tree.map(
        lambda a: jnp.tile(a, (copies,) + (1,) * (a.ndim - 1)), (data, condition)
    )
    num_groups = len(data) // group
    key_start, key_level, key_noise = jax.random.split(key, 3)
    grouped = lambda a: a[: num_groups * group].reshape(num_groups, group, *a.shape[1:])
    data, condition = jax.tree.map(grouped, (data, condition))
    width = jnp.where(jnp.arange(num_groups) % 2 == 0, 1.0, window)[:, None]
    start = (1 - width) * jax.random.uniform(key_start, (num_groups, 1))
    cells = (jnp.arange(group) + jax.random.uniform(key_level, (num_groups, group))) / group
    low, high = level_bounds(energy)
    times = times_at_levels(energy, low + (high - low) * (start + width * cells)).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def energy_of(u, t, c):
        alpha_t, _ = energy.schedule(t)
        return given_each(energy, c).energy(alpha_t * u, t) - u.size * jnp.log(alpha_t)

    def one(x_0, t, epsilon, c):
        levels = jax.vmap(energy.schedule.noise_level)(t)
        u = x_0 + levels[(...,) + (None,) * (x_0.ndim - 1)] * epsilon
        table = jax.vmap(lambda u, c: jax.vmap(lambda t: energy_of(u, t, c))(t))(u, c)
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(-table, axis=1)))

    return jnp.mean(jax.vmap(one)(data, times, noise, condition))


def energy_loss(
    energy: AbstractEnergy,
    key: PRNGKey,
    data: Array,
    *,
    data_scale: Scalar | float = 1.0,
    level_weight: float = 0.1,
    anchors: Anchors | None = None,
    anchor_weight: float = 0.1,
    condition: Array | None = None,
) -> Scalar:
    """`denoising_loss`, a little of `level_loss`, and of `anchor_loss`: for an energy to be sampled.

    The small terms tie levels and regions together and cost the denoiser next to nothing; large, they
    do cost.

    Args:
        energy: Energy to be judged.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`.
        data_scale: Standard deviation of the data.
        level_weight: Weight of `level_loss`.
        anchors: From `make_anchors` of an energy trained without, or `None`. As many as `data` are
            drawn from them.
        anchor_weight: Weight of `anchor_loss`.
        condition: One an example, leading with `(num,)`, or `None`. Anchors have no condition.
    """
    key_denoise, key_level, key_anchor = jax.random.split(key, 3)
    loss = denoising_loss(energy, key_denoise, data, data_scale=data_scale, condition=condition)
    loss += level_weight * level_loss(energy, key_level, data, condition=condition)
    if anchors is None:
        return loss
    index = jax.random.randint(key_anchor, (len(data),), 0, len(anchors.times))
    chosen = Anchors(*(leaf[index] for leaf in anchors))
    return loss + anchor_weight * anchor_loss(energy, chosen)
