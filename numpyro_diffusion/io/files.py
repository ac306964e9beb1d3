r"""Save and load energies: safetensors with a JSON header, never pickle.

A file holds the arrays of an energy, and in its metadata a description of the tree they hang on: for
every module its class, by name, and its fields. Loading builds only the classes of this package that
`class_names` lists and those that the caller gives, sets their fields, and runs no code from the file. A file
of any earlier version loads, wherever its classes stand by now. Any framework can read the arrays.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._safetensors import check_digest, check_finite, parse, write
from ..energies import AbstractDenoiser, Standardized
from .labels import UnknownClassError, class_finder
from .trees import decode, encode

__all__ = ["load", "read_card", "save"]

FORMAT = "numpyro-diffusion"
VERSION = 3  # version 1 had no digest; 1 and 2 named classes by where they stood
_METADATA = {"format", "version", "tree", "card"}
# What a tree that does not fit together can raise, in its constructor's checks or when it is evaluated.
_MISFIT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


def save(
    path: str | os.PathLike,
    energy: AbstractDenoiser | Standardized,
    card: dict[str, Any] | None = None,
):
    """Write an energy (a tree of modules of this package, or of your own) to one safetensors file.

    The file appears whole or not at all, and carries the SHA-256 of its content.

    Args:
        path: Where to write, by custom ending in `.safetensors`.
        energy: The energy or denoiser, or a `Standardized` distribution, whose units are stored with it.
        card: What a reader should know: licence, data, units, range. Anything that JSON can hold.

    Raises:
        TypeError: If there is no energy, it holds something that is neither an array, a module nor plain
            data, or the card is not plain data.
        ValueError: If a weight is NaN or infinite, or the energy cannot be evaluated.
    """
    if not isinstance(energy, AbstractDenoiser | Standardized):
        raise TypeError(
            f"`save` expects an energy or a denoiser; got {type(energy).__name__}. Save its parts with "
            f"`equinox.tree_serialise_leaves`. {_faq.saving}"
        )
    arrays: dict[str, np.ndarray] = {}
    tree = encode(energy, "energy", arrays)
    check_finite(arrays.items())
    try:
        _check_evaluates(_inside(energy))
    except _MISFIT as error:
        raise ValueError(
            f"cannot save this {type(energy).__name__}, since it cannot be evaluated: "
            f"{_faq.bare(error)}. Mend or convert its parts first. {_faq.saving}"
        ) from error
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "tree": json.dumps(tree, allow_nan=False),
        "card": _card_text(card),
    }
    write(path, arrays, metadata)


def _card_text(card) -> str:
    try:
        text = json.dumps({} if card is None else card, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"`card` must be a dict of strings, finite numbers, lists and dicts; {error}. Convert arrays "
            f"with `.tolist()`, and write None for numbers that are not known. {_faq.saving}"
        ) from error
    if not isinstance(card, dict | None):
        raise TypeError(f"`card` must be a dict; got {type(card).__name__}. {_faq.saving}")
    return text


def load(path: str | os.PathLike, *, classes: Sequence[type[eqx.Module]] = ()) -> Any:
    """Read an energy that `save` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        classes: Module classes from outside this package that the file may hold (a network of your
            own, say). They are matched by module and name; one that stands in another module than when the
            file was written by its name alone.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `classes` holds something else than classes of modules.
        ValueError: If the file is corrupt, truncated, foreign, of a later version, or does not fit
            the classes it names, or two of `classes` have the same name.
    """
    metadata, arrays = _read(path)
    find = class_finder(classes, by_place=metadata["version"] in ("1", "2"))
    used: set[str] = set()
    try:
        energy = decode(json.loads(metadata["tree"]), arrays, find, used)
        if not isinstance(energy, AbstractDenoiser | Standardized):
            raise ValueError(f"the file holds a {type(energy).__name__}, not an energy")
        if used != set(arrays):
            raise ValueError(f"tensors that the header does not name: {sorted(set(arrays) - used)}")
        check_finite(arrays.items())
        _check_evaluates(_inside(energy))
    except UnknownClassError as error:
        told = str(error).removesuffix(".")
        raise ValueError(f"{path} cannot be read: {told}. {_faq.unknown_class}") from error
    except _MISFIT as error:
        raise ValueError(
            f"{path} does not describe an energy of this package: {_faq.bare(error)}. Save it again with "
            "`numpyro_diffusion.save`, or name your own classes in `load(..., "
            f"classes=...)`. {_faq.unknown_class}"
        ) from error
    return energy


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card stored beside an energy: licence, data, units, range.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one that `save` wrote, or its card is damaged.
    """
    text = _read(path)[0]["card"]
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the card in {path} is damaged: {error}. Save it again. {_faq.unreadable}"
        ) from error
    if not isinstance(card, dict):
        raise ValueError(
            f"the card in {path} must be a JSON object; got "
            f"{type(card).__name__}. {_faq.unreadable}"
        )
    return card


def _read(path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file at {path} (working directory {Path.cwd()}). Check the path; energies that ship "
            f"with the package are read with `load_pretrained(name)`. {_faq.paths}"
        )
    try:
        metadata, arrays = parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"expected a safetensors file written by `numpyro_diffusion.save`; {path} "
            f"({path.stat().st_size} bytes) cannot be read: {error}. It may be truncated or of "
            f"another format (a pickle, say): copy or save it again. {_faq.unreadable}"
        ) from error
    if metadata.get("format") != FORMAT or not metadata.keys() >= _METADATA:
        raise ValueError(
            f"expected metadata with format={FORMAT!r}; got format={metadata.get('format')!r} in "
            f"{path}: safetensors of another program. Rebuild the energy in Python and `save` "
            f"it. {_faq.unreadable}"
        )
    if metadata["version"] not in map(str, range(1, VERSION + 1)):
        raise ValueError(
            f"expected format version 1 to {VERSION}; got {metadata['version']} in {path}. Install the "
            "release of numpyro-diffusion that wrote it, or save it again with this "
            f"one. {_faq.version}"
        )
    try:
        if metadata["version"] != "1":
            check_digest(metadata, arrays)
        elif metadata.keys() != _METADATA:
            raise ValueError(f"metadata {sorted(metadata.keys() - _METADATA)} beside version 1")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be used: {error}. Copy or save it again. {_faq.unreadable}"
        ) from error
    return metadata, arrays


def _inside(energy: AbstractDenoiser | Standardized) -> AbstractDenoiser:
    return energy.energy if isinstance(energy, Standardized) else energy


def _check_evaluates(energy: AbstractDenoiser):
    """Shapes and types of the parts fit together: an abstract evaluation, without arithmetic."""
    x = jax.ShapeDtypeStruct(tuple(energy.shape), jnp.result_type(float))
    t = jax.ShapeDtypeStruct((), jnp.result_type(float))
    out = jax.eval_shape(energy.denoise, x, t)
    if out.shape != x.shape or not 0 <= energy.t_min < energy.t_max <= 1:
        raise ValueError(
            f"the energy maps {x.shape} to {out.shape} with times {energy.t_min} to {energy.t_max}"
        )
