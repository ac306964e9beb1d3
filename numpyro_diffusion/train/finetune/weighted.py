r"""The two routes without control: weights in the training of a model, and a value beside a model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_counts
from ..._typing import Array, Scalar
from ...energies import AbstractDenoiser
from ...energies.reverse import has_exact_draws
from ...factors import Tilt
from ..fit import fit
from ..settings import trainable_of
from ..value import fit_soft_value
from .chain import ReverseChain
from .route import AbstractRoute, FinetuneResult, evidence, prior_draws

__all__ = ["RewardWeighted", "ValueWeighted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardWeighted(AbstractRoute):
    r"""Denoising of draws of the prior with the weights $e^{r / \alpha}$: reward-weighted maximum likelihood.

    No derivative of the reward. `fit` with `weights=`, on `data` or draws of the prior. It sees what the
    prior drew and no more: for a standard normal and $r = a x$ a share of $e^{-a^2}$ of the draws counts.

    Attributes:
        num_draws: Draws of the prior, where there are no data.
        num_steps: Steps of a draw, for priors that have no exact ones.

    Raises:
        ValueError: If a number is none, or too small.

    References:
        Peng et al. (2019), arXiv 1910.00177. Uehara et al. (2024), arXiv 2407.13734, section 4.
    """

    num_draws: int = 10_000
    num_steps: int = 64

    def __post_init__(self):
        check_counts(self, num_draws=10, num_steps=1)

    def run(self, key, task):
        key_draws, key_check, key = jax.random.split(key, 3)
        data = prior_draws(key_draws, task, self.num_draws, self.num_steps)
        log_weights = np.asarray(jax.jit(jax.vmap(task.log_weight))(jnp.asarray(data)), float)
        if not np.isfinite(log_weights).all():
            raise ValueError(
                f"rewards must be finite; {(~np.isfinite(log_weights)).sum()} of {len(log_weights)} are "
                f"not. Bound the reward, or drop such examples from `data`. {_faq.reward}"
            )
        weights = np.exp(log_weights - log_weights.max())
        found = fit(
            key, task.energy, data, weights=weights, optimizer=task.optimizer,
            trainable=trainable_of(task.energy, task.trainable), **task.options(),
        )  # fmt: skip
        calls = 3 * task.batch_size * task.optimizer.accumulate * int(found.history["step"][-1])
        chain = ReverseChain(task.energy, self.num_steps)
        reached = evidence(key_check, chain, found.energy, task.log_weight)
        target = (
            "p(x) exp(r(x) / alpha), in the limit of many draws of the prior and many steps; weights leave "
            f"{found.ess:.0f} of the draws"
        )
        return FinetuneResult(found.energy, found.history, *reached, calls, target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueWeighted(AbstractRoute):
    r"""The prior as it is, led by a learned soft value: value-weighted sampling.

    `fit_soft_value` learns $\log \mathbb{E}[e^{r / \alpha} \mid u_t]$ on `data` or draws of the prior. What
    comes back is `energy + Tilt(reward, alpha, value)`: its weighted samplers are exact as particles become
    many, however bad the value is, and without weights they follow the value. Only the value is trained, as
    `fit_soft_value` does it; `optimizer` and `stopping` are its own.

    Attributes:
        num_draws: Draws of the prior, where there are neither data nor exact draws.
        num_steps: Steps of such a draw.
        differentiable: Whether derivatives of the reward may be taken in sampling.

    Raises:
        ValueError: If a number is none, or too small.
    """

    num_draws: int = 10_000
    num_steps: int = 64
    differentiable: bool = True

    def __post_init__(self):
        check_counts(self, num_draws=10, num_steps=1)

    def run(self, key, task):
        key_draws, key_check, key = jax.random.split(key, 3)
        if task.trainable is not None:
            raise TypeError(
                "`ValueWeighted` trains a value beside the prior, not the prior; got `trainable`. "
                f"Drop it. {_faq.together}"
            )
        data = task.data
        if data is None and not has_exact_draws(task.energy):
            data = prior_draws(key_draws, task, self.num_draws, self.num_steps)
        value = fit_soft_value(
            key, task.energy, task.reward, data, alpha=task.temperature, steps=task.steps,
            batch_size=task.batch_size, learning_rate=task.learning_rate, progress_bar=task.progress_bar,
        )  # fmt: skip
        chain = ReverseChain(task.energy, self.num_steps)
        led: Any = _Led(task.energy, value.net)
        reached = evidence(key_check, chain, led, task.log_weight)
        tilt = Tilt(task.reward, task.temperature, value, differentiable=self.differentiable)
        calls = 3 * task.batch_size * task.steps
        target = "p(x) exp(r(x) / alpha), with weights in the limit of many particles, whatever the value"
        history = {"step": np.array([0, task.steps])}
        return FinetuneResult(task.energy + tilt, history, *reached, calls, target)


class _Led(eqx.Module):
    r"""The denoised mean of a prior times a factor, $\hat x(u_t) + s_t^2 \nabla \log h_t(u_t)$."""

    prior: AbstractDenoiser
    log_h: Callable[..., Scalar]

    def denoise(self, x: Array, t: Scalar) -> Array:
        alpha_t, sigma_t = self.prior.schedule(t)
        slope = jax.grad(self.log_h)(x / alpha_t, t)
        return self.prior.denoise(x, t) + (sigma_t / alpha_t) ** 2 * slope
