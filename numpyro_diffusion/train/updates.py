"""One update of the weights, and what it is made of: a batch, a gradient, Adam, an average."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._typing import Array, PRNGKey, PyTree, Scalar
from .sources import AbstractSource

__all__ = ["Contrast", "Loss", "Updates"]

Loss = Callable[..., Scalar]
"""`loss(energy, key, examples)`; with `condition=` as a keyword where data have conditions."""


class Contrast(NamedTuple):
    """A loss whose gradient is that of another function, for objectives whose value says nothing of progress.

    Judging held-out examples costs no evaluation of the objective, nor of the chains that it may run.

    Attributes:
        loss: What is reported, and judged on held-out examples.
        objective: `objective(energy, key, examples) -> (value, numbers)`: what the gradient is of, and what
            else to report, in the order of `names`.
        names: Names of the numbers, whose means between two checks are in the history.
    """

    loss: Loss
    objective: Callable[..., tuple[Scalar, tuple[Scalar, ...]]]
    names: tuple[str, ...]

    def with_reports(self, *args, **told) -> tuple[Scalar, dict[str, Scalar]]:
        """The objective, and everything for the history by name."""
        value, numbers = self.objective(*args, **told)
        reports = dict(zip(self.names, numbers, strict=True))
        return value, {"train_loss": self.loss(*args, **told)} | reports


@dataclasses.dataclass(frozen=True, eq=False)  # JAX knows a function by its identity
class Updates:
    """Updates of the weights as `jax.lax.scan` takes them.

    Attributes:
        objective: `objective(weights, key, batch) -> (value, reports)`; the value is the training loss unless
            the reports hold one.
        source: Where batches come from.
        batch_size: Examples a gradient.
        accumulate: Gradients an update.
        ema: Decay of the average of the weights.
        optimiser: Optax's transformation of the gradient.
        key: PRNG key of all updates; each has its own part of it.
        spread: Spreads an array of a batch over devices.
        augment: `augment(key, example) -> example`, or `None`.
        null: The condition that stands for none, or `None` where training does without.
        null_rate: Share of conditions replaced by it.
    """

    objective: Callable[..., tuple[Scalar, dict[str, Scalar]]]
    source: AbstractSource
    batch_size: int
    accumulate: int
    ema: float
    optimiser: Any
    key: PRNGKey
    spread: Callable[[Array], Array]
    augment: Callable[[PRNGKey, Array], Array] | None
    null: Array | None
    null_rate: float

    def gradient(self, weights: PyTree, key: PRNGKey, fed: Any):
        """Reports and gradient of one batch."""
        key_batch, key_augment, key_loss, key_null = jax.random.split(key, 4)
        batch = self.source.draw(key_batch, self.batch_size, fed)
        if self.augment is not None:
            keys = jax.random.split(key_augment, self.batch_size)
            batch = batch._replace(examples=jax.vmap(self.augment)(keys, batch.examples))
        if batch.condition is not None and self.null is not None:
            drop = jax.random.bernoulli(key_null, self.null_rate, (self.batch_size,))
            drop = drop.reshape(-1, *(1,) * (batch.condition.ndim - 1))
            batch = batch._replace(condition=jnp.where(drop, self.null, batch.condition))
        slope_of = jax.value_and_grad(self.objective, has_aux=True)
        (value, reports), slope = slope_of(weights, key_loss, jax.tree.map(self.spread, batch))
        return {"train_loss": value} | reports, slope

    def __call__(self, carry, step):
        """One update of weights, their average and the optimiser's state; and its reports."""
        weights, average, state = carry
        step, fed = step
        key = jax.random.fold_in(self.key, step)
        if self.accumulate == 1:
            reports, slope = self.gradient(weights, key, fed)
        else:
            keys = jax.random.split(key, self.accumulate)
            parts = jax.lax.map(lambda arg: self.gradient(weights, *arg), (keys, fed))
            reports, slope = jax.tree.map(lambda leaf: leaf.mean(0), parts)
        change, state = self.optimiser.update(slope, state, weights)
        weights = optax.apply_updates(weights, change)
        # The average forgets the start: its decay grows with the number of steps (as in TensorFlow).
        decay = jnp.minimum(self.ema, (1 + step) / (10 + step)).astype(reports["train_loss"].dtype)
        average = jax.tree.map(
            lambda a, w: (decay * a + (1 - decay) * w).astype(w.dtype), average, weights
        )
        return (weights, average, state), reports

    def feed(self, num_steps: int) -> Any:
        """What the host hands over for so many updates."""
        rows = [self.source.feed(self.batch_size) for _ in range(num_steps * self.accumulate)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        if self.accumulate == 1:
            return stacked
        return jax.tree.map(
            lambda leaf: leaf.reshape(-1, self.accumulate, *leaf.shape[1:]), stacked
        )
