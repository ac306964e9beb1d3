"""One training loop: Adam with decay, averaged weights, held-out validation, early stopping.

Steps run in compiled chunks. After each chunk the averaged weights are judged on held-out examples
with noise that never changes, so two readings differ by the weights alone; the best reading is what
`fit` returns. Nothing else is kept between chunks, and an interrupt returns the best so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from .._typing import Array, PRNGKey, PyTree, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from .losses import denoising_loss, energy_loss

__all__ = ["FitResult", "TrainingDiverged", "fit"]

Loss = Callable[[AbstractDenoiser, PRNGKey, Array], Scalar]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        energy: The trained energy, with the averaged weights of the best validation loss.
        history: Arrays of one length: `step`, `train_loss` (mean over the steps before), and
            `validation_loss`.
        best_step: Step of the returned weights.
        best_loss: Their validation loss.
        stopped: Why training ended: `"steps"`, `"patience"` or `"interrupted"`.
    """

    energy: AbstractDenoiser
    history: dict[str, np.ndarray]
    best_step: int
    best_loss: float
    stopped: str


class TrainingDiverged(FloatingPointError):
    """The loss became non-finite. `energy` holds the last good weights, `step` says when."""

    def __init__(self, message: str, energy: AbstractDenoiser, step: int, history: dict):
        super().__init__(message)
        self.energy, self.step, self.history = energy, step, history


def fit(
    key: PRNGKey,
    energy: AbstractDenoiser,
    data,
    *,
    validation=None,
    steps: int = 10_000,
    batch_size: int = 128,
    learning_rate: float | optax.Schedule = 2e-3,
    weight_decay: float = 1e-2,
    ema: float = 0.999,
    patience: int = 10,
    check_every: int = 250,
    validation_repeats: int = 16,
    loss: Loss | None = None,
    augment: Callable[[PRNGKey, Array], Array] | None = None,
    trainable: Callable[[Any], PyTree] = lambda energy: (energy.net, energy.offset),
    progress_bar: bool = True,
) -> FitResult:
    """Fit an energy to data by denoising, keeping the weights that do best on held-out examples.

    Args:
        key: PRNG key.
        energy: Energy to start from, for example `InnerProductEnergy.from_data(...)`.
        data: Floating, finite examples of shape `(num, *energy.shape)`.
        validation: Held-out examples of the same form, or `None` to hold out a tenth of `data`.
        steps: Largest number of updates.
        batch_size: Examples an update, drawn with replacement.
        learning_rate: Peak of a warm-up and cosine decay over `steps`, or an optax schedule.
        weight_decay: Decoupled decay of matrices; vectors (biases) are left alone.
        ema: Decay of the average of the weights, 0 for none.
        patience: Validation checks without a new best before training stops.
        check_every: Updates between two checks.
        validation_repeats: Noise draws an example of the validation set.
        loss: `loss(energy, key, batch)`; the default is `energy_loss` (`denoising_loss` for a denoiser
            without energy) at the scale of `data`.
        augment: `augment(key, example) -> example`, applied to every training example.
        trainable: Selects what is trained; the default fits the energies of this package.
        progress_bar: Show progress and losses.

    Raises:
        TypeError: If data are not floating.
        ValueError: If shapes disagree, data are not finite, or an option is out of range.
        TrainingDiverged: If the loss becomes non-finite; it carries the last good weights.
    """
    key_split, key_validation, key = jax.random.split(key, 3)
    data = _checked(data, energy.shape, "data")
    if validation is None:
        order = jax.random.permutation(key_split, len(data))
        held_out = max(1, len(data) // 10)
        data, validation = data[order[held_out:]], data[order[:held_out]]
    validation = _checked(validation, energy.shape, "validation")
    _check_options(steps, batch_size, ema, patience, check_every, len(data))
    if loss is None:
        scale = float(np.sqrt(np.mean(np.var(data, 0))))
        if scale == 0:
            raise ValueError(
                f"`data` must vary; all {len(data)} examples are equal. Pass more data, or a `loss`."
            )
        default: Callable = energy_loss if isinstance(energy, AbstractEnergy) else denoising_loss
        loss = lambda e, k, batch: default(e, k, batch, data_scale=scale)

    if not callable(learning_rate):
        warmup = min(200, steps // 10)
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup, steps, 0.01 * learning_rate
        )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            learning_rate,
            weight_decay=weight_decay,
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
        ),
    )
    weights, static = eqx.partition(trainable(energy), eqx.is_inexact_array)

    def rebuild(weights):
        return eqx.tree_at(trainable, energy, eqx.combine(weights, static))

    def update(carry, step):
        weights, average, state = carry
        key_batch, key_augment, key_loss = jax.random.split(jax.random.fold_in(key, step), 3)
        batch = data[jax.random.randint(key_batch, (batch_size,), 0, len(data))]
        if augment is not None:
            batch = jax.vmap(augment)(jax.random.split(key_augment, batch_size), batch)
        value, gradient = jax.value_and_grad(lambda w: loss(rebuild(w), key_loss, batch))(weights)
        change, state = optimiser.update(gradient, state, weights)
        weights = optax.apply_updates(weights, change)
        # The average forgets the start: its decay grows with the number of steps (as in TensorFlow).
        decay = jnp.minimum(ema, (1 + step) / (10 + step)).astype(value.dtype)
        average = jax.tree.map(
            lambda a, w: (decay * a + (1 - decay) * w).astype(w.dtype), average, weights
        )
        return (weights, average, state), value

    run_chunk = jax.jit(lambda carry, steps: jax.lax.scan(update, carry, steps))

    @jax.jit
    def judge(weights):
        keys = jax.random.split(key_validation, validation_repeats)
        return jnp.mean(jax.lax.map(lambda k: loss(rebuild(weights), k, validation), keys))

    carry = (weights, weights, optimiser.init(weights))
    best = (float(judge(weights)), 0, weights)
    history: dict[str, list] = {"step": [0], "train_loss": [np.nan], "validation_loss": [best[0]]}
    stopped, step, misses = "steps", 0, 0
    with tqdm(total=steps, disable=not progress_bar, desc="fit") as bar:
        try:
            while step < steps:
                chunk = np.arange(step, min(step + check_every, steps))
                next_carry, losses = run_chunk(carry, chunk)
                losses = np.asarray(losses)
                score = float(judge(next_carry[1]))
                if not (np.isfinite(losses).all() and np.isfinite(score)):
                    bad = step + int(np.argmin(np.isfinite(losses)))
                    raise TrainingDiverged(
                        f"the loss became non-finite at step {bad} of {steps}. Lower "
                        f"`learning_rate` or scale the data to order one; `.energy` of this "
                        f"exception holds the averaged weights of step {step}.",
                        rebuild(carry[1]), bad, _arrays(history),
                    )  # fmt: skip
                carry, step = next_carry, int(chunk[-1]) + 1
                for name, value in zip(history, (step, losses.mean(), score), strict=True):
                    history[name].append(value)
                misses = 0 if score < best[0] else misses + 1
                best = min(best, (score, step, carry[1]), key=lambda entry: entry[0])
                bar.set_postfix_str(
                    f"train {losses.mean():.4f}, held out {score:.4f}, best {best[0]:.4f}",
                    refresh=False,
                )
                bar.update(len(chunk))
                if misses >= patience:
                    stopped = "patience"
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
    return FitResult(rebuild(best[2]), _arrays(history), best[1], best[0], stopped)


def _arrays(history: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in history.items()}


def _checked(data, shape: tuple[int, ...], what: str) -> Array:
    array = np.asarray(data)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"`{what}` must be floating; got {array.dtype}. Convert and scale it to order one, "
            "e.g. `images / 8.0 - 1.0` for grey values 0 to 16."
        )
    if array.shape[1:] != shape or len(array) == 0:
        raise ValueError(
            f"`{what}` must have shape (num, {', '.join(map(str, shape))}) with num >= 1 to match the "
            f"energy; got {array.shape}. Put examples along the first axis."
        )
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(bad):
        raise ValueError(
            f"`{what}` must be finite; {len(bad)} of {len(array)} examples are not (first: "
            f"{bad[0]}). Drop or impute them."
        )
    return jnp.asarray(array)


def _check_options(steps, batch_size, ema, patience, check_every, num):
    if min(steps, batch_size, patience, check_every) < 1 or not 0 <= ema < 1:
        raise ValueError(
            "expected steps, batch_size, patience, check_every >= 1 and 0 <= ema < 1; got "
            f"{steps}, {batch_size}, {patience}, {check_every}, {ema}."
        )
    if num < 2:
        raise ValueError(f"expected at least 2 training examples; got {num}.")
