"""Bytes from where they lie: local files through ``pread``, object stores through fsspec."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

OPEN_FILES = 64  # descriptors kept open per process


class Stamp(NamedTuple):
    """Tells one state of a file from another: an index made for one stamp is not used for another."""

    size: int
    mtime_ns: int


class _Descriptor:
    """An open file; it stays open as long as anybody reads from it, also after it has left the cache."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        found = os.fstat(self.number)
        self.identity = (found.st_dev, found.st_ino)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_files: OrderedDict[str, _Descriptor] = OrderedDict()
_lock = threading.Lock()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Does the path name an object store (``s3://...``) rather than a local file?"""
    return "://" in str(path)


def join(folder: str, name: str) -> str:
    """``name`` under ``folder``; a URL or an absolute path stays what it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder a file lies in."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path) or "."


def exists(path: str) -> bool:
    """Is there a file (not a folder)?"""
    if is_url(path):
        return bool(_store(path).isfile(path))
    return os.path.isfile(path)


def stamp(path: str) -> Stamp:
    """Size and time of change of a file; raises OSError when there is none."""
    if is_url(path):
        found = _store(path).info(path)
        return Stamp(int(found["size"]), 0)
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", path)
    return Stamp(status.st_size, status.st_mtime_ns)


def read_bytes(path: str) -> bytes:
    """The whole file."""
    if is_url(path):
        return bytes(_store(path).cat_file(path))
    return Path(path).read_bytes()


def read_range(path: str, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` (fewer where the file ends). Safe in threads and after a fork."""
    if is_url(path):
        return bytes(_store(path).cat_file(path, start=offset, end=offset + size))
    file = _descriptor(path)
    pieces = []
    while size > 0:
        piece = os.pread(file.number, size, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def open_binary(path: str) -> BinaryIO:
    """The file as a stream that can seek."""
    if is_url(path):
        stream: BinaryIO = _store(path).open(path, "rb")
        return stream
    return open(path, "rb")


def _descriptor(path: str) -> _Descriptor:
    """From the cache, unless another file has taken the name since."""
    with _lock:
        file = _files.get(path)
        if file is not None:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) == file.identity:
                _files.move_to_end(path)
                return file
        file = _files[path] = _Descriptor(path)
        _files.move_to_end(path)
        if len(_files) > OPEN_FILES:
            _files.popitem(last=False)
        return file


def _store(path: str) -> Any:
    import fsspec

    return fsspec.filesystem(path.partition("://")[0])  # one instance per process, which fsspec keeps
