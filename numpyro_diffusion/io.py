r"""Save and load energies: safetensors with a JSON header, never pickle.

A file holds the arrays of an energy, and in its metadata a description of the tree they hang on: for
every module its class and its fields. Loading builds only classes of this package's `energies`,
`factors`, `population`, `nets` and `schedules` (and those that the caller names), sets their fields, and
runs no code from the file. Any framework can read the arrays.
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .energies import AbstractDenoiser, Standardized
from .trees import decode, encode, package_classes

__all__ = ["load", "read_card", "save"]

FORMAT = "numpyro-diffusion"
VERSION = 1


def save(
    path: str | os.PathLike,
    energy: AbstractDenoiser | Standardized,
    card: dict[str, Any] | None = None,
):
    """Write an energy (any tree of this package's modules) to one safetensors file.

    The file appears whole or not at all.

    Args:
        path: Where to write, by custom ending in `.safetensors`.
        energy: The energy or denoiser, or a `Standardized` law, whose units are stored with it.
        card: What a reader should know: licence, data, units, range. Anything that JSON can hold.

    Raises:
        TypeError: If the energy holds something that is neither an array, a module nor plain data.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = encode(energy, "energy", arrays)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "tree": json.dumps(tree, allow_nan=False),
        "card": json.dumps(card or {}, allow_nan=False),
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(arrays, partial, metadata)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # safetensors writes for the owner alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike, *, classes: Sequence[type[eqx.Module]] = ()) -> Any:
    """Read an energy that `save` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        classes: Module classes from outside this package that the file may hold (a network of your
            own, say). They are matched by module and name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, truncated, foreign, of another version, or does not fit
            the classes it names.
    """
    metadata, arrays = _read(path)
    allowed = dict(package_classes())
    allowed.update({f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes})
    used: set[str] = set()
    try:
        energy = decode(json.loads(metadata["tree"]), arrays, allowed, used)
        if not isinstance(energy, AbstractDenoiser | Standardized):
            raise ValueError(f"the file holds a {type(energy).__name__}, not an energy")
        if used != set(arrays):
            raise ValueError(f"tensors that the header does not name: {sorted(set(arrays) - used)}")
        _check_evaluates(energy.energy if isinstance(energy, Standardized) else energy)
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe an energy of this package: {error}. Save it again with "
            "`numpyro_diffusion.save`, or name your own classes in `load(..., classes=...)`."
        ) from error
    return energy


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card stored beside an energy: licence, data, units, range.

    Args:
        path: The file.
    """
    card = json.loads(_read(path)[0]["card"])
    if not isinstance(card, dict):
        raise ValueError(f"the card in {path} must be a JSON object; got {type(card).__name__}.")
    return card


def _read(path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file at {path} (working directory {Path.cwd()}). Check the path; energies that ship "
            "with the package are read with `load_pretrained(name)`."
        )
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"expected a safetensors file written by `numpyro_diffusion.save`; {path} "
            f"({path.stat().st_size} bytes) cannot be read: {error}. It may be truncated or of "
            "another format (a pickle, say): copy or save it again."
        ) from error
    if metadata.get("format") != FORMAT or not {"version", "tree", "card"} <= metadata.keys():
        raise ValueError(
            f"expected metadata with format={FORMAT!r}; got format={metadata.get('format')!r} in "
            f"{path}: safetensors of another program. Rebuild the energy in Python and `save` it."
        )
    if metadata["version"] != str(VERSION):
        raise ValueError(
            f"expected format version {VERSION}; got {metadata['version']} in {path}. Install the "
            "release of numpyro-diffusion that wrote it, or save it again with this one."
        )
    return metadata, arrays


def _check_evaluates(energy: AbstractDenoiser):
    """Shapes and types of the parts fit together: an abstract evaluation, without arithmetic."""
    x = jax.ShapeDtypeStruct(tuple(energy.shape), jnp.result_type(float))
    t = jax.ShapeDtypeStruct((), jnp.result_type(float))
    out = jax.eval_shape(energy.denoise, x, t)
    if out.shape != x.shape or not 0 <= energy.t_min < energy.t_max <= 1:
        raise ValueError(
            f"the energy maps {x.shape} to {out.shape} with times {energy.t_min} to {energy.t_max}"
        )
