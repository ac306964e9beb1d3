r"""Plain NumPy arrays from `.eqx` and `.safetensors` files.

Neither format holds code. What can be wrong is a size: a header that declares more than the file has. It is
held against the bytes that are there before anything is allocated.
"""

import ast
import json
import math
import re
import struct

import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._safetensors import numbers_in, parse
from .files import MAX_BYTES, Source, read_bytes

__all__ = ["read_equinox_leaves", "read_safetensors"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_DAMAGED = ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError
_MAX_LEAVES = 20_000  # a header of text each, so that their number is work


def read_equinox_leaves(source: Source, *, max_bytes: int = MAX_BYTES) -> list[np.ndarray]:
    """Leaves that `equinox.tree_serialise_leaves` wrote, in their order.

    Such a file is one `.npy` block after another; Python numbers are blocks without dimensions. A first line
    of JSON, in which many keep hyperparameters, is skipped. Which leaf is which, the file does not say.

    Args:
        source: A path, or the bytes of a file.
        max_bytes: Largest size to read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is anything but a chain of whole blocks of numbers.
    """
    data = read_bytes(source, max_bytes=max_bytes)
    at = _end_of_json_line(data)
    leaves = []
    while at < len(data):
        try:
            leaf, at = _npy_block(data, at)
            if len(leaves) == _MAX_LEAVES:
                raise ValueError(f"more than {_MAX_LEAVES} blocks")
        except _DAMAGED as error:
            raise ValueError(
                f"expected the leaves of an Equinox module as `.npy` blocks; block {len(leaves)} at byte "
                f"{at} of {len(data)} cannot be read: {error}. The file may be truncated or of another "
                f"format. {_faq.unreadable}"
            ) from error
        leaves.append(leaf)
    if not leaves:
        raise ValueError(
            f"expected the leaves of an Equinox module; the file holds none. {_faq.foreign_weights}"
        )
    return leaves


def _end_of_json_line(data: bytes) -> int:
    if not data.startswith(b"{"):
        return 0
    line, newline, _ = data[: 2**20].partition(b"\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected `.npy` blocks after a first line of JSON; that line cannot be read: {error}. The "
            f"file may be of another format. {_faq.unreadable}"
        ) from error
    return len(line) + len(newline)


def _npy_block(data: bytes, at: int) -> tuple[np.ndarray, int]:
    """One array and where the next begins. The header is a literal, read as such."""
    if data[at : at + 6] != _MAGIC or len(data) < at + 12:
        raise ValueError(f"no `.npy` header, but {data[at : at + 8]!r}")
    wide = data[at + 6] > 1
    start = at + (12 if wide else 10)
    (size,) = struct.unpack("<I" if wide else "<H", data[at + 8 : start])
    if size > min(_MAX_HEADER, len(data) - start):
        raise ValueError(f"a header of {size} bytes")
    header = ast.literal_eval(data[start : start + size].decode("latin1").strip())
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without type, order and shape")
    dtype, shape = _dtype(header["descr"]), header["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape that is none")
    count, start = math.prod(shape), start + size
    if count * dtype.itemsize > len(data) - start:
        raise ValueError(
            f"it declares {count * dtype.itemsize} bytes where {len(data) - start} are left"
        )
    flat = numbers_in(data, dtype, count, start)
    order = "F" if header["fortran_order"] is True else "C"
    return flat.reshape(shape, order=order), start + flat.nbytes


def _dtype(descr) -> np.dtype:
    if isinstance(descr, str) and descr in ("|V2", "<V2"):
        return np.dtype(jnp.bfloat16)  # NumPy has no name for it
    if not (isinstance(descr, str) and re.fullmatch("[<>|][biufc][0-9]{1,2}", descr)):
        raise ValueError(f"entries of type {str(descr)[:40]!r}, which are not numbers")
    return np.dtype(descr)


def read_safetensors(source: Source, *, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file by name.

    Args:
        source: A path, or the bytes of a file.
        max_bytes: Largest size to read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not whole, or holds numbers of a type that NumPy and JAX lack.
    """
    data = read_bytes(source, max_bytes=max_bytes)
    try:
        return parse(data)[1]
    except ValueError as error:
        raise ValueError(
            f"expected a safetensors file; these {len(data)} bytes cannot be read: {error}. The file may "
            f"be truncated or of another format (a pickle, say). {_faq.unreadable}"
        ) from error
