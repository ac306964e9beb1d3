r"""Proximal policy optimisation (PPO) of a reverse diffusion, step by step."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import _faq
from ..._arguments import check_counts
from ..result import TrainingDiverged
from ..settings import make_optimiser, trainable_of
from .chain import ReverseChain
from .route import LIMIT, AbstractRoute, FinetuneResult, evidence

__all__ = ["PPO"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(AbstractRoute):
    r"""Policy gradient with a clipped ratio of Gaussian steps: proximal policy optimisation (PPO).

    Of paths drawn with the weights $\theta_0$ it takes `epochs` steps of ascent of

    $$\mathbb{E} \sum_k \min\big(\rho_k A_k,\ \mathrm{clip}(\rho_k, 1 \pm \epsilon) A_k\big) -
    \mathrm{KL}_k(\theta), \qquad
      \rho_k = p_\theta(u_{k+1} \mid u_k) / p_{\theta_0}(u_{k+1} \mid u_k).$$

    $A_k$ is $r / \alpha - \sum_{j > k} \mathrm{KL}_j$, the reward less what the rest of the path costs, less
    a *baseline*: its regression on $u_k$ over the other paths of the batch. It is not scaled to unit
    variance, which would weigh reward and divergence anew and lead elsewhere. $\mathrm{KL}_k$ is in closed
    form. No derivative of the reward is taken.

    Attributes:
        num_steps: Steps of the chain; see `DirectBackprop`.
        clip: $\epsilon$, positive.
        epochs: Updates that one batch of paths serves.

    Raises:
        ValueError: If a number is none, or out of range.

    References:
        Schulman et al. (2017), arXiv 1707.06347. Black et al. (2024), arXiv 2305.13301, and Fan et al.
        (2023), arXiv 2305.16381, for diffusion models.
    """

    num_steps: int = 32
    clip: float = 0.2
    epochs: int = 4

    def __post_init__(self):
        check_counts(self, num_steps=1, epochs=1)
        if not self.clip > 0:
            raise ValueError(
                f"`clip` of `PPO` must be positive, such as 0.2; got {self.clip}. A large one "
                f"clips nothing. {_faq.numbers}"
            )

    def run(self, key, task):
        if task.optimizer.accumulate > 1 or task.optimizer.devices is not None:
            raise ValueError(
                "`PPO` takes one batch on one device for an update; got an `optimizer` with `accumulate` or "
                f"`devices`. Drop them. {_faq.together}"
            )
        key_update, key_check, key_gain = jax.random.split(key, 3)
        chain, prior = ReverseChain(task.energy, self.num_steps), task.energy
        trainable = trainable_of(prior, task.trainable)
        weights, static = eqx.partition(trainable(prior), eqx.is_inexact_array)
        rebuild = lambda w: eqx.tree_at(trainable, prior, eqx.combine(w, static))
        rounds = max(task.steps // self.epochs, 1)
        optimiser = make_optimiser(
            task.learning_rate, task.optimizer.with_decay(0.0).weight_decay, rounds * self.epochs
        )

        def surrogate(weights, points, advantages, old):
            model = rebuild(weights)
            new = jax.vmap(lambda points: chain.log_ratios(model, points))(points)
            ratio = jnp.exp(new - old)
            gains = clipped(ratio, advantages, self.clip)
            return -jnp.mean(jnp.sum(gains, 1)) + jnp.mean(
                jnp.sum(divergences(chain, model, points), 1)
            )

        def one_round(carry, index):
            weights, average, state = carry
            keys = jax.random.split(jax.random.fold_in(key_update, index), task.batch_size)
            paths = jax.vmap(lambda key: chain.path(rebuild(weights), key))(keys)
            old = jax.vmap(lambda points: chain.log_ratios(rebuild(weights), points))(paths.points)
            rewards = jax.vmap(task.log_weight)(paths.points[:, -1])
            advantages = above_baseline(
                returns_of(rewards, paths.divergences), paths.points[:, :-1]
            )

            def epoch(carry, _):
                weights, state = carry
                slope = jax.grad(surrogate)(weights, paths.points, advantages, old)
                change, state = optimiser.update(slope, state, weights)
                return (optax.apply_updates(weights, change), state), None

            (weights, state), _ = jax.lax.scan(epoch, (weights, state), None, self.epochs)
            decay = jnp.minimum(task.optimizer.ema**self.epochs, (1 + index) / (10 + index))
            average = jax.tree.map(
                lambda a, w: (decay * a + (1 - decay) * w).astype(w.dtype), average, weights
            )
            return (weights, average, state), jnp.mean(jnp.sum(paths.divergences, 1) - rewards)

        run = jax.jit(lambda carry, index: jax.lax.scan(one_round, carry, index))

        @jax.jit
        def judge(weights):
            gain = lambda key: chain.gain(rebuild(weights), key, task.log_weight)
            return -jnp.mean(jax.vmap(gain)(jax.random.split(key_check, 1000)))

        carry: Any = (weights, weights, optimiser.init(weights))
        best, best_loss = weights, float(judge(weights))
        history = {"step": [0], "train_loss": [np.nan], "validation_loss": [best_loss]}
        per_check, misses, done = max(task.stopping.check_every // self.epochs, 1), 0, 0
        while done < rounds and misses < task.stopping.patience:
            index = jnp.arange(done, min(done + per_check, rounds))
            carry, losses = run(carry, index)
            done += len(index)
            score = float(judge(carry[1]))
            if not (bool(jnp.all(jnp.isfinite(losses))) and np.isfinite(score)):
                raise TrainingDiverged(
                    f"the loss became non-finite before step {done * self.epochs}. Lower `learning_rate`, "
                    "or bound the reward; `.energy` of this exception holds the best weights "
                    f"before. {_faq.diverged}",
                    rebuild(best), done * self.epochs, {n: np.asarray(v) for n, v in history.items()},
                )  # fmt: skip
            for name, value in zip(
                history, (done * self.epochs, float(losses.mean()), score), strict=True
            ):
                history[name].append(value)
            misses += 1
            if score < best_loss:
                best, best_loss, misses = carry[1], score, 0
        model = rebuild(best)
        calls = (
            self.num_steps * task.batch_size * done * (2 + 4 * self.epochs)
        )  # prior's without gradient
        return FinetuneResult(
            model, {name: np.asarray(values) for name, values in history.items()},
            *evidence(key_gain, chain, model, task.log_weight), calls, LIMIT,
        )  # fmt: skip


def clipped(ratio, advantage, clip: float):
    r"""$\min(\rho A, \mathrm{clip}(\rho, 1 \pm \epsilon) A)$, element by element."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def returns_of(rewards, divergences):
    r"""$r / \alpha - \sum_{j > k} \mathrm{KL}_j$ of each path from each step, of shape `(num, num_steps)`."""
    later = jnp.sum(divergences, 1, keepdims=True) - jnp.cumsum(divergences, 1)
    return rewards[:, None] - later


def divergences(chain: ReverseChain, model, points):
    r"""$\mathrm{KL}_k$ at given points, of shape `(num, num_steps)`, in nats."""

    def one(u, step):
        mean, sd = chain.moments(model, u, step)
        return 0.5 * jnp.sum(((mean - chain.moments(chain.prior, u, step)[0]) / sd) ** 2)

    return jax.vmap(lambda path: jax.vmap(one)(path[:-1], jnp.arange(chain.num_steps)))(points)


def above_baseline(returns, points):
    """Returns less their regression on the points, each from the other paths alone, shape `(num, num_steps)`.

    Args:
        returns: Of each path from each step, `(num, num_steps)`.
        points: Where the paths were, `(num, num_steps, *shape)`.
    """
    num = len(returns)
    flat = points.reshape(*returns.shape, -1)
    scaled = (flat - flat.mean(0)) / (flat.std(0) + 1e-6)

    def at(returns, features):
        design = jnp.concatenate([jnp.ones((num, 1), features.dtype), features], 1)
        gram = design.T @ design + 1e-3 * num * jnp.eye(design.shape[1], dtype=features.dtype)
        hat = design @ jnp.linalg.solve(gram, design.T)
        share = jnp.diagonal(hat)  # what a path has in its own prediction
        return (returns - hat @ returns) / (1 - share)

    return jax.vmap(at, 1, 1)(returns, scaled)
