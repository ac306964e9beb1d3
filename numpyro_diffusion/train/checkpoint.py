"""Checkpoints: training that continues as if it had never stopped."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._safetensors import check_digest, check_finite, check_folder, parse, write
from .._typing import PyTree

__all__ = ["Progress", "read_progress", "write_progress"]

FORMAT = "numpyro-diffusion training 2"
_FIRST = "numpyro-diffusion training 1"  # without a digest, and blind to these settings:
_UNKNOWN_TO_FIRST = "augment", "learning_rate", "loss", "sampler", "trainable"


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
    leaves = jax.tree.leaves((progress.carry, progress.best))
    check_finite(zip(_names(progress), leaves, strict=True))
    arrays = {str(i): np.array(leaf, order="C") for i, leaf in enumerate(leaves)}
    rest = {n: v for n, v in progress._asdict().items() if n not in ("carry", "best")}
    metadata = {"format": FORMAT, "settings": json.dumps(settings), "progress": json.dumps(rest)}
    write(path, arrays, metadata)


def _names(progress: Progress) -> list[str]:
    """Where the arrays of a checkpoint hang."""
    whole = {"weights, average and optimiser": progress.carry, "best": progress.best}
    order = jax.tree.leaves_with_path((*whole.values(),))
    roots = list(whole)
    return [roots[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in order]


def read_progress(path: str | os.PathLike, start: Progress, settings: dict[str, Any]) -> Progress:
    """The run in a file, or `start` where there is no file yet.

    Args:
        path: The file.
        start: A run that has not begun, whose arrays say what must be in the file.
        settings: Those that the run should have.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the file cannot be read, is no checkpoint, was altered, or is of another run.
    """
    path = Path(path)
    if not path.exists():
        check_folder(path)
        return start
    try:
        metadata, arrays = parse(path.read_bytes())
        version = metadata.get("format")
        if version == FORMAT:
            check_digest(metadata, arrays)
        elif version != _FIRST or metadata.keys() != {"format", "settings", "progress"}:
            raise ValueError(f"metadata of {version!r}")
        found = json.loads(metadata["settings"])
        rest = _check_progress(json.loads(metadata["progress"]))
        if not isinstance(found, dict):
            raise ValueError("settings that are none")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of `fit`: {error}. Give another path, or move the file "
            f"away. {_faq.checkpoint}"
        ) from error
    expected = json.loads(json.dumps(settings))
    if version == _FIRST:
        expected = {n: v for n, v in expected.items() if n not in _UNKNOWN_TO_FIRST or found.get(n)}
        found = {n: v for n, v in found.items() if n in expected}
    if found != expected:
        names = sorted(n for n in expected | found if found.get(n) != expected.get(n))
        told = ", ".join(f"{n} is {found.get(n)!r:.80}, not {expected.get(n)!r:.80}" for n in names)
        raise ValueError(
            f"the checkpoint {path} is of another run: {told}. Go on with the settings it was made with, "
            f"or give another path. {_faq.checkpoint}"
        )
    leaves, structure = jax.tree.flatten((start.carry, start.best))
    fits = arrays.keys() == {str(i) for i in range(len(leaves))} and all(
        arrays[str(i)].shape == leaf.shape and arrays[str(i)].dtype == leaf.dtype
        for i, leaf in enumerate(leaves)
    )
    if not fits:
        raise ValueError(
            f"the checkpoint {path} holds other arrays than this energy and optimiser have. Start from the "
            f"same energy, or give another path. {_faq.checkpoint}"
        )
    ordered = [arrays[str(i)] for i in range(len(leaves))]
    try:
        check_finite(zip(_names(start), ordered, strict=True))
    except ValueError as error:
        raise ValueError(
            f"the checkpoint {path} cannot be used: {_faq.bare(error)} {_faq.checkpoint}"
        ) from error
    carry, best = jax.tree.unflatten(structure, [jnp.asarray(array) for array in ordered])
    return Progress(carry=carry, best=best, **rest)


def _check_progress(rest: Any) -> dict[str, Any]:
    """The fields beside the arrays, all of which follow from the history."""
    names = "step", "train_loss", "validation_loss"
    history = rest.get("history") if isinstance(rest, dict) else None
    if not isinstance(history, dict) or history.keys() != set(names):
        raise ValueError("progress without its history")
    steps, train, score = (history[name] for name in names)
    if not (_are_numbers(steps, int) and _are_numbers(train, float) and _are_numbers(score, float)):
        raise ValueError("a history of other things than numbers")
    rising = all(a < b for a, b in zip(steps, steps[1:], strict=False))
    if not len(steps) == len(train) == len(score) > 0 or steps[0] != 0 or not rising:
        raise ValueError("a history whose steps do not rise from 0, or without a loss a step")
    if not (np.isfinite(train[1:]).all() and np.isfinite(score).all()):
        raise ValueError("losses that are not finite")
    best = score.index(min(score))
    follows = {"best_loss": score[best], "best_step": steps[best], "step": steps[-1]}
    follows |= {"misses": len(steps) - 1 - best, "history": history}
    if rest.keys() != follows.keys() or any(rest[n] != follows[n] for n in follows):
        raise ValueError("progress that contradicts its history")
    return follows


def _are_numbers(values, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
