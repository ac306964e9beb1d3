"""Dimensions and coordinates of the variables of an ArviZ object: what is given, and what is known."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _faq
from .names import free_name

__all__ = ["Dims"]

_OWN = ("chain", "draw", "particle", "level")
Names = Sequence[str | None]


class Dims(NamedTuple):
    """Names of dimensions by variable, and coordinates by dimension.

    Attributes:
        given: By the user, by variable; all dimensions but those of chains and draws.
        known: From the model; used where a name is free and all its variables have one size.
        coords: Values along a dimension.
        taken: Names of all variables, which no dimension may have.
    """

    given: Mapping[str, Names] = {}
    known: Mapping[str, Names] = {}
    coords: Mapping[str, Sequence] = {}
    taken: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Any, known: Any, coords: Any, groups: Mapping[str, Mapping]) -> "Dims":
        """From the arguments of `to_arviz`.

        Raises:
            ValueError: If a variable is not there.
        """
        taken = frozenset(name for group in groups.values() for name in group)
        given = {str(n).replace("/", "."): list(names) for n, names in dict(given or {}).items()}
        missing = sorted(set(given) - {name.replace("/", ".") for name in taken})
        if missing:
            raise ValueError(
                f"`dims` names variables of the ArviZ object; got {missing}, and there are "
                f"{sorted(taken)}. {_faq.names}"
            )
        return cls(given, dict(known or {}), dict(coords or {}), taken)

    def but(self, given: Mapping[str, Names] | None) -> "Dims":
        """The same, with other names for some variables."""
        return self._replace(given={**self.given, **(given or {})})

    def of_group(
        self, variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    ) -> dict[str, tuple[str, ...]]:
        """All dimensions of each variable of a group.

        Args:
            variables: Leading dimensions and values by name.

        Raises:
            ValueError: If given names are too few, or one is taken or has another size elsewhere.
        """
        sizes = {d: len(values) for d, values in self.coords.items()}
        found = {}
        for name, (leading, values) in variables.items():
            shape = values.shape[len(leading) :]
            is_given = self.given.get(name) is not None
            names = list(self.given[name] if is_given else self.known.get(name) or ())
            if is_given and len(names) < len(shape):
                raise ValueError(
                    f"`dims` of `{name}` expects {len(shape)} names, for the shape {shape} after chains and "
                    f"draws; got {names}. `None` leaves one as it is. {_faq.names}"
                )
            names = (names + [None] * len(shape))[
                : len(shape)
            ]  # a log density has no event dimensions
            dims = []
            for i, (label, size) in enumerate(zip(names, shape, strict=True)):
                label = None if label is None else label.replace("/", ".")
                wrong = None if label is None else self._wrong(label, size, sizes, variables, dims)
                if wrong and is_given:
                    raise ValueError(
                        f"dimension `{label}` of `{name}` has size {size}, but "
                        f"{wrong}. {_faq.names}"
                    )
                if label is None or wrong:
                    label = free_name(f"{name}_dim_{i}", variables)
                sizes[label] = size
                dims.append(label)
            found[name] = (*leading, *dims)
        return found

    def _wrong(
        self,
        label: str,
        size: int,
        sizes: dict[str, int],
        variables: Iterable[str],
        used: list[str],
    ) -> str:
        """What keeps a dimension from a name, in words; empty for nothing."""
        if label in _OWN or label in used:
            return "its name is that of another dimension; call it otherwise"
        if label in variables or label in self.taken:
            return "its name is that of a variable; call it otherwise"
        if sizes.get(label, size) != size:
            where = "`coords` has" if label in self.coords else "elsewhere it has"
            return f"{where} {sizes[label]} values"
        return ""

    def along(self, dim: str, size: int) -> Any:
        """Coordinates of a dimension: those given, else numbers, of levels from 1."""
        values = self.coords.get(dim)
        return np.arange(size) + (dim == "level") if values is None else np.asarray(values)
