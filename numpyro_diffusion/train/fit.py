"""One training loop: Adam with decay, averaged weights, held-out validation, early stopping.

Steps run in compiled chunks. After each chunk the averaged weights are judged on held-out examples
with noise that never changes, so two readings differ by the weights alone; the best reading is what
`fit` returns. Nothing else is kept between chunks: an interrupt returns the best so far, and a checkpoint
holds all that a run needs to go on as if it had never stopped.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _faq
from .._arguments import check_instance, whole_numbers
from .._familiar import familiar
from .._finite import outside
from .._numbers import number
from .._prng import check_key
from .._progress import progress
from .._staging import fingerprint
from .._typing import Array, PRNGKey, PyTree
from ..energies import AbstractDenoiser
from .checkpoint import Progress, read_progress, write_progress
from .options import EarlyStopping, Optimizer
from .result import FitResult, TrainingDiverged, training_verdict
from .settings import (
    default_decay,
    default_loss,
    forgetful,
    make_optimiser,
    names_of,
    null_of,
    parted,
    split,
    spreader,
)
from .sources import Examples, as_source
from .units import in_units
from .updates import Contrast, Loss, Updates

__all__ = ["FitResult", "TrainingDiverged", "fit"]


@familiar
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
    learning_rate: float | optax.Schedule = 2e-3,
    loss: Loss | Contrast | None = None,
    augment: Callable[[PRNGKey, Array], Array] | None = None,
    trainable: Callable[[Any], PyTree] = lambda energy: (energy.net, energy.offset),
    optimizer: Optimizer = Optimizer(),  # noqa: B008 - it never changes
    stopping: EarlyStopping = EarlyStopping(),  # noqa: B008
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
            of the data times the weights: with $e^{r / \\alpha}$ the distribution tilted by a reward $r$. See
            `ess`.
        validation: Held-out examples of shape `(num, *energy.shape)`, or a pair of them and their
            conditions. `None` holds out a tenth of an array (a fifth, up to 50, of fewer than 500), or draws
            1,000 from a function.
        steps: Largest number of updates.
        batch_size: Examples a gradient, drawn with replacement.
        learning_rate: Peak of a warm-up and cosine decay over `steps`, or an optax schedule.
        loss: `loss(energy, key, batch)`, called with `condition=` where data have conditions; the default is
            `energy_loss` (`denoising_loss` for a denoiser without energy) at the scale of `data`. Where the
            gradient is of a function whose value says nothing of progress, a `Contrast` of the two.
        augment: `augment(key, example) -> example`, applied to every training example.
        trainable: Selects what is trained; the default fits the energies of this package.
        optimizer: Weight decay, average of the weights, accumulated gradients, devices; see `Optimizer`.
        stopping: How often held-out examples are looked at, and when that ends training; see
            `EarlyStopping`.
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
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    key = check_key(key)
    if not isinstance(getattr(energy, "shape", None), tuple):
        raise TypeError(
            f"`energy` must be an energy or a denoiser, such as `nd.ProperEnergy.from_data(net, data)`; got "
            f"{energy!r:.60}. {_faq.kinds}"
        )
    remedy = "It is a share of conditions."
    null_rate = number("null_rate", null_rate, least=0, below=1, remedy=remedy)
    check_instance(
        "optimizer", optimizer, Optimizer, "train.Optimizer(weight_decay=0.1)", optional=False
    )
    check_instance(
        "stopping", stopping, EarlyStopping, "train.EarlyStopping(patience=3)", optional=False
    )
    energy = forgetful(energy)
    key_split, key_validation, key = jax.random.split(key, 3)
    source, held_out = split(
        key_split, as_source(data, energy.shape, condition, weights), energy.shape, validation
    )
    null = null_of(energy, null_rate) if held_out.condition is not None else None
    loss = default_loss(energy, held_out, source) if loss is None else loss
    optimizer = optimizer.with_decay(default_decay(source, energy.shape))
    transform = make_optimiser(learning_rate, optimizer.weight_decay, steps)
    ess = source.ess if isinstance(source, Examples) else None
    weights, static = parted(trainable, energy)

    def rebuild(weights):
        return eqx.tree_at(trainable, energy, eqx.combine(weights, static))

    def called(fn, weights, key, batch):
        told = {} if batch.condition is None else {"condition": batch.condition}
        return fn(rebuild(weights), key, batch.examples, **told)

    shown = loss.loss if isinstance(loss, Contrast) else loss
    reported = (
        loss.with_reports if isinstance(loss, Contrast) else lambda *a, **k: (loss(*a, **k), {})
    )
    objective = lambda *args: called(reported, *args)
    update = Updates(
        objective, source, batch_size, optimizer.accumulate, optimizer.ema, transform, key,
        spreader(optimizer.devices, batch_size), augment, null, null_rate,
    )  # fmt: skip
    run_chunk = jax.jit(lambda carry, steps: jax.lax.scan(update, carry, steps))

    @jax.jit
    def judge(weights):
        keys = jax.random.split(key_validation, stopping.validation_repeats)
        return jnp.mean(jax.lax.map(lambda k: called(shown, weights, k, held_out), keys))

    bar = progress(
        total=steps,
        enabled=progress_bar,
        desc="fit",
        compiles="a step (once for each call)",
    )
    with bar:
        score = float(judge(weights))
        history = {"step": [0], "train_loss": [np.nan], "validation_loss": [score]}
        history |= {name: [np.nan] for name in (loss.names if isinstance(loss, Contrast) else ())}
        start = (weights, weights, transform.init(weights))
        run = Progress(start, weights, score, 0, 0, 0, history)
        settings = {
            "key": np.asarray(jax.random.key_data(key)).tolist(), "data": source.fingerprint(),
            "steps": steps, "batch_size": batch_size, "accumulate": optimizer.accumulate,
            "ema": optimizer.ema, "weight_decay": optimizer.weight_decay,
            "patience": stopping.patience, "check_every": stopping.check_every,
            "null_rate": null_rate, "start": score, "trainable": names_of(weights, energy),
        }  # fmt: skip
        if checkpoint is not None:
            slope_of = jax.value_and_grad(objective, has_aux=True)
            settings |= {
                "loss": fingerprint(slope_of, weights, key, held_out),
                "augment": fingerprint(augment, key, held_out.examples[0]),
                "sampler": [fingerprint(fn, key) for fn in source.functions()],
                "learning_rate": fingerprint(learning_rate, jnp.asarray(0))
                if callable(learning_rate)
                else learning_rate,
            }
            run = read_progress(checkpoint, run, settings)
            update.feed(run.step) if run.step else None
        ended = lambda: "patience" if run.misses >= stopping.patience else "steps"
        stopped = ended()
        bar.initial = bar.n = run.step
        try:
            while run.step < steps and run.misses < stopping.patience:
                chunk = np.arange(run.step, min(run.step + stopping.check_every, steps))
                carry, reports = run_chunk(run.carry, (chunk, update.feed(len(chunk))))
                run = _checked(run, carry, reports, float(judge(carry[1])), rebuild, steps)
                if checkpoint is not None:
                    write_progress(checkpoint, run, settings)
                train, score = run.history["train_loss"][-1], run.history["validation_loss"][-1]
                bar.set_postfix_str(
                    f"train {train:.4f}, held out {score:.4f}, best {run.best_loss:.4f}",
                    refresh=False,
                )
                bar.update(len(chunk))
                stopped = ended()
        except KeyboardInterrupt:
            stopped = "interrupted"
        except StopIteration:
            stopped = "exhausted"
        words = training_verdict(run.history, run.best_step)
        if run.best_step == 0:
            bar.set_postfix_str(words)
    if run.best_step == 0:
        warnings.warn(f"training {words}", stacklevel=outside())
    best = run.best_step, run.best_loss
    return FitResult(rebuild(run.best), _arrays(run.history), *best, stopped, ess)


def _checked(run: Progress, carry, reports, score: float, rebuild, steps: int) -> Progress:
    """The run after a chunk, if its losses are numbers."""
    reports = {name: np.asarray(values) for name, values in reports.items()}
    losses = reports["train_loss"]
    if not (np.isfinite(losses).all() and np.isfinite(score)):
        bad = run.step + int(np.argmin(np.isfinite(losses)))
        raise TrainingDiverged(
            f"the loss became non-finite at step {bad} of {steps}. Lower `learning_rate` or scale the data "
            "to order one; `.energy` of this exception holds the averaged weights of step "
            f"{run.step}. {_faq.diverged}",
            rebuild(run.carry[1]), bad, _arrays(run.history),
        )  # fmt: skip
    step = run.step + len(losses)
    new = {name: float(values.mean()) for name, values in reports.items()}
    new |= {"step": step, "validation_loss": score}
    history = {name: [*values, new[name]] for name, values in run.history.items()}
    run = run._replace(carry=carry, step=step, misses=run.misses + 1, history=history)
    if score < run.best_loss:
        run = run._replace(best=carry[1], best_loss=score, best_step=step, misses=0)
    return run


def _arrays(history: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in history.items()}
