"""Checkpoints of a run: a file from which it goes on to the same bits after any interruption.

The file is safetensors with a JSON header. It appears whole or not at all, and the one before it is kept
beside it, so that a damaged file costs the time since the last one. A lock, which the system takes back when
a process dies, keeps a second run away.
"""

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._finite import outside
from .._safetensors import check_digest, check_folder, parse, write
from .._typing import PyTree
from .chunks import start_clouds
from .identity import Identity, PlainIdentity, differences
from .result import packed, unpacked

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing locks
    fcntl = None

__all__ = ["Checkpoint", "Saved", "template_of"]

FORMAT = "numpyro-diffusion {} 1"


class Saved(NamedTuple):
    """What a run carries from one chunk of levels to the next."""

    cloud: PyTree
    initial_info: PyTree
    trace: PyTree
    done: int


class Checkpoint:
    """The file of one run, locked while the run lasts; a context manager.

    Args:
        path: The file.
        identity: Of the run.
        every: Seconds between two writings.
        kind: What is in it, in the name of the format.

    Raises:
        FileNotFoundError: If there is no such folder.
        RuntimeError: If another run writes to it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        identity: Identity | PlainIdentity,
        every: float = 60.0,
        kind: str = "run",
    ):
        self.kind, self.format = kind, FORMAT.format(kind)
        self.path, self.identity, self.every = Path(path), identity, every
        check_folder(self.path)
        self.previous = self.path.with_name(self.path.name + ".previous")
        self.last, self.lock = time.monotonic(), None

    def __enter__(self) -> "Checkpoint":
        if fcntl is not None:
            lock = open(self.path.with_name(f".{self.path.name}.lock"), "a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise RuntimeError(
                    f"another run writes to the checkpoint {self.path}: expected a file of this run alone. "
                    f"Wait for it, or give another path. {_faq.checkpoint}"
                ) from None
            self.lock = lock
        return self

    def __exit__(self, kind, error, traceback):
        if self.lock is not None:
            self.lock.close()  # the empty file stays: taking it away could take another run's lock

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self.last >= self.every

    def write(self, saved: Saved):
        """Write the run; the file so far becomes the previous one."""
        leaves = [_plain(leaf) for leaf in jax.tree.leaves(saved._replace(done=None))]
        arrays = {str(i): np.array(leaf, order="C") for i, leaf in enumerate(leaves)}
        run = {"done": saved.done, "traced": saved.trace is not None}
        metadata = {
            "format": self.format,
            "run": json.dumps(self.identity.parts()),
            "progress": json.dumps(run),
        }
        if self.path.exists():
            os.replace(self.path, self.previous)
        write(self.path, arrays, metadata)
        self.last = time.monotonic()

    def read(self, template: Saved) -> Saved | None:
        """The run so far; `None` if it has not begun.

        Args:
            template: Shapes of what is in the file. Those of the trace have length 1 along the levels.

        Raises:
            ValueError: If the file is of another run; or if it cannot be read and there is no earlier one.

        Warns:
            UserWarning: If it cannot be read and the earlier one is used.
        """
        if not self.path.exists() and not self.previous.exists():
            return None
        told = None
        for path in (self.path, self.previous):
            try:
                metadata, arrays = self._parsed(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, RecursionError) as error:
                told = told or f"{path} is not a checkpoint of a {self.kind}: {error}"
                continue
            if told:
                warnings.warn(
                    f"{told}. The one before it, {path}, is used. {_faq.checkpoint}",
                    stacklevel=outside(),
                )
            return self._fitted(path, metadata, arrays, template)
        raise ValueError(
            f"{told}, and there is no earlier one. Give another path, or move the file "
            f"away. {_faq.checkpoint}"
        )

    def _parsed(self, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        metadata, arrays = parse(path.read_bytes())
        if metadata.get("format") != self.format:
            raise ValueError(f"expected the format {self.format!r}; got {metadata.get('format')!r}")
        check_digest(metadata, arrays)
        found = {name: json.loads(metadata[name]) for name in ("run", "progress")}
        return found, arrays

    def _fitted(self, path, metadata, arrays, template: Saved) -> Saved:
        told = differences(metadata["run"], self.identity.parts())
        if told:
            raise ValueError(
                f"the checkpoint {path} is of another run: {', '.join(told)}. Go on with the model, data, "
                f"key and settings that it was made with, or give another path. {_faq.checkpoint}"
            )
        done = whole_number("done", metadata["progress"]["done"], 0)
        if not metadata["progress"]["traced"]:
            template = template._replace(trace=None)
        template = template._replace(done=None)  # type: ignore[arg-type]
        leaves, structure = jax.tree.flatten(template)
        found = [arrays[str(i)] for i in range(len(arrays))]
        saved = [_like(array, leaf) for array, leaf in zip(found, leaves, strict=True)]
        return jax.tree.unflatten(structure, saved)._replace(done=done)


def _plain(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _like(array: np.ndarray, leaf: Any) -> Any:
    """An array in the place of a leaf: a key again, on the host or on the device as that is."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return array if isinstance(leaf, np.ndarray) else jnp.asarray(array)


def template_of(arguments: tuple, one_level: Callable, levels: PyTree) -> Saved:
    """Shapes of what a run carries, as a checkpoint has it; the history has one level."""
    key, num_chains, init, *rest = arguments
    start = start_clouds.__wrapped__  # type: ignore[attr-defined]
    cloud, info = jax.eval_shape(lambda key: start(key, num_chains, init, *rest), key)
    level = jax.tree.map(lambda leaf: leaf[0], levels)
    row = jax.eval_shape(lambda cloud: packed(one_level(cloud, level)[1]), cloud)
    rows = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape), leaf.dtype), row)
    infos = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), info).unpack()
    cloud = cloud._replace(key=key)  # which tells the generator; shapes alone do not
    return Saved(cloud, jax.tree.map(jnp.asarray, infos), unpacked(rows, 1), 0)
