r"""Pretrained priors that ship with the package, each with a model card.

`digits-8x8` is an energy of the 8x8 handwritten digits that scikit-learn has too (1,797 real scans, UCI, CC
BY 4.0, in `optdigits.npz`), in units where paper is -1 and ink is 1. The examples of its test split were
never seen while it was made, by training or by the choice of the checkpoint: `digits_split()` says which they
are, so that an experiment can use them. `digits-8x8-labels` holds the distributions of the ten digits
(`energy.given(label)`); `digits-8x8-distilled` and `digits-8x8-labels-distilled` are energies of the same
form that learned from plain denoisers instead of data.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _faq
from .._records import record, record_page
from ..energies import AbstractEnergy
from ..io.files import load, read_card

__all__ = ["DigitsSplit", "digits_split", "load_digits", "load_pretrained", "pretrained_card"]

_FOLDER = Path(__file__).parent


class DigitsSplit(NamedTuple):
    """Row numbers of `sklearn.datasets.load_digits()` that trained, chose and judge `digits-8x8`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def load_pretrained(name: str) -> AbstractEnergy:
    """An energy that ships with the package.

    Args:
        name: Its name, for example `"digits-8x8"`.

    Raises:
        ValueError: If no energy of that name ships; the message lists those that do.
    """
    energy = load(_path(name))
    assert isinstance(energy, AbstractEnergy)
    return energy


def pretrained_card(name: str) -> dict[str, Any]:
    """Data, licence, units, range, split and losses of an energy that ships with the package.

    Args:
        name: Its name, for example `"digits-8x8"`.
    """
    return read_card(_path(name))


def digits_split() -> DigitsSplit:
    """The split of scikit-learn's digits behind `digits-8x8`: a fixed permutation, cut twice.

    The sizes are 1,297 to train, 200 to choose the checkpoint, 300 to test.
    """
    order = np.random.default_rng(0).permutation(1797)
    return DigitsSplit(*(np.sort(part) for part in np.split(order, [1297, 1497])))


def load_digits(part: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one part of the split, in the units of `digits-8x8`.

    Args:
        part: `"train"`, `"validation"` or `"test"`.

    Returns:
        Images of shape `(num, 8, 8)`, float32 in [-1, 1] (grey value / 8 - 1), and labels `(num,)`.

    Raises:
        ValueError: If `part` is not one of the three.
    """
    if part not in DigitsSplit._fields:
        raise ValueError(
            f"`part` must be one of {DigitsSplit._fields}; got {part!r}. {_faq.choices}"
        )
    with np.load(_FOLDER / "optdigits.npz", allow_pickle=False) as digits:
        rows = getattr(digits_split(), part)
        images, labels = digits["images"][rows], digits["labels"][rows]
    return (images / 8 - 1).astype(np.float32), labels.astype(np.int64)


def _path(name: str) -> Path:
    path = _FOLDER / f"{name}.safetensors"
    available = sorted(file.stem for file in _FOLDER.glob("*.safetensors"))
    if name not in available:
        raise ValueError(
            f"no pretrained energy is called {name!r}; available: {', '.join(available)}. Energies of "
            f"your own are read with `numpyro_diffusion.load(path)`. {_faq.no_pretrained}"
        )
    return path
