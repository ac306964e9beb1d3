"""Bytes of a file, of a file in a folder, or of a member of a zip archive such as a wheel.

Everything that reads weights starts here, so that one place bounds sizes: nothing is read, and no memory is
taken, before what the file declares has been held against `max_bytes`.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .. import _faq

__all__ = ["MAX_BYTES", "Source", "read_bytes"]

MAX_BYTES = 4 * 2**30
_MAX_DIRECTORY = 8 * 2**20  # some 100,000 entries
Source = str | os.PathLike | bytes

# What `zipfile` raises on archives that are damaged, encrypted or compressed in a way it does not know.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)


def read_bytes(source: Source, member: str | None = None, *, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a file, or of one member of a folder or zip archive.

    Args:
        source: A path; or bytes, which are returned as they are once their length is checked.
        member: Name inside the folder or archive that `source` is, with `/` between folders.
        max_bytes: Largest number of bytes to read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is larger than `max_bytes`, the archive is damaged, or has no such member.
    """
    if isinstance(source, bytes):
        _check_size(len(source), max_bytes, "the data")
        return source
    path = Path(source)
    if member is not None and path.is_dir():
        parts = PurePosixPath(member).parts
        if PurePosixPath(member).is_absolute() or ".." in parts:
            raise ValueError(
                f"`member` must lie inside the folder {path}; got {member!r}. {_faq.paths}"
            )
        path, member = path.joinpath(*parts), None
    if not path.is_file():
        raise FileNotFoundError(
            f"no file at {path} (working directory {Path.cwd()}). Weights of others do not ship with this "
            f"package: download them and pass the path. {_faq.paths}"
        )
    if member is not None:
        return _read_member(path, member, max_bytes)
    size = path.stat().st_size
    _check_size(size, max_bytes, str(path))
    with open(path, "rb") as file:
        return file.read(size)  # takes memory for all that it is asked for, at once


def _read_member(path: Path, member: str, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            _check_directory(file)
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise ValueError(
            f"expected a folder or a zip archive (a wheel, say) that holds {member!r}; {path} is neither: "
            f"{error}. Leave `member` out to read the file itself. {_faq.paths}"
        ) from error
    with archive:
        if member not in archive.namelist():
            raise ValueError(
                f"{path} has no member {member!r}; it holds "
                f"{sorted(archive.namelist())[:20]}. {_faq.paths}"
            )
        info = archive.getinfo(member)
        _check_size(info.file_size, max_bytes, f"{member} in {path}")
        try:
            return archive.read(info)  # never more than the size that was declared
        except ZIP_ERRORS as error:
            raise ValueError(
                f"{member} in {path} is damaged: {error}. Download it again. {_faq.unreadable}"
            ) from error


def open_zip(data: bytes) -> zipfile.ZipFile:
    """An archive held in memory."""
    _check_directory(io.BytesIO(data))
    return zipfile.ZipFile(io.BytesIO(data))


def _check_directory(file: BinaryIO):
    """Refuse an archive with a directory so long that reading it is work.

    Its length stands in a record within the last 64 kB, and in one of 64 bits before where it is that long.
    """
    start = max(0, file.seek(0, os.SEEK_END) - 2**16 - 128)
    file.seek(start)
    tail = file.read()
    for magic, place, form in ((b"PK\x05\x06", 12, "<I"), (b"PK\x06\x06", 40, "<Q")):
        at = tail.find(magic)
        while 0 <= at <= len(tail) - place - 8:
            (size,) = struct.unpack_from(form, tail, at + place)
            if _MAX_DIRECTORY < size < 2**32 - 1 or (form == "<Q" and size > _MAX_DIRECTORY):
                raise ValueError(
                    f"a directory of {size} bytes, where at most {_MAX_DIRECTORY} are read"
                )
            at = tail.find(magic, at + 1)


def _check_size(size: int, max_bytes: int, what: str):
    if size > max_bytes:
        raise ValueError(
            f"{what} holds {size} bytes, more than `max_bytes` = {max_bytes}. Pass a larger limit if you "
            f"trust it. {_faq.foreign_weights}"
        )
