"""Where a pilot stands, kept through an interrupt or a kill, so that it goes on to the same levels.

A scheme is called with a bridge and a key, and knows nothing of files. So that its pilot can be kept, what
calls it opens a `KeptPilots` as a context, and `tune` asks for the one at hand.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._prng import lean
from .._staging import fingerprint
from .._typing import PRNGKey, PyTree
from ..smc.checkpoint import Checkpoint, Saved
from ..smc.identity import PlainIdentity

__all__ = ["KeptPilots", "Standing", "standing"]

_CURRENT: ContextVar["KeptPilots | None"] = ContextVar("pilots that are kept", default=None)


class KeptPilots:
    """Pilots of one run, in memory, and in files beside its checkpoint if it has one; a context manager.

    Args:
        checkpoint: The run's checkpoint. The first pilot is in `<checkpoint>.pilot`; a second, which few
            schemes make, in `<checkpoint>.pilot2`.
        every: Seconds between two writings.
    """

    def __init__(self, checkpoint: str | os.PathLike | None = None, every: float = 60.0):
        self.checkpoint, self.every = checkpoint, every
        self.saved: list[Saved] = []
        self.number = 0  # of the pilot at hand
        self._token: Any = None

    def __enter__(self) -> "KeptPilots":
        self.number = 0
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, kind, error, traceback):
        _CURRENT.reset(self._token)
        self._token = None


class Standing:
    """Where one pilot stands; a context manager, which locks its file.

    Args:
        kept: Where to keep it; `None` keeps nothing.
        start: `key -> pilot state`, of which shapes count.
        advance: `pilot state -> (pilot state, row, ...)`, likewise.
        key: Of the pilot.
        settings: Plain data that the levels depend on beside the programs.
    """

    def __init__(
        self,
        kept: KeptPilots | None,
        start: Callable[[PRNGKey], PyTree],
        advance: Callable[[PyTree], tuple],
        key: PRNGKey,
        settings: dict[str, Any],
    ):
        self.kept, self.start, self.advance = kept, start, advance
        self.key, self.settings = key, settings
        self.file: Checkpoint | None = None
        self._stack = ExitStack()
        if kept is not None:
            self.place, kept.number = kept.number, kept.number + 1

    def __enter__(self) -> "Standing":
        if self.kept is None or self.kept.checkpoint is None:
            return self
        path = Path(self.kept.checkpoint)
        name = f"{path.name}.pilot{self.place + 1 if self.place else ''}"
        identity = PlainIdentity({
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "start": fingerprint(self.start, self.key),
            "step": fingerprint(lambda pilot: self.advance(pilot), jax.eval_shape(self.start, self.key)),
            **self.settings,
        })  # fmt: skip
        file = Checkpoint(path.with_name(name), identity, self.kept.every, kind="pilot")
        self.file = self._stack.enter_context(file)
        return self

    def __exit__(self, kind, error, traceback):
        self._stack.close()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.file is not None and self.file.due

    def read(self) -> tuple[PyTree, list[Any]] | None:
        """The pilot state and its rows so far; `None` if there are none.

        Raises:
            ValueError: If the file is of another run, or cannot be read.
        """
        if self.kept is None:
            return None
        if len(self.kept.saved) > self.place:
            saved = self.kept.saved[self.place]
            data = jnp.asarray(saved.cloud.key)
            impl = jax.random.key_impl(lean(self.key))
            state = saved.cloud._replace(key=jax.random.wrap_key_data(data, impl=impl))
        elif self.file is not None and (found := self.file.read(self._template())) is not None:
            saved, state = found, found.cloud
        else:
            return None
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i], saved.trace) for i in range(saved.done)]
        return state, rows

    def keep(self, state: PyTree, rows: list[Any]):
        """Keep a pilot state and its rows, in the file too."""
        if self.kept is None:
            return
        trace = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        if self.file is not None:
            self.file.write(Saved(state, (), trace, len(rows)))
        # A key cannot be pickled, its numbers can.
        plain = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
        self.kept.saved[self.place :] = [Saved(plain, (), trace, len(rows))]

    def _template(self) -> Saved:
        state = jax.eval_shape(self.start, self.key)._replace(key=lean(self.key))
        row = jax.eval_shape(lambda pilot: self.advance(pilot), state)[1]
        return Saved(state, (), jax.tree.map(lambda r: np.zeros((1, *r.shape), r.dtype), row), 0)


def standing(
    start: Callable[[PRNGKey], PyTree],
    advance: Callable[[PyTree], tuple],
    key: PRNGKey,
    settings: dict[str, Any],
) -> Standing:
    """Where the pilot at hand stands, by the `KeptPilots` that is open, if any."""
    return Standing(_CURRENT.get(), start, advance, key, settings)
