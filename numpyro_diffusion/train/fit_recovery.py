"""`fit_recovery`: training by recovery likelihood."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance, whole_numbers
from .._prng import check_key
from .._records import record, record_page
from .._typing import PRNGKey
from ..energies import AbstractEnergy
from ..nets import ResidualMLP
from ..smc.moves import Move
from .examples import check_examples
from .fit import fit
from .initializer import Initializer
from .losses import Levels, denoising_loss, level_loss, uniform_log_snr
from .options import Optimizer
from .recovery import RecoveryReport, recovery_loss
from .result import FitResult, TrainingDiverged
from .settings import forgetful
from .units import in_units
from .updates import Contrast

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

    __repr__ = record
    _repr_html_ = record_page

    learned = FitResult.learned
    verdict = FitResult.verdict


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
    **options: Any,
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
            leaves the masses of far regions almost free at low noise. The contrast is a mean over dimensions,
            so that one over their number counts a nat of either alike. 0 for the method of the papers.
        **options: Those of `fit`, except `loss`, `condition` and `checkpoint`. `trainable` selects what is
            trained of the energy; of the initialiser it is the network.

    Raises:
        TypeError: If there is no energy, data are not floating, or an option is none of those.
        ValueError: If an option is out of range, or what `fit` raises.
        TrainingDiverged: If that loss becomes non-finite; it carries the last good weights.
    """
    key = check_key(key)
    num_levels, num_moves = whole_numbers(1, num_levels=num_levels, num_moves=num_moves)
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`fit_recovery` expects an energy; got {type(energy).__name__}. A denoiser can be fitted with "
            f"`fit`. {_faq.kinds}"
        )
    for name in ("loss", "condition", "checkpoint"):
        if options.pop(name, None) is not None:
            raise TypeError(
                f"`fit_recovery` takes no `{name}`; use `fit` for that. {_faq.together}"
            )
    if step_size is not None and not step_size > 0:
        raise ValueError(
            f"`step_size` of `fit_recovery` must be positive; got {step_size}. {_faq.numbers}"
        )
    key_net, key = jax.random.split(key)
    if initializer is None:
        net = ResidualMLP(key_net, energy.shape, width=64)
        initializer = Initializer.from_energy(net, energy)
    ends = [float(energy.schedule.log_snr(jnp.asarray(t))) for t in (energy.t_min, energy.t_max)]
    size = math.prod(energy.shape)
    data = check_examples(data, energy.shape, "data")
    scale = float(np.sqrt(np.mean(np.var(np.asarray(data), 0)))) or 1.0
    trainable = options.pop("trainable", lambda energy: (energy.net, energy.offset))
    optimizer = options.pop("optimizer", Optimizer())
    check_instance("optimizer", optimizer, Optimizer, "train.Optimizer(ema=0.99)", optional=False)
    optimizer = optimizer.with_decay(1e-2)
    settings = {
        "ratio": math.exp(0.5 * (ends[0] - ends[1]) / num_levels),
        "num_moves": num_moves,
        "move": move,
        "step_size": 0.8 * size ** (-1 / 3) if step_size is None else step_size,
        "levels": levels,
    }

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

    loss = Contrast(value, contrast, RecoveryReport._fields)
    pair: Any = _Pair(forgetful(energy), initializer)
    try:
        found = fit(key, pair, data, loss=loss, trainable=parts, optimizer=optimizer, **options)
    except TrainingDiverged as error:
        pair = error.energy
        error.energy = pair.energy
        raise
    pair = found.energy
    best = found.best_step, found.best_loss, found.stopped
    return RecoveryResult(pair.energy, pair.initializer, found.history, *best)
