r"""Training of density ratios for transfer to a small data set.

$q / p$ between the distribution $q$ of few target examples and that of the prior's many is learned by
telling one from the other. Its mean given noised data, $h_t = \mathbb{E}_p[q / p \mid u_t] = q_t / p_t$,
leads a sampler of the prior to the target.

References:
    Ouyang, Xie, Zha & Cheng (2024), Transfer Learning for Diffusion Models, NeurIPS, arXiv 2405.16876.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_numbers
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, added_variance, denoised_mean
from ..factors import Ratio
from ..nets import ResidualMLP
from .examples import check_examples
from .fit import fit
from .losses import karras_weight, uniform_log_snr
from .options import EarlyStopping, Optimizer
from .sources import Examples, Mixed
from .value import scalar_head, value_loss

__all__ = ["RatioClassifier", "density_ratio_classifier", "fit_ratio", "transfer_loss"]


def _two_numbers() -> Array:
    return jnp.zeros(2)


class RatioClassifier(eqx.Module):
    r"""$\log q(x) / p(x)$ of ONE clean example, as a classifier of two equally frequent classes has it.

    Attributes:
        net: Backbone, `net(w, 0)` of shape `shape`; the sum of its outputs is the log odds.
        mean: Mean of the examples.
        scale: Their standard deviation.
    """

    net: Callable[..., Array] = eqx.field(default_factory=ResidualMLP)
    mean: Array = eqx.field(default_factory=_two_numbers)
    scale: Array = eqx.field(default_factory=lambda: 1.0 + _two_numbers())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def __call__(self, x: Array) -> Scalar:
        w = (x - self.mean.astype(x.dtype)) / self.scale.astype(x.dtype)
        return jnp.sum(self.net(w, jnp.zeros((), x.dtype)))


def density_ratio_classifier(
    key: PRNGKey,
    source: Array,
    target: Array,
    *,
    net: Any = None,
    steps: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    progress_bar: bool = True,
) -> RatioClassifier:
    r"""$x \mapsto \log q(x) / p(x)$ from examples of $p$ and of $q$, by logistic regression with a network.

    Every batch is half source, half target, so the log odds are the log ratio whatever the sizes of the two
    sets. Training stops where held-out examples, a tenth of the smaller set from each, say so.

    Args:
        key: PRNG key.
        source: Examples of $p$, of shape `(num, *shape)`.
        target: Examples of $q$.
        net: Backbone, as `nets.ResidualMLP(key, shape)`; one of 64 units by default.
        steps: Largest number of updates.
        batch_size: Examples a gradient, even.
        learning_rate: Peak of a warm-up and cosine decay.
        weight_decay: Decoupled decay of matrices; the more, the smoother the ratio.
        progress_bar: Show progress and losses.

    Raises:
        ValueError: If examples do not fit, or there are fewer than ten of one kind.
    """
    key = check_key(key)
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    key_net, key_split, key = jax.random.split(key, 3)
    mixed, held_out = _halves(key_split, source, target, np.shape(source)[1:])
    everything = np.concatenate([np.asarray(source), np.asarray(target)])
    scale = np.std(everything, 0)
    net = ResidualMLP(key_net, everything.shape[1:], width=64) if net is None else net
    start = RatioClassifier(
        net, jnp.asarray(everything.mean(0)), jnp.asarray(np.where(scale > 0, scale, 1.0))
    )
    fitted = fit(
        key, start, mixed, validation=held_out, loss=_logistic,  # pyright: ignore
        trainable=lambda module: module.net, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, optimizer=Optimizer(weight_decay=weight_decay),
        stopping=EarlyStopping(check_every=50, validation_repeats=1), progress_bar=progress_bar,
    )  # fmt: skip
    return fitted.energy  # pyright: ignore[reportReturnType]


def transfer_loss(
    log_h,
    key: PRNGKey,
    data: Array,
    log_ratio: Callable[[Array], Scalar],
    energy: AbstractDenoiser,
    *,
    cycle: float = 0.0,
    consistency: float = 0.0,
) -> Scalar:
    r"""`value_loss` of a ratio over the source, and two terms that the target has a say in.

    - *Cycle*: the cross-entropy of telling noised source from noised target by $f$ alone, least where
      $f = \log q_t / p_t$. The paper trains a second network, a classifier that knows the time, and pulls $f$
      towards it; here $f$ is that classifier.
    - *Consistency*: denoising of the target, $\lambda(s)\,|\hat x_p(u_t) + \tau_t^2 \nabla f - x|^2$, with
      Karras's weight.

    Args:
        log_h: $f$.
        key: PRNG key.
        data: A batch: source in its first half, target in its second.
        log_ratio: $\log q(x) / p(x)$ for ONE example.
        energy: The distribution of the source.
        cycle: Weight of the cycle.
        consistency: Weight of the consistency.
    """
    source, target = jnp.split(data, 2)
    loss = value_loss(log_h, key, source, log_ratio, energy)
    if not (cycle or consistency):
        return loss
    # The loss above has split this key in two, and `fold_in` by 0 or 1 is one of these parts.
    key_level, key_noise = jax.random.split(jax.random.fold_in(key, 2))
    times = uniform_log_snr(key_level, energy, len(source)).astype(data.dtype)
    noise = jax.random.normal(key_noise, (2, *source.shape), data.dtype)

    def one(x_source, x_target, epsilons, t):
        tau = added_variance(energy, t)
        there, here = x_source + jnp.sqrt(tau) * epsilons[0], x_target + jnp.sqrt(tau) * epsilons[1]
        error = jax.nn.softplus(log_h(there, t)) + jax.nn.softplus(-log_h(here, t))
        if not consistency:
            return cycle * error
        guided = denoised_mean(energy, here, t) + tau * jax.grad(log_h)(here, t)
        s = energy.schedule.noise_level(t)
        squared = karras_weight(s, jnp.mean(log_h.scale)) * jnp.mean((guided - x_target) ** 2)
        return cycle * error + consistency * squared

    return loss + jnp.mean(jax.vmap(one)(source, target, noise.swapaxes(0, 1), times))


def fit_ratio(
    key: PRNGKey,
    energy: AbstractDenoiser,
    log_ratio: Callable[[Array], Scalar],
    source: Array,
    target: Array,
    *,
    cycle: float = 0.0,
    consistency: float = 0.0,
    net: Any = None,
    steps: int = 3000,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    progress_bar: bool = True,
) -> Ratio:
    r"""The factor that turns a prior into a target: a network for $\mathbb{E}_p[q / p \mid u_t]$.

    Ends in `log_ratio` itself at `t_min`: with it the distribution is $p\, e^{\text{log\_ratio}}$, and
    errors of the network at noisy levels are weighed out.

    Args:
        key: PRNG key.
        energy: The prior $p$.
        log_ratio: $\log q(x) / p(x)$ for ONE example, from `density_ratio_classifier` or known.
        source: Draws of the prior, of shape `(num, *shape)`.
        target: Examples of $q$.
        cycle: Weight of the cycle; see `transfer_loss`.
        consistency: Weight of the consistency, which takes the score of the prior in every step.
        net: Backbone, as `nets.ResidualMLP(key, shape)`; one of 64 units by default.
        steps: Largest number of updates.
        batch_size: Examples a gradient, even.
        learning_rate: Peak of a warm-up and cosine decay.
        progress_bar: Show progress and losses.

    Raises:
        ValueError: If examples do not fit, or there are fewer than ten of one kind.
    """
    key = check_key(key)
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    key_net, key_split, key = jax.random.split(key, 3)
    mixed, held_out = _halves(key_split, source, target, energy.shape)
    head = scalar_head(key_net if net is None else net, energy)  # the mean of a ratio is 1
    weights = {"cycle": cycle, "consistency": consistency}
    loss = lambda head, key, batch: transfer_loss(head, key, batch, log_ratio, energy, **weights)
    fitted = fit(
        key, head, mixed, validation=held_out, loss=loss, trainable=lambda head: head.net,  # pyright: ignore
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, progress_bar=progress_bar,
    )  # fmt: skip
    return Ratio(fitted.energy, log_ratio)  # pyright: ignore[reportArgumentType]


def _logistic(classifier, key: PRNGKey, batch: Array) -> Scalar:
    """Cross-entropy of telling the first half of a batch from the second."""
    del key
    source, target = jnp.split(jax.vmap(classifier)(batch), 2)
    return jnp.mean(jax.nn.softplus(source)) + jnp.mean(jax.nn.softplus(-target))


def _halves(key: PRNGKey, source, target, shape: tuple[int, ...]) -> tuple[Mixed, Array]:
    """Batches of which half is source and half is target, and one of them to judge by."""
    source, target = (
        check_examples(source, shape, "source"),
        check_examples(target, shape, "target"),
    )
    num = min(len(source), len(target)) // 10
    if num < 1:
        raise ValueError(
            f"expected at least 10 examples of source and of target; got {len(source)} and "
            f"{len(target)}. {_faq.examples}"
        )
    keys = jax.random.split(key)
    source, target = (
        jax.random.permutation(k, a) for k, a in zip(keys, (source, target), strict=True)
    )
    held_out = jnp.concatenate([source[:num], target[:num]])
    return Mixed((Examples(source[num:]), Examples(target[num:])), (1.0, 1.0)), held_out
