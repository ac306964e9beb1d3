"""A training run on disk, from which it goes on as if it had never stopped."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .._typing import PyTree

__all__ = ["Progress", "read_progress", "write_progress"]

FORMAT = "numpyro-diffusion training 1"


class Progress(NamedTuple):
    """All that the loop of `fit` carries from one check to the next.

    Attributes:
        carry: Weights, averaged weights and state of the optimiser.
        best: Averaged weights of the best validation loss.
        best_loss: That loss.
        best_step: Its step.
        step: Updates done.
        misses: Checks since the best one.
        history: Lists by name.
    """

    carry: PyTree
    best: PyTree
    best_loss: float
    best_step: int
    step: int
    misses: int
    history: dict[str, list]


def write_progress(path: str | os.PathLike, progress: Progress, settings: dict[str, Any]):
    """Write a run to one safetensors file, whole or not at all.

    Args:
        path: The file.
        progress: What the loop carries.
        settings: What must be the same for the run to go on; anything that JSON can hold.
    """
    path = Path(path)
    leaves = jax.tree.leaves((progress.carry, progress.best))
    arrays = {str(i): np.array(leaf, order="C") for i, leaf in enumerate(leaves)}
    rest = {n: v for n, v in progress._asdict().items() if n not in ("carry", "best")}
    metadata = {"format": FORMAT, "settings": json.dumps(settings), "progress": json.dumps(rest)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(arrays, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_progress(path: str | os.PathLike, start: Progress, settings: dict[str, Any]) -> Progress:
    """The run in a file, or `start` where there is no file yet.

    Args:
        path: The file.
        start: A run that has not begun, whose arrays say what must be in the file.
        settings: Those that the run should have.

    Raises:
        ValueError: If the file cannot be read, is no checkpoint, or is of another run.
    """
    path = Path(path)
    if not path.exists():
        return start
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        found = json.loads(metadata["settings"]) if metadata["format"] == FORMAT else None
        rest = json.loads(metadata["progress"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of `fit`: {error!r}. Give another path, or move the file away."
        ) from error
    expected = json.loads(json.dumps(settings))
    if found != expected:
        names = sorted(n for n in expected if (found or {}).get(n) != expected[n])
        told = ", ".join(f"{n} is {(found or {}).get(n)!r}, not {expected[n]!r}" for n in names)
        raise ValueError(
            f"the checkpoint {path} is of another run: {told}. Go on with the settings it was made with, "
            "or give another path."
        )
    leaves, structure = jax.tree.flatten((start.carry, start.best))
    fits = len(arrays) == len(leaves) and all(
        arrays[str(i)].shape == leaf.shape and arrays[str(i)].dtype == leaf.dtype
        for i, leaf in enumerate(leaves)
    )
    if not fits:
        raise ValueError(
            f"the checkpoint {path} holds other arrays than this energy and optimiser have. Start from the "
            "same energy, or give another path."
        )
    carry, best = jax.tree.unflatten(
        structure, [jnp.asarray(arrays[str(i)]) for i in range(len(leaves))]
    )
    return Progress(carry=carry, best=best, **rest)
