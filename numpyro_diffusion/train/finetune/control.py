r"""Routes that steer the reverse diffusion: by the slope of the reward, or by values along paths."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._arguments import check_counts, whole_or_none
from ...nets.scalar import ScalarHead
from ..fit import fit
from ..settings import trainable_of
from ..value import scalar_head
from .chain import ReverseChain
from .route import LIMIT, AbstractRoute, FinetuneResult, evidence

__all__ = ["DirectBackprop", "PathConsistency"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectBackprop(AbstractRoute):
    r"""Gradient ascent of $\mathbb{E}[r / \alpha] - \mathrm{KL}$ through the draws (direct backpropagation).

    $\mathrm{KL} = \sum \tfrac12 |\delta|^2$ along the path, Girsanov's $\tfrac12 \int |u|^2 / g^2\, dt$ in
    the limit. The reward needs a derivative. The least noisy of the gradients, and the dearest: back through
    every step.

    Attributes:
        num_steps: Steps of the chain. Its variances are those of the prior, which costs accuracy where the
            reward narrows: in variance about $1 / \text{num\_steps}$ of a unit for a reward that makes a
            fifth of it.

    Raises:
        ValueError: If a number is none, or too small.

    References:
        Clark et al. (2024), arXiv 2309.17400. Uehara et al. (2024), Fine-Tuning of Continuous-Time Diffusion
        Models as Entropy-Regularized Control, arXiv 2402.15194, for the divergence.
    """

    num_steps: int = 32

    def __post_init__(self):
        check_counts(self, num_steps=1)

    def run(self, key, task):
        key, key_gain = jax.random.split(key)
        chain = ReverseChain(task.energy, self.num_steps)

        def loss(model, key, starts):
            gain = lambda key, start: chain.gain(model, key, task.log_weight, start)
            return -jnp.mean(jax.vmap(gain)(jax.random.split(key, len(starts)), starts))

        found = fit(
            key, task.energy, chain.start, loss=loss, optimizer=task.optimizer.with_decay(0.0),
            trainable=trainable_of(task.energy, task.trainable), **task.options(),
        )  # fmt: skip
        paths = task.batch_size * task.optimizer.accumulate * int(found.history["step"][-1])
        calls = 6 * self.num_steps * paths  # own and prior's, each with a gradient
        reached = evidence(key_gain, chain, found.energy, task.log_weight)
        return FinetuneResult(found.energy, found.history, *reached, calls, LIMIT)


class _Guess(eqx.Module):
    """What `fit` trains for path consistency."""

    energy: Any
    log_h: ScalarHead

    @property
    def shape(self) -> tuple[int, ...]:
        return self.energy.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathConsistency(AbstractRoute):
    r"""Model and value that agree along paths (path consistency learning, PCL).

    $$\log h_s(u_s) + \log p(u_s \mid u_t) = \log h_t(u_t) + \log p_\theta(u_s \mid u_t).$$

    Mean square of what is left of it over `length` steps, from every level of paths of the model itself, with
    $\log h = r / \alpha$ at the end. Zero at the tilted distribution and there alone, without noise. No
    derivative of the reward is taken.

    Attributes:
        num_steps: Steps of the chain; see `DirectBackprop`.
        length: Steps over which the equation is held, 1 for the textbook's; to the end of the path by
            default, so that rewards are felt at all levels at once.

    Raises:
        ValueError: If a number is none, or too small.

    References:
        Nachum et al. (2017), Bridging the Gap Between Value and Policy Based Reinforcement Learning, arXiv
        1702.08892.
    """

    num_steps: int = 32
    length: int | None = None

    def __post_init__(self):
        check_counts(self, num_steps=1)
        whole_or_none("length` of `PathConsistency", self.length, 1, "`None` goes to the end.")

    def run(self, key, task):
        key, key_net, key_gain = jax.random.split(key, 3)
        chain = ReverseChain(task.energy, self.num_steps)
        end = jnp.minimum(
            jnp.arange(chain.num_steps) + (self.length or chain.num_steps), chain.num_steps
        )

        def left(guess, key, start):
            frozen = jax.tree.map(jax.lax.stop_gradient, guess.energy)
            points = jax.lax.stop_gradient(chain.path(frozen, key, start).points)
            log_h = jax.vmap(guess.log_h)(points[:-1], chain.times[:-1])
            log_h = jnp.append(log_h, task.log_weight(points[-1]).astype(log_h.dtype))
            passed = jnp.cumsum(chain.log_ratios(guess.energy, points))
            level = log_h - jnp.concatenate([jnp.zeros(1, passed.dtype), passed])
            return jnp.mean((level[end] - level[:-1]) ** 2)

        def loss(guess, key, starts):
            return jnp.mean(
                jax.vmap(lambda *arg: left(guess, *arg))(jax.random.split(key, len(starts)), starts)
            )

        chosen = trainable_of(task.energy, task.trainable)

        def parts(guess):
            model = chosen(guess.energy)
            return (*(model if isinstance(model, tuple | list) else (model,)), guess.log_h.net)

        start: Any = _Guess(task.energy, scalar_head(key_net, task.energy))
        found = fit(
            key, start, chain.start, loss=loss, optimizer=task.optimizer.with_decay(0.0),
            trainable=parts, **task.options(),
        )  # fmt: skip
        model: Any = found.energy
        paths = task.batch_size * task.optimizer.accumulate * int(found.history["step"][-1])
        calls = 9 * self.num_steps * paths  # a path of two models, then own, prior's, and value
        reached = evidence(key_gain, chain, model.energy, task.log_weight)
        return FinetuneResult(model.energy, found.history, *reached, calls, LIMIT)
