"""PyTorch files by hand, instruction by instruction, so that they can lie."""

import io
import struct
import zipfile

import numpy as np


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def run(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def name(module: str, label: str) -> bytes:
    return f"c{module}\n{label}\n".encode()


def tensor(
    size=(2,), stride=(1,), offset=0, count=4, kind="FloatStorage", key="0", more: bytes = b""
) -> bytes:
    """A call that builds a tensor; `more` are arguments after those that every file has."""
    storage = (
        run(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"
    )
    numbers = [run(*map(number, size)), run(*map(number, stride))]
    arguments = [
        storage,
        number(offset),
        *numbers,
        b"\x89",
        name("collections", "OrderedDict") + b")R",
        more,
    ]
    return name("torch._utils", "_rebuild_tensor_v2") + run(*arguments) + b"R"


def state(value: bytes) -> bytes:
    """A pickle of {"w": value}."""
    return b"\x80\x02}" + text("w") + value + b"s."


def torch_file(program: bytes, compression=zipfile.ZIP_STORED, **records: bytes) -> bytes:
    file = io.BytesIO()
    numbers = np.arange(4, dtype=np.float32).tobytes()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for path, raw in {"data.pkl": program, "data/0": numbers, **records}.items():
            archive.writestr(f"archive/{path}", raw)
    return file.getvalue()
