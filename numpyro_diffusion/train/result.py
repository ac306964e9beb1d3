"""The result of training."""

from typing import NamedTuple

import numpy as np

from .. import _faq
from .._records import record, record_page
from ..energies import AbstractDenoiser

__all__ = ["FitResult", "TrainingDiverged", "training_verdict"]


class FitResult(NamedTuple):
    """Result of `fit`.

    Attributes:
        energy: The trained energy, with the averaged weights of the best validation loss.
        history: Arrays of one length: `step`, `train_loss` (mean over the steps before), and
            `validation_loss`.
        best_step: Step of the returned weights; 0 if no check was better than the start.
        best_loss: Their validation loss.
        stopped: Why training ended: `"steps"`, `"patience"`, `"interrupted"` or `"exhausted"` (a stream).
        ess: With `weights`, how many examples they leave: the effective sample size of those trained on.
    """

    energy: AbstractDenoiser
    history: dict[str, np.ndarray]
    best_step: int
    best_loss: float
    stopped: str
    ess: float | None = None

    __repr__ = record
    _repr_html_ = record_page

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


class TrainingDiverged(FloatingPointError):
    """The loss became non-finite. `energy` holds the last good weights, `step` says when."""

    def __init__(self, message: str, energy: AbstractDenoiser, step: int, history: dict):
        super().__init__(message)
        self.energy, self.step, self.history = energy, step, history


def training_verdict(history: dict, best_step: int) -> str:
    """Summarise a history of losses, with a remedy where nothing was learned."""
    steps, losses, train = (
        np.asarray(history[name]) for name in ("step", "validation_loss", "train_loss")
    )
    if best_step > 0:
        return (
            f"best at step {best_step} of {steps[-1]}: the held-out loss fell from {losses[0]:.4f} to "
            f"{losses[steps == best_step][0]:.4f}."
        )
    if len(steps) == 1:
        early = "training ended before its first check. Lower `check_every`."
        return f"learned nothing: {early} {_faq.nothing_learned}"
    remedy = "Change `learning_rate`, or train for more `steps`."
    if len(steps) == 2 or train[-1] < train[1]:
        remedy = (
            "Where the training loss falls and this one does not, the network fits single examples: take a "
            "smaller one (`width`), a lower `learning_rate`, more `weight_decay`, checks more often "
            "(`check_every`), or more examples."
        )
    return (
        f"learned nothing: in {steps[-1]} steps no check was better than the start, a held-out loss of "
        f"{losses[0]:.4f} ({losses[1:].min():.4f} at best since), and the weights are those that training "
        f"began with. {remedy} {_faq.nothing_learned}"
    )
