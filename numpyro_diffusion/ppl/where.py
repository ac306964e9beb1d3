"""Where in a user's model an error was raised: a note with the last site and the plates."""

import numbers
from types import TracebackType
from typing import Any

import jax
import numpy as np
import numpyro

from ..energies.base import AbstractDenoiser
from ..energies.standardized import Standardized

__all__ = ["Reached", "number_as_distribution", "prior_as_distribution"]

_NOTE = "While tracing the model"


class Reached:
    """What a run of the model has come to: its plates, and its last site with the shape of its value."""

    def __init__(self):
        self.last, self.plates = "before any site", {}

    def see(self, msg: Any) -> None:
        """Note a site or plate that is done."""
        kind, name = msg["type"], msg.get("name")
        if kind == "plate":
            self.plates[name] = msg["args"][0]
        elif kind in ("sample", "deterministic", "param"):
            shape = getattr(msg["value"], "shape", None)
            self.last = f"after site `{name}`" + ("" if shape is None else f" of shape {shape}")

    def add_note(self, error: BaseException, traceback: TracebackType | None) -> None:
        """Say in a note where an error was raised; once, also where models are nested."""
        if any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
            return
        call = _sample_call(traceback)
        at = "" if call is None else f"at site `{call['name']}`, "
        sizes = ", ".join(f"`{name}` (size {size})" for name, size in self.plates.items())
        so_far = f"; plates so far: {sizes}" if sizes else ""
        error.add_note(f"{_NOTE}: {at}{self.last}{so_far}.")


def prior_as_distribution(traceback: TracebackType | None) -> tuple[str, str] | None:
    """The site to which a prior of this package was given without `DiffusionPrior`, and its class."""
    call = _sample_call(traceback)
    if call is None:
        return None
    fn, kinds = call["fn"], (AbstractDenoiser, Standardized)
    if isinstance(fn, type) and issubclass(fn, kinds):
        return call["name"], fn.__name__
    return (call["name"], type(fn).__name__) if isinstance(fn, kinds) else None


def number_as_distribution(traceback: TracebackType | None) -> tuple[str, str] | None:
    """The site to which a number or an array was given as if it were a distribution, and what it was."""
    call = _sample_call(traceback)
    if call is None or not isinstance(call["fn"], numbers.Number | np.ndarray | jax.Array):
        return None
    fn = call["fn"]
    what = f"the number {fn}" if isinstance(fn, numbers.Number) else f"an array of shape {fn.shape}"
    return call["name"], what


def _sample_call(traceback: TracebackType | None) -> dict[str, Any] | None:
    """The arguments of the last call of `numpyro.sample` that an error came through."""
    found, sample_code = None, getattr(numpyro.sample, "__code__", None)
    while traceback is not None:
        if traceback.tb_frame.f_code is sample_code:
            found = traceback.tb_frame.f_locals
        traceback = traceback.tb_next
    return found
