"""Arguments of a model that are split by object: names, lengths, and those of some objects alone."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ... import _faq
from ..._arguments import as_arrays, is_data, named_arguments
from ..._typing import Array

__all__ = ["SplitArguments"]


class _Marked:
    def __init__(self, leaf: Any, split: bool):
        self.leaf, self.split = leaf, split


@dataclasses.dataclass(frozen=True)
class SplitArguments:
    """Arguments of a model, some of which lead with an axis of objects.

    Attributes:
        args: The arguments, arrays as JAX arrays.
        kwargs: The keyword arguments.
        split: Names of those that lead with the axis.
        num_objects: Its length.
    """

    args: tuple
    kwargs: dict[str, Any]
    split: tuple[str, ...]
    _names: tuple[str, ...]
    num_objects: int

    @classmethod
    def of(
        cls, model: Callable, split: Sequence[str], args: tuple, kwargs: dict[str, Any]
    ) -> "SplitArguments":
        """The arguments of a call, looked at.

        Raises:
            ValueError: If a name is none of the arguments given, lengths differ, or there is one object.
            TypeError: If an argument to be split holds anything but arrays.
        """
        args, kwargs = as_arrays(model, args, kwargs)
        named = named_arguments(model, args, kwargs)
        names = tuple(name for name, _ in named)
        if missing := sorted(set(split) - set(names)):
            raise ValueError(
                f"`split` names arguments of the model that lead with an axis of objects; got {missing}, and "
                f"the arguments of this call are {list(names)}. Name one of these, or pass "
                f"it. {_faq.plates}"
            )
        lengths = {}
        for name, value in named:
            if name not in split:
                continue
            leaves = jax.tree.leaves(value)
            if not leaves or not all(is_data(leaf) and np.ndim(leaf) for leaf in leaves):
                raise TypeError(
                    f"argument `{name}` is split by object, so it must be an array, or a tree of arrays, "
                    f"that leads with the axis of objects; got {type(value).__name__}. Convert it, or leave "
                    f"it out of `split`. {_faq.plates}"
                )
            lengths |= {name if len(leaves) == 1 else f"{name}[{i}]": len(leaf)
                        for i, leaf in enumerate(leaves)}  # fmt: skip
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"arguments that are split by object must have one length; got {lengths}. Leave out of "
                f"`split` what belongs to all objects. {_faq.plates}"
            )
        num_objects = next(iter(lengths.values()))
        if num_objects < 2:
            raise ValueError(
                f"a plate needs two objects or more; got {num_objects}. `nd.SMC` samples one "
                f"object. {_faq.plates}"
            )
        return cls(args, kwargs, tuple(split), names, num_objects)

    def at(self, objects: slice) -> tuple[tuple, dict[str, Any]]:
        """Arguments and keyword arguments of some objects alone."""

        def one(name, value):
            return jax.tree.map(lambda leaf: leaf[objects], value) if name in self.split else value

        done = [one(n, v) for n, v in zip(self._names, self._values, strict=True)]
        return tuple(done[: len(self.args)]), dict(
            zip(self.kwargs, done[len(self.args) :], strict=True)
        )

    @property
    def _values(self) -> tuple:
        return (*self.args, *self.kwargs.values())

    def leaves(self) -> tuple[list[Array], list[bool]]:
        """All arrays among the arguments, in the order of their tree, and which of them are split.

        Those that are split get an axis of length 1 behind that of objects: a row is the argument of one.
        """
        named = dict(zip(self._names, self._values, strict=True))
        marked = [
            jax.tree.map(lambda leaf, s=n in self.split: _Marked(leaf, s), v)
            for n, v in named.items()
        ]
        ordered = (
            tuple(marked[: len(self.args)]),
            dict(zip(self.kwargs, marked[len(self.args) :], strict=True)),
        )
        pairs = jax.tree.leaves(ordered, is_leaf=lambda x: isinstance(x, _Marked))
        data = [p for p in pairs if is_data(p.leaf)]
        return [p.leaf[:, None] if p.split else p.leaf for p in data], [p.split for p in data]
