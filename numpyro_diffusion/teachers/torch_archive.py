r"""Tensors of a PyTorch file without PyTorch, and without running what is in it.

`torch.save` writes a zip archive: a pickle that says which tensors there are, and the numbers, a record for
each storage. The pickle is read by `interpret`, which can call nothing; the four names that a state dict
needs are acted on here. Whatever else a file asks for is refused by name.
"""

import math
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._safetensors import numbers_in
from .files import MAX_BYTES, ZIP_ERRORS, Source, open_zip, read_bytes
from .torch_pickle import Name, interpret

__all__ = ["read_torch"]

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_PLAIN = (type(None), bool, int, float, str)
_MAX_DIMENSIONS = 32


class _Tensor(NamedTuple):
    """An array, hidden from the pickle so that it cannot pass for a tuple or a dict."""

    array: np.ndarray


class _Storage(NamedTuple):
    numbers: np.ndarray


def read_torch(source: Source, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The dict in a file that `torch.save` wrote: `.pt`, `.pth`, `.ckpt`, `.bin`.

    Usually a state dict, names to arrays. Dicts, lists, tuples, numbers and strings around the tensors are
    kept. Arrays are read-only views of the file's numbers.

    Args:
        source: A path, or the bytes of a file.
        max_bytes: Largest size of the file, and of all its tensors together.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, declares more than it holds, or asks for anything but tensors and
            containers; the message names it.
    """
    data = read_bytes(source, max_bytes=max_bytes)
    try:
        with open_zip(data) as archive:
            reader = _Archive(archive, len(data), max_bytes)
            result = interpret(reader.record("data.pkl"), reader.call, reader.load)
        if type(result) is not dict:
            raise ValueError(f"a {type(result).__name__} instead of a dict")
        return _unwrap(result)
    except ZIP_ERRORS as error:
        raise ValueError(
            f"expected a zip archive of tensors written by `torch.save`; these {len(data)} bytes cannot be "
            f"used: {error}. In PyTorch 1.6 or newer, where you trust the file, write the tensors alone: "
            f"`torch.save(model.state_dict(), path)`. {_faq.unreadable}"
        ) from error


class _Archive:
    """Records of one file, and what its pickle may ask for."""

    def __init__(self, archive: zipfile.ZipFile, size: int, max_bytes: int):
        infos = archive.infolist()
        names = [info.filename for info in infos]
        folders = {name.partition("/")[0] for name in names}
        if len(folders) != 1 or len(set(names)) != len(names):
            raise ValueError("records in several folders or twice under one name")
        if sum(info.file_size for info in infos) > size:
            raise ValueError("records that declare more bytes than the file has")
        self.archive, self.folder = archive, folders.pop()
        self.sizes = {info.filename: info.file_size for info in infos}
        if f"{self.folder}/constants.pkl" in self.sizes:
            raise ValueError("a TorchScript program, of which only the state dict can be read")
        if self.record("byteorder", b"little") != b"little":
            raise ValueError("numbers that are not little-endian")
        self.storages: dict[str, bytes] = {}
        self.bytes_left = max_bytes

    def record(self, name: str, default: bytes | None = None) -> bytes:
        path = f"{self.folder}/{name}"
        if path not in self.sizes:
            if default is not None:
                return default
            raise ValueError(f"no record {name[:40]!r}")
        if self.archive.getinfo(path).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {name[:40]!r} is compressed, which PyTorch never does")
        return self.archive.read(path)

    def load(self, identifier: tuple) -> _Storage:
        """The storage that `("storage", type, record, device, number of elements)` names."""
        match identifier:
            case ("storage", Name("torch", kind), str(key), _, int(count)) if kind in _STORAGES:
                dtype = np.dtype(_STORAGES[kind])
            case ("storage", Name() as kind, *_):
                raise ValueError(f"numbers of type {kind}, which are not supported")
            case _:
                raise ValueError("an object outside the pickle that is not a storage")
        if key not in self.storages:
            self.storages[key] = self.record(f"data/{key}")
        raw = self.storages[key]
        if count < 0 or count * dtype.itemsize != len(raw):
            raise ValueError(f"storage {key[:40]!r} declares {count} numbers in {len(raw)} bytes")
        return _Storage(numbers_in(raw, dtype))

    def call(self, name: Name, arguments: tuple):
        match (name.module, name.name), arguments:
            case ("collections", "OrderedDict"), ():
                return {}
            case ("torch", "Size"), (tuple(sizes),) if _are_counts(sizes):
                return sizes
            case (
                ("torch._utils", "_rebuild_tensor_v2"),
                # What follows says how gradients flow, and at times {"neg": True}.
                (_Storage(numbers), offset, tuple(size), tuple(stride), bool(), {**hooks}, *bits),
            ) if not hooks:
                tensor = self.tensor(numbers, offset, size, stride)
                return _Tensor(_with_bits(tensor.array, bits))
            case (
                ("torch._utils", "_rebuild_parameter"),
                (_Tensor() as tensor, bool(), {**hooks}),
            ) if not hooks:
                return tensor
            case ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter"), _:
                raise ValueError(f"it calls {name} with arguments that are not understood")
        raise ValueError(f"it asks to call {name}, and only tensors can be built")

    def tensor(self, numbers: np.ndarray, offset, size: tuple, stride: tuple) -> _Tensor:
        if len(size) > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions")
        if not (all(map(_are_counts, ((offset,), size, stride))) and len(size) == len(stride)):
            raise ValueError("a tensor whose offset, size or stride is not a count")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # A stride of 0 would make much out of little, and an index past the end read other memory.
        if count > len(numbers) or (count > 0 and last >= len(numbers)):
            raise ValueError(
                f"a tensor of {count} numbers, the last at {last}, in a storage of {len(numbers)}; save "
                "expanded tensors with `.contiguous()`"
            )
        self.bytes_left -= count * numbers.itemsize
        if self.bytes_left < 0:
            raise ValueError("tensors of more bytes in all than `max_bytes`")
        if count == 0:
            return _Tensor(np.zeros(size, numbers.dtype))
        steps = [step * numbers.itemsize for step in stride]
        return _Tensor(
            np.ndarray(size, numbers.dtype, numbers, offset * numbers.itemsize, tuple(steps))
        )


def _with_bits(array: np.ndarray, bits: list) -> np.ndarray:
    """Numbers as PyTorch's lazy operations mean them, which it keeps as bits beside a tensor."""
    match bits:
        case []:
            return array
        case [{**rest}] if not rest:
            return array
        case [{"neg": True, **rest}] if not rest and array.dtype.kind in "fiV":
            array = -array
            array.flags.writeable = False
            return array
    raise ValueError(f"a tensor with metadata {bits!r:.60}, which is not understood")


def _are_counts(numbers) -> bool:
    return len(numbers) <= _MAX_DIMENSIONS and all(
        type(n) is int and 0 <= n < 2**62 for n in numbers
    )


def _unwrap(value, depth: int = 0, seen: dict | None = None) -> Any:
    """Arrays in place of `_Tensor`; a container that occurs twice is converted once."""
    seen = {} if seen is None else seen
    if isinstance(value, _Tensor):
        return value.array
    if type(value) in _PLAIN:
        return value
    if type(value) not in (dict, list, tuple):
        what = str(value) if isinstance(value, Name) else type(value).__name__.strip("_").lower()
        raise ValueError(f"a bare {what} among the tensors")
    if id(value) in seen:
        return seen[id(value)]
    if depth > 100:
        raise ValueError("containers more than 100 deep")
    inside = lambda item: _unwrap(item, depth + 1, seen)
    if isinstance(value, tuple):
        seen[id(value)] = result = tuple(map(inside, value))
        return result
    seen[id(value)] = result = type(value)()
    if isinstance(value, dict):
        result.update((key, inside(item)) for key, item in value.items())
    else:
        result.extend(map(inside, value))
    return result
