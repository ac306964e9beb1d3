"""One training loop: Adam with decay, averaged weights, held-out validation, early stopping.

Steps run in compiled chunks. After each chunk the averaged weights are judged on held-out examples
with noise that never changes, so two readings differ by the weights alone; the best reading is what
`fit` returns. Nothing else is kept between chunks: an interrupt returns the best so far, and a checkpoint
holds all that a run needs to go on as if it had never stopped.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from .._typing import Array, PRNGKey, PyTree, Scalar
from ..energies import AbstractDenoiser
from .checkpoint import Progress, read_progress, write_progress
from .fingerprint import fingerprint, names_of
from .result import FitResult, TrainingDiverged, training_verdict
from .settings import (
    check_options,
    default_decay,
    default_loss,
    forgetful,
    make_optimiser,
    null_of,
    split,
    spreader,
)
from .sources import Examples, as_source
from .units import in_units

__all__ = ["FitResult", "TrainingDiverged", "fit"]

Loss = Callable[..., Scalar]
"""`loss(energy, key, examples)`; with `condition=` as a keyword where data have conditions."""


@in_units
def fit(
    key: PRNGKey,
    energy: AbstractDenoiser,
    data,
    *,
    condition=None,
    null_rate: float = 0.1,
    weights=None,
    validation=None,
    steps: int = 10_000,
    batch_size: int = 128,
    accumulate: int = 1,
    learning_rate: float | optax.Schedule = 2e-3,
    weight_decay: float | None = None,
    ema: float = 0.999,
    patience: int = 10,
    check_every: int = 250,
    validation_repeats: int = 16,
    loss: Loss | None = None,
    augment: Callable[[PRNGKey, Array], Array] | None = None,
    trainable: Callable[[Any], PyTree] = lambda energy: (energy.net, energy.offset),
    devices: Sequence[Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress_bar: bool = True,
) -> FitResult:
    """Fit an energy to data by denoising, keeping the weights that do best on held-out examples.

    Args:
        key: PRNG key.
        energy: Energy to start from, for example `ProperEnergy.from_data(...)`; or a `Standardized`
            distribution, with data in its units, whose energy is trained.
        data: Floating, finite examples of shape `(num, *energy.shape)`; or a function `fn(key) -> example`;
            or an iterator over batches; or `Mixed` of these. See `numpyro_diffusion.train.sources`.
        condition: With an array of data, one label or vector an example, for `energy.given`. Functions and
            iterators return pairs `(example, condition)` instead.
        null_rate: Share of conditions that training replaces by the null of the network's `condition`, so
            that the distribution without condition is learned too.
        weights: With an array of data, one weight an example, not negative. The distribution learned is that
            of the
            data times the weights: with $e^{r / \\alpha}$ the distribution tilted by a reward $r$. See `ess`.
        validation: Held-out examples of shape `(num, *energy.shape)`, or a pair of them and their
            conditions. `None` holds out a tenth of an array (a fifth, up to 50, of fewer than 500), or draws
            1,000 from a function.
        steps: Largest number of updates.
        batch_size: Examples a gradient, drawn with replacement.
        accumulate: Gradients that are averaged for one update, for batches that memory does not hold.
        learning_rate: Peak of a warm-up and cosine decay over `steps`, or an optax schedule.
        weight_decay: Decoupled decay of matrices; vectors (biases) are left alone. `None` takes 0.01 for many
            examples and more for few, see `settings.default_decay`.
        ema: Decay of the average of the weights, 0 for none.
        patience: Validation checks without a new best before training stops.
        check_every: Updates between two checks.
        validation_repeats: Noise draws an example of the validation set.
        loss: `loss(energy, key, batch)`, called with `condition=` where data have conditions; the default is
            `energy_loss` (`denoising_loss` for a denoiser without energy) at the scale of `data`.
        augment: `augment(key, example) -> example`, applied to every training example.
        trainable: Selects what is trained; the default fits the energies of this package.
        devices: Devices over which every batch is spread, the weights being on each; one by default.
        checkpoint: A file that is written at every check. Where it exists already, training goes on from it,
            and ends with the same weights, bit for bit, as a run that was never interrupted. It is refused
            if data, a number, or one of the functions above differ; functions are compared by the programs
            that JAX traces from them, which another release of JAX can write in another way.
        progress_bar: Show progress and losses.

    Raises:
        TypeError: If data are not floating.
        ValueError: If shapes disagree, data are not finite, an option is out of range, or the checkpoint is
            of another run.
        TrainingDiverged: If the loss becomes non-finite; it carries the last good weights.

    Warns:
        UserWarning: If no check was better than the start, so that nothing was learned; see
            `FitResult.verdict`.
    """
    counts = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}
    counts |= {
        "patience": patience,
        "check_every": check_every,
        "validation_repeats": validation_repeats,
    }
    steps, batch_size, accumulate, patience, check_every, validation_repeats = check_options(
        ema, null_rate, **counts
    )
    energy = forgetful(energy)
    key_split, key_validation, key = jax.random.split(key, 3)
    source, held_out = split(
        key_split, as_source(data, energy.shape, condition, weights), energy.shape, validation
    )
    null = null_of(energy, null_rate) if held_out.condition is not None else None
    loss = default_loss(energy, held_out, source) if loss is None else loss
    weight_decay = default_decay(source, energy.shape) if weight_decay is None else weight_decay
    optimiser = make_optimiser(learning_rate, weight_decay, steps)
    ess = source.ess if isinstance(source, Examples) else None
    weights, static = eqx.partition(trainable(energy), eqx.is_inexact_array)
    spread = spreader(devices, batch_size)

    def rebuild(weights):
        return eqx.tree_at(trainable, energy, eqx.combine(weights, static))

    def loss_of(weights, key, batch):
        told = {} if batch.condition is None else {"condition": batch.condition}
        return loss(rebuild(weights), key, batch.examples, **told)

    def gradient(weights, key, fed):
        key_batch, key_augment, key_loss = jax.random.split(key, 3)
        batch = source.draw(key_batch, batch_size, fed)
        if augment is not None:
            keys = jax.random.split(key_augment, batch_size)
            batch = batch._replace(examples=jax.vmap(augment)(keys, batch.examples))
        if batch.condition is not None and null is not None:
            drop = jax.random.bernoulli(jax.random.fold_in(key, 1), null_rate, (batch_size,))
            drop = drop.reshape(-1, *(1,) * (batch.condition.ndim - 1))
            batch = batch._replace(condition=jnp.where(drop, null, batch.condition))
        return jax.value_and_grad(loss_of)(weights, key_loss, jax.tree.map(spread, batch))

    def update(carry, step):
        weights, average, state = carry
        step, fed = step
        key_step = jax.random.fold_in(key, step)
        if accumulate == 1:
            value, slope = gradient(weights, key_step, fed)
        else:
            keys = jax.random.split(key_step, accumulate)
            parts = jax.lax.map(lambda arg: gradient(weights, *arg), (keys, fed))
            value, slope = jax.tree.map(lambda leaf: leaf.mean(0), parts)
        change, state = optimiser.update(slope, state, weights)
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
        return jnp.mean(jax.lax.map(lambda k: loss_of(weights, k, held_out), keys))

    def feed(num_steps):
        rows = [source.feed(batch_size) for _ in range(num_steps * accumulate)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        if accumulate == 1:
            return stacked
        return jax.tree.map(lambda leaf: leaf.reshape(-1, accumulate, *leaf.shape[1:]), stacked)

    score = float(judge(weights))
    history = {"step": [0], "train_loss": [np.nan], "validation_loss": [score]}
    start = (weights, weights, optimiser.init(weights))
    run = Progress(start, weights, score, 0, 0, 0, history)
    settings = {
        "key": np.asarray(jax.random.key_data(key)).tolist(), "data": source.fingerprint(),
        "steps": steps, "batch_size": batch_size, "accumulate": accumulate, "ema": ema,
        "weight_decay": weight_decay, "patience": patience, "check_every": check_every,
        "null_rate": null_rate, "start": score, "trainable": names_of(weights, energy),
    }  # fmt: skip
    if checkpoint is not None:
        told = jax.value_and_grad(loss_of)
        settings |= {
            "loss": fingerprint(told, weights, key, held_out),
            "augment": fingerprint(augment, key, held_out.examples[0]),
            "sampler": [fingerprint(fn, key) for fn in source.functions()],
            "learning_rate": fingerprint(learning_rate, jnp.asarray(0))
            if callable(learning_rate)
            else learning_rate,
        }
        run = read_progress(checkpoint, run, settings)
        feed(run.step) if run.step else None
    stopped = "patience" if run.misses >= patience else "steps"
    with tqdm(total=steps, initial=run.step, disable=not progress_bar, desc="fit") as bar:
        try:
            while run.step < steps and run.misses < patience:
                chunk = np.arange(run.step, min(run.step + check_every, steps))
                carry, losses = run_chunk(run.carry, (chunk, feed(len(chunk))))
                run = _checked(
                    run, carry, np.asarray(losses), float(judge(carry[1])), rebuild, steps
                )
                if checkpoint is not None:
                    write_progress(checkpoint, run, settings)
                train, score = run.history["train_loss"][-1], run.history["validation_loss"][-1]
                bar.set_postfix_str(
                    f"train {train:.4f}, held out {score:.4f}, best {run.best_loss:.4f}",
                    refresh=False,
                )
                bar.update(len(chunk))
                stopped = "patience" if run.misses >= patience else "steps"
        except KeyboardInterrupt:
            stopped = "interrupted"
        except StopIteration:
            stopped = "exhausted"
        words = training_verdict(run.history, run.best_step)
        if run.best_step == 0:
            bar.set_postfix_str(words)
    if run.best_step == 0:
        warnings.warn(f"training {words}", stacklevel=3)  # the caller, past `in_units`
    best = run.best_step, run.best_loss
    return FitResult(rebuild(run.best), _arrays(run.history), *best, stopped, ess)


def _checked(
    run: Progress, carry, losses: np.ndarray, score: float, rebuild, steps: int
) -> Progress:
    """The run after a chunk, if its losses are numbers."""
    if not (np.isfinite(losses).all() and np.isfinite(score)):
        bad = run.step + int(np.argmin(np.isfinite(losses)))
        raise TrainingDiverged(
            f"the loss became non-finite at step {bad} of {steps}. Lower `learning_rate` or scale the data "
            "to order one; `.energy` of this exception holds the averaged weights of step "
            f"{run.step}.",
            rebuild(run.carry[1]), bad, _arrays(run.history),
        )  # fmt: skip
    step = run.step + len(losses)
    new = (step, float(losses.mean()), score)
    history = {n: [*run.history[n], v] for n, v in zip(run.history, new, strict=True)}
    run = run._replace(carry=carry, step=step, misses=run.misses + 1, history=history)
    if score < run.best_loss:
        run = run._replace(best=carry[1], best_loss=score, best_step=step, misses=0)
    return run


def _arrays(history: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in history.items()}
