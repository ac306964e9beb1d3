"""Labels of classes in files: a class is called by its name, wherever it stands.

A label chooses from a closed set: the classes of this package that a file may hold, and those that a caller
gives. No module is imported for a label and no attribute is looked up.
"""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import equinox as eqx

from .. import _faq
from ..energies import (
    AbstractDenoiser,
    AbstractFactor,
    Guidance,
    Noised,
    NormalizerTable,
    Powers,
    Standardized,
)
from ..energies.exponents import Inverse, PowerProduct
from ..energies.optimize import OptimizeResult
from ..energies.smoothed import DoubleWell
from ..factors import AbstractKernel, AbstractValue
from ..nets import (
    AbstractCondition,
    Applied,
    Convolution,
    ImageBlock,
    Linear,
    LowPrecision,
    NoiseLevel,
    ResidualBlock,
    ResidualMLP,
    ScalarHead,
    Scaled,
    UNet,
)
from ..schedules import AbstractSchedule, ReverseMoments
from ..teachers import AbstractPrediction, AbstractTransform, PriorCard
from ..teachers.mixer import MixerBlock, MixerLayers, MixerNet, MixerNorm
from ..teachers.student import TeacherBackbone
from ..teachers.unet import DiffusersUNet, UNetForm
from .former_labels import FORMER_LABELS

__all__ = [
    "UnknownClassError",
    "class_finder",
    "is_named_tuple",
    "is_ours",
    "label_of",
    "saved_classes",
]

_PACKAGE = __name__.partition(".")[0]

# Every final class of this package below one of these can be saved, wherever it stands ...
_ROLES = (
    AbstractCondition,
    Applied,
    AbstractDenoiser,
    AbstractFactor,
    AbstractKernel,
    AbstractPrediction,
    AbstractSchedule,
    AbstractTransform,
    AbstractValue,
)
# ... and so can these, of which they are made.
_PARTS = (
    Applied,
    Convolution,
    DiffusersUNet,
    DoubleWell,
    Guidance,
    ImageBlock,
    Inverse,
    Linear,
    LowPrecision,
    MixerBlock,
    MixerLayers,
    MixerNet,
    MixerNorm,
    Noised,
    NoiseLevel,
    NormalizerTable,
    OptimizeResult,
    PowerProduct,
    Powers,
    PriorCard,
    ResidualBlock,
    ResidualMLP,
    ReverseMoments,
    Scaled,
    ScalarHead,
    Standardized,
    TeacherBackbone,
    UNet,
    UNetForm,
)


class UnknownClassError(ValueError):
    """A label that stands for no class that may be built."""


@functools.cache
def saved_classes() -> Mapping[str, type]:
    """Classes of this package that a file may name, by label."""
    return _by_name([*_PARTS, *(cls for role in _ROLES for cls in _final_below(role))])


def _final_below(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield from _final_below(cls)
        # Not a user's subclass, not one that Equinox makes on the way, and none in disguise.
        here = getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
        if is_ours(cls) and here and not inspect.isabstract(cls):
            yield cls


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    found: dict[str, type] = {}
    for cls in classes:
        other = found.setdefault(cls.__name__, cls)
        if other is not cls:
            raise RuntimeError(
                f"expected one class of a name among those that can be saved; got {_place(other)} and "
                f"{_place(cls)}. Rename one: files know classes by name "
                f"alone. {_faq.unknown_class}"
            )
    return found


def is_ours(cls: type) -> bool:
    """Test whether a class is of this package."""
    return cls.__module__.partition(".")[0] == _PACKAGE


def is_named_tuple(cls: type) -> bool:
    """Test whether a class is a named tuple."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def label_of(cls: type) -> str:
    """Name of a class in files: with the module in front if it is not of this package.

    A class of this package that files do not hold by themselves has the package in front.

    Raises:
        TypeError: If the class gives itself out for one of this package.
    """
    own = saved_classes().get(cls.__name__)
    if own is cls:
        return cls.__name__
    if own is not None and _place(own) == _place(cls):
        raise TypeError(
            f"expected the class `{cls.__name__}` of this package, or one of your own under another name or "
            f"in another module; got another class that says it is {_place(cls)}. Rename it, or if that "
            f"module was loaded twice, start Python again. {_faq.unknown_class}"
        )
    return f"{_PACKAGE}.{cls.__qualname__}" if is_ours(cls) else _place(cls)


def class_finder(classes: Iterable[type] = (), *, by_place: bool = False) -> Callable[[str], type]:
    """A function from the labels in ONE file to classes.

    Labels without a dot are of this package, and those with one of `classes`: of the module that the label
    names, or if none is from there the one of that name, so that modules of a user may move too.

    Args:
        classes: Those of the caller.
        by_place: Whether classes of this package may be named by where they stood, as they were in versions
            1 and 2. There a class of the caller from the same place goes first.

    Raises:
        TypeError: If there is something else than modules among the classes.
        ValueError: If two classes have one label.
    """
    if not isinstance(classes, Iterable) or isinstance(classes, str):
        raise TypeError(
            f"`classes` expects a list of classes; got {classes!r:.80}. Write "
            f"`classes=[...]`. {_faq.unknown_class}"
        )
    given: dict[str, type] = {}
    for cls in classes:
        if not (inspect.isclass(cls) and (issubclass(cls, eqx.Module) or is_named_tuple(cls))):
            raise TypeError(
                f"`classes` expects classes of modules; got {cls!r:.80}. Pass the class "
                f"itself. {_faq.unknown_class}"
            )
        label = label_of(cls)
        if "." not in label:  # one of ours, which needs no mention and stands for no other
            continue
        if given.setdefault(label, cls) is not cls:
            raise ValueError(
                f"`classes` expects classes of different names; got two that are called {label!r}. "
                f"Rename one. {_faq.unknown_class}"
            )
    known = dict(saved_classes())
    for former, name in FORMER_LABELS.items():
        if by_place or "." not in former:
            known[former] = known[name]
    taken: dict[type, str] = {}

    def find(label: str) -> type:
        if label in given:
            found = given[label]
        elif label in known:
            return known[label]
        else:
            module, _, name = label.rpartition(".")
            alike = [cls for cls in given.values() if module and cls.__name__ == name]
            if len(alike) != 1:
                raise UnknownClassError(_unknown(label, alike, [*saved_classes(), *given]))
            (found,) = alike
        if taken.setdefault(found, label) != label:
            raise UnknownClassError(
                f"pass both in `classes=[...]`: the file holds two classes, {taken[found]!r:.80} and "
                f"{label!r:.80}, and `{found.__name__}` can be only one of them"
            )
        return found

    return find


def _unknown(label: str, alike: list[type], names: list[str]) -> str:
    module, _, name = label.rpartition(".")
    if alike:
        return (
            f"pass one class in `classes=[...]` that is called {name!r}: the file has {label!r:.80}, which "
            f"could be each of {', '.join(map(_place, alike))}"
        )
    near = difflib.get_close_matches(name, names, 3) if len(name) < 100 else []
    nearest = f" Nearest names: {', '.join(near)}." if near else ""
    if module:
        what = name if name.isidentifier() and len(name) < 100 else "..."
        return (
            f"pass `classes=[{what}]`: the file holds a class {label!r:.80}, which is built only if it is "
            f"given.{nearest}"
        )
    return (
        f"install the release that wrote it: the file holds a class {label!r:.80}, which this release does "
        f"not have.{nearest}"
    )
