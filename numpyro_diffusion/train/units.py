"""Training in the units of a table: `fit` for a `Standardized` distribution."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from .. import _faq
from ..energies import Standardized
from .examples import check_examples
from .result import TrainingDiverged
from .sources import AbstractSource

__all__ = ["in_units"]


F = TypeVar("F", bound=Callable[..., Any])


def in_units(train: F) -> F:
    """Lets a function `train(key, energy, data, **options)` take a `Standardized` distribution and data in
    its units.

    Data, `validation` and what `augment` sees are in the units of the user; a `loss` and `trainable` are
    given the energy and examples in standard units. What comes back has the units again.

    Raises:
        TypeError: For data other than an array, which lose digits where they are standardised too late.
    """

    @functools.wraps(train)
    def trained(key, energy, data, *, validation=None, augment=None, **options):
        options |= {"validation": validation, "augment": augment}
        if not isinstance(energy, Standardized):
            return train(key, energy, data, **options)
        units = energy
        if isinstance(data, AbstractSource | Iterator) or callable(data):
            raise TypeError(
                "a `Standardized` distribution is trained on an array of examples; got "
                f"{type(data).__name__}. Train its `energy` on examples through `standardize`, and put the "
                f"result back with `with_energy`. {_faq.kinds}"
            )

        def standard(examples: Any, what: str) -> np.ndarray:
            return units.standardize(check_examples(examples, units.shape, what, np))

        if validation is not None:
            examples, *condition = validation if isinstance(validation, tuple) else (validation,)
            examples = standard(examples, "validation")
            options["validation"] = (examples, *condition) if condition else examples
        if augment is not None:
            options["augment"] = lambda key, z: units.standardize(augment(key, units.restore(z)))
        try:
            found = train(key, units.energy, standard(data, "data"), **options)
        except TrainingDiverged as error:
            error.energy = units.with_energy(error.energy)  # pyright: ignore[reportAttributeAccessIssue]
            raise
        return found._replace(energy=units.with_energy(found.energy))

    return trained  # pyright: ignore[reportReturnType]
