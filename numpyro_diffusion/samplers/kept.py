"""Chains that are kept in a file as they go, so that a kill costs the time since the last writing."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from .._arguments import positive
from .._prng import lean
from .._typing import PRNGKey, PyTree
from ..smc.checkpoint import Checkpoint, Saved
from ..smc.identity import PlainIdentity

__all__ = ["KeptChains", "template_of_rows"]


class KeptChains:
    """The file of a sampler whose chains go on from draw to draw, locked; a context manager.

    Without a path it keeps nothing.

    Args:
        path: The file, or `None`.
        every: Seconds between two writings.
        kind: What is in it, for messages.
        key: Of the run.
        step: Gives a fingerprint of what the chains do; it is asked only if there is a path.
        settings: Plain data that the draws depend on beside that.
        axis: Along which the rows of one chunk follow those of another.

    Raises:
        FileNotFoundError: If there is no such folder.
        RuntimeError: On entry, if another run writes to it.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        every: float,
        kind: str,
        key: PRNGKey,
        step: Callable[[], str | None],
        settings: dict[str, Any],
        axis: int = 0,
    ):
        self.path, self.every = path, positive("checkpoint_every", every)
        self.kind, self.key, self.step, self.settings = kind, key, step, settings
        self.axis = axis
        self.file: Checkpoint | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "KeptChains":
        if self.path is not None:
            parts = {"key": np.asarray(jax.random.key_data(lean(self.key))).tolist()}
            identity = PlainIdentity(parts | {"step": self.step()} | self.settings)
            file = Checkpoint(self.path, identity, self.every, kind=self.kind)
            self.file = self._stack.enter_context(file)
        return self

    def __exit__(self, kind, error, traceback):
        self._stack.close()

    def read(self, state: PyTree, row: Callable[[], PyTree]) -> tuple[PyTree, list[Any], int]:
        """State of the chains, chunks of rows and number of steps so far.

        Args:
            state: Where the chains start, which is the answer if nothing is kept.
            row: Gives the structure of the rows, as `template_of_rows` does; asked only if there is a file.

        Raises:
            ValueError: If the file is of another run, or cannot be read.
        """
        if self.file is None or (found := self.file.read(Saved(state, (), row(), 0))) is None:
            return state, [], 0
        return found.cloud, [] if found.trace is None else [found.trace], found.done

    def keep(self, state: PyTree, rows: list[Any], done: int, now: bool = False) -> None:
        """Write the chains, if it is time to or `now`."""
        if self.file is None or not (now or self.file.due):
            return
        join = lambda *parts: np.concatenate(parts, self.axis)
        self.file.write(Saved(state, (), jax.tree.map(join, *rows) if rows else None, done))


def template_of_rows(chunk: Callable[[], tuple[PyTree, PyTree]]) -> PyTree:
    """Structure of the rows that a chunk of a sampler, `() -> (state, rows)`, gives; it is not run."""
    shapes = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, chunk()[1]))
    return jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype), shapes)
