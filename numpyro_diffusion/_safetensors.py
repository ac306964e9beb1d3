"""Safetensors files: read with bounds, written whole, and known again by a digest of what is in them.

Every such file goes through here, our own and those of others. The format itself cannot tell altered numbers
from good ones; in a file of this package SHA-256 over names, types, shapes, numbers and metadata does.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from . import _faq

__all__ = ["check_digest", "check_finite", "check_folder", "numbers_in", "parse", "write"]

_MAX_HEADER = 4 * 2**20  # some 30,000 tensors
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_WRITABLE = {np.dtype(dtype) for dtype in _DTYPES.values()}


def parse(data: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays in the bytes of a file.

    Args:
        data: All bytes of the file.

    Raises:
        ValueError: If they are not a whole file, or hold numbers of a type that NumPy and JAX lack.
    """
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if 8 + size <= len(data) and size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes, where at most {_MAX_HEADER} are read")
    try:
        tensors = deserialize(data)
        arrays = {
            name: numbers_in(tensor["data"], _dtype(tensor["dtype"])).reshape(tensor["shape"])
            for name, tensor in sorted(tensors, key=lambda tensor: tensor[0])
        }
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(str(error)) from error
    return metadata, arrays


def numbers_in(raw: bytes | bytearray, dtype, count: int = -1, offset: int = 0) -> np.ndarray:
    """Bytes as numbers; flags must be 0 or 1, since NumPy counts with what stands in their byte."""
    numbers = np.frombuffer(raw, dtype, count, offset)
    if numbers.dtype == np.bool_ and numbers.size and numbers.view(np.uint8).max() > 1:
        raise ValueError("flags that are neither 0 nor 1")
    return numbers


def _dtype(name: str):
    if name not in _DTYPES:
        raise ValueError(f"type {name!r} is not one of {sorted(_DTYPES)}")
    return _DTYPES[name]


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]):
    """Write a file with its digest, whole or not at all, whatever happens to process or machine.

    Args:
        path: The file.
        arrays: Arrays by name.
        metadata: Strings by name; `sha256` is added.

    Raises:
        FileNotFoundError: If there is no such folder.
        TypeError: If an array has a type that the format does not know.
    """
    path = Path(path)
    check_folder(path)
    for name, array in arrays.items():
        if array.dtype not in _WRITABLE:
            raise TypeError(
                f"cannot save `{name}`: expected numbers of a type among "
                f"{', '.join(sorted(map(str, _WRITABLE)))}; got {array.dtype}. Convert it "
                f"first. {_faq.saving}"
            )
    metadata = metadata | {"sha256": _digest(metadata, arrays)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(dict(arrays), partial, metadata)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # safetensors writes for the owner alone
        _to_disk(partial)  # or a crash could leave the new name on numbers never written
        os.replace(partial, path)
        if os.name == "posix":
            _to_disk(path.parent)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}. Is the disk full? {_faq.saving}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_folder(path: Path):
    """Refuse a path that cannot be written, before work is lost over it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the path of a file in it. {_faq.paths}")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {path.parent} to write {path.name} in (working directory {Path.cwd()}). Make it "
            f"first, or give another path. {_faq.paths}"
        )


def _to_disk(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]):
    """Refuse metadata and arrays that are not those the digest was taken of.

    Raises:
        ValueError: If the digest is missing or another.
    """
    rest = {name: value for name, value in metadata.items() if name != "sha256"}
    if metadata.get("sha256") != _digest(rest, arrays):
        raise ValueError("its SHA-256 is not that of its content: it is damaged, or was edited")


def _digest(metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    state = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        about = [name, str(array.dtype), list(arrays[name].shape)]
        state.update(json.dumps(about).encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def check_finite(arrays: Iterable[tuple[str, Any]]):
    """Refuse weights that are NaN or infinite, by name.

    Args:
        arrays: Names and arrays.

    Raises:
        ValueError: If one holds such a number.
    """
    for name, array in arrays:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            continue
        bad = int(np.sum(~np.isfinite(np.asarray(array))))
        if bad:
            raise ValueError(
                f"expected finite numbers; {bad} of the {array.size} in `{name}` are NaN or infinite. Go "
                "back to weights from before they appeared: lower the learning rate, or repair "
                f"the file. {_faq.finite}"
            )
