"""`fit_recovery`: training by recovery likelihood."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import whole_numbers
from .._typing import Array, PRNGKey, PyTree
from ..energies import AbstractEnergy
from ..nets import ResidualMLP
from ..smc.moves import Move
from .fit import fit
from .initializer import Initializer
from .losses import Levels, denoising_loss, level_loss, uniform_log_snr
from .recovery import RecoveryReport, recovery_loss
from .result import TrainingDiverged, training_verdict
from .settings import forgetful
from .units import in_units

__all__ = ["RecoveryResult", "fit_recovery"]


class RecoveryResult(NamedTuple):
    """Result of `fit_recovery`.

    Attributes:
        energy: The trained energy, with the averaged weights of the best validation loss.
        initializer: The initialiser of the same step.
        history: Arrays of one length: `step`; `train_loss` and `validation_loss`, the denoising loss of the
            energy and its weighed `level_loss`; `acceptance` and `energy_gap` (nats), those of
            `RecoveryReport`, means over the steps before.
        best_step: Step of the returned weights.
        best_loss: Their validation loss.
        stopped: Why training ended: `"steps"`, `"patience"` or `"interrupted"`.
    """

    energy: AbstractEnergy
    initializer: Initializer
    history: dict[str, np.ndarray]
    best_step: int
    best_loss: float
    stopped: str

    @property
    def learned(self) -> bool:
        """True if any check on held-out examples was better than the start; if not, `energy` is the start."""
        return self.best_step > 0

    @property
    def verdict(self) -> str:
        """Summary in words: by how much the held-out loss fell, or that nothing was learned and what to
        do.
        """
        return training_verdict(self.history, self.best_step)


class _Pair(eqx.Module):
    """What `fit` trains here."""

    energy: Any
    initializer: Initializer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.energy.shape


@in_units
def fit_recovery(
    key: PRNGKey,
    energy: AbstractEnergy,
    data,
    *,
    initializer: Initializer | None = None,
    num_levels: int = 6,
    num_moves: int = 15,
    move: Move | None = None,
    step_size: float | None = None,
    levels: Levels = uniform_log_snr,
    level_weight: float = 0.1,
    validation=None,
    steps: int = 10_000,
    batch_size: int = 128,
    learning_rate: Any = 2e-3,
    weight_decay: float = 1e-2,
    ema: float = 0.999,
    patience: int = 10,
    check_every: int = 250,
    validation_repeats: int = 16,
    augment: Callable[[PRNGKey, Array], Array] | None = None,
    trainable: Callable[[Any], PyTree] = lambda energy: (energy.net, energy.offset),
    progress_bar: bool = True,
) -> RecoveryResult:
    r"""Fit an energy by recovery likelihood, with an initialiser that learns beside it.

    The ladder has `num_levels` steps of one ratio of noise from `t_min` to `t_max`. Its rungs are drawn anew
    for every example, so that the energy is learned at all times and any sampler of this package can follow
    it. A contrast of energies says nothing about progress; weights are judged by the denoising loss of the
    energy on held-out examples, which never enters a gradient, and their `level_loss`.

    Args:
        key: PRNG key.
        energy: Energy to start from, for example `ProperEnergy.from_data(...)`, or a `Standardized`
            distribution.
        data: Floating, finite examples of shape `(num, *energy.shape)`.
        initializer: Initialiser to start from; a small `ResidualMLP` by default.
        num_levels: Steps of the ladder, at least 1.
        num_moves: Moves of each negative, at least 1.
        move: Kind of move; `mala()` by default.
        step_size: Of the moves, see `recovery_loss`; $0.8\, n^{-1/3}$ by default in $n$ dimensions.
        levels: Draws the times of the less noisy rungs.
        level_weight: Weight of `level_loss`, which ties levels together: a contrast is local, so by itself it
            leaves the masses of far regions almost free at low noise. 0 for the method of the papers.
        validation: As in `fit`, like all that follow.
        steps: Largest number of updates.
        batch_size: Examples an update.
        learning_rate: Peak of a warm-up and cosine decay, or an optax schedule.
        weight_decay: Decay of matrices.
        ema: Decay of the average of the weights.
        patience: Checks without a new best before training stops.
        check_every: Updates between two checks.
        validation_repeats: Noise draws an example of the validation set.
        augment: `augment(key, example) -> example`.
        trainable: Selects what is trained of the energy; of the initialiser it is the network.
        progress_bar: Show progress and losses.

    Raises:
        TypeError: If there is no energy, or data are not floating.
        ValueError: If an option is out of range, or what `fit` raises.
        TrainingDiverged: If that loss becomes non-finite; it carries the last good weights.
    """
    num_levels, num_moves = whole_numbers(1, num_levels=num_levels, num_moves=num_moves)
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`fit_recovery` expects an energy; got {type(energy).__name__}. A denoiser can be fitted with "
            "`fit`."
        )
    if step_size is not None and not step_size > 0:
        raise ValueError(f"`step_size` of `fit_recovery` must be positive; got {step_size}.")
    key_net, key = jax.random.split(key)
    if initializer is None:
        net = ResidualMLP(key_net, energy.shape, width=64)
        initializer = Initializer.from_energy(net, energy)
    ends = [float(energy.schedule.log_snr(jnp.asarray(t))) for t in (energy.t_min, energy.t_max)]
    size = math.prod(energy.shape)
    scale = float(np.sqrt(np.mean(np.var(np.asarray(data), 0)))) or 1.0
    settings = {
        "ratio": math.exp(0.5 * (ends[0] - ends[1]) / num_levels),
        "num_moves": num_moves,
        "move": move,
        "step_size": 0.8 * size ** (-1 / 3) if step_size is None else step_size,
        "levels": levels,
    }
    reports: list[tuple[float, float]] = []

    def parts(pair):
        chosen = trainable(pair.energy)
        chosen = chosen if isinstance(chosen, tuple | list) else (chosen,)
        return (*chosen, pair.initializer.net)

    def levels_agree(energy, key, batch):
        return level_weight * level_loss(energy, key, batch) if level_weight > 0 else 0.0

    def value(pair, key, batch):
        key, key_level = jax.random.split(key)
        loss = denoising_loss(pair.energy, key, batch, levels=levels, data_scale=scale)
        return loss + levels_agree(pair.energy, key_level, batch)

    def contrast(pair, key, batch):
        key, key_level = jax.random.split(key)
        loss, report = recovery_loss(pair.energy, pair.initializer, key, batch, **settings)
        return loss + levels_agree(pair.energy, key_level, batch), report

    try:
        found = fit(
            key,
            _Pair(forgetful(energy), initializer),  # pyright: ignore[reportArgumentType]
            data,
            loss=_with_gradient_of(contrast, value, reports),
            trainable=parts,
            validation=validation,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            ema=ema,
            patience=patience,
            check_every=check_every,
            validation_repeats=validation_repeats,
            augment=augment,
            progress_bar=progress_bar,
        )
    except TrainingDiverged as error:
        pair: Any = error.energy
        error.energy, error.history = pair.energy, _with_reports(error.history, reports)
        raise
    pair = found.energy
    history = _with_reports(found.history, reports)
    best = found.best_step, found.best_loss, found.stopped
    return RecoveryResult(pair.energy, pair.initializer, history, *best)


def _with_gradient_of(contrast: Callable, value: Callable, reports: list) -> Callable:
    """A loss with the value of one function and the gradient of another, which also reports.

    Negatives are made for a gradient only: judging held-out examples costs no chain.
    """

    @eqx.filter_custom_vjp
    def loss(pair, key, batch):
        return value(pair, key, batch)

    @loss.def_fwd
    def forward(perturbed, pair, key, batch):
        del perturbed
        gradient, report = eqx.filter_grad(contrast, has_aux=True)(pair, key, batch)
        jax.debug.callback(_note(reports), *report, ordered=True)
        return value(pair, key, batch), gradient

    @loss.def_bwd
    def backward(gradient, cotangent, perturbed, pair, key, batch):
        del perturbed, pair, key, batch
        return jax.tree.map(lambda leaf: cotangent.astype(leaf.dtype) * leaf, gradient)

    return loss


def _note(reports: list) -> Callable:
    return lambda *numbers: reports.append(tuple(float(number) for number in numbers))


def _with_reports(history: dict[str, np.ndarray], reports: list) -> dict[str, np.ndarray]:
    """The history of `fit` and the means of the reports between its checks."""
    jax.effects_barrier()
    steps = history["step"]
    rows = np.asarray(reports, float).reshape(-1, len(RecoveryReport._fields))
    means = [np.full(rows.shape[1], np.nan)]
    means += [rows[low:high].mean(0) for low, high in zip(steps[:-1], steps[1:], strict=True)]
    return history | dict(zip(RecoveryReport._fields, np.transpose(means), strict=True))
