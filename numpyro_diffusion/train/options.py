"""Records of training options: how weights are updated, and when training stops."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from .. import _faq
from .._arguments import whole_number

__all__ = ["EarlyStopping", "Optimizer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How `fit` updates weights: Adam with decoupled weight decay, and an average of the weights.

    Attributes:
        weight_decay: Decoupled decay of matrices; vectors (biases) are left alone. `None` takes 0.01 for many
            examples and more for few, see `settings.default_decay`.
        ema: Decay of the exponential moving average of the weights, in [0, 1), 0 for none.
        accumulate: Gradients that are averaged for one update, for batches that memory does not hold.
        devices: Devices over which every batch is spread, the weights being on each; one by default.

    Raises:
        ValueError: If a number is out of range.
    """

    weight_decay: float | None = None
    ema: float = 0.999
    accumulate: int = 1
    devices: Sequence[Any] | None = None

    def __post_init__(self):
        if not 0 <= self.ema < 1:
            raise ValueError(
                "`ema` must be in [0, 1), and 0 takes no average of the weights; got "
                f"{self.ema}. {_faq.numbers}"
            )
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(
                f"`weight_decay` must not be negative; got {self.weight_decay}. `None` chooses one by the "
                f"number of examples. {_faq.numbers}"
            )
        object.__setattr__(self, "accumulate", whole_number("accumulate", self.accumulate, 1))

    def with_decay(self, weight_decay: float) -> "Optimizer":
        """The same with this decay where none was chosen."""
        if self.weight_decay is not None:
            return self
        return dataclasses.replace(self, weight_decay=weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When `fit` looks at held-out examples, and when it stops for them.

    Attributes:
        patience: Checks without a new best before training stops, at least 1.
        check_every: Updates between two checks, at least 1.
        validation_repeats: Noise draws an example of the validation set, at least 1.

    Raises:
        ValueError: If a number is no integer of at least 1.
    """

    patience: int = 10
    check_every: int = 250
    validation_repeats: int = 16

    def __post_init__(self):
        for name in ("patience", "check_every", "validation_repeats"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
