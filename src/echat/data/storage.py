"""File access: local files through ``pread``, object stores through fsspec; paths and names of files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import quote

from echat.data.defects import DataError, Defect, DefectKind

OPEN_FILES = 64  # descriptors kept open per process
LONGEST_NAME = 120  # characters of a file name made of a key


class Stamp(NamedTuple):
    """Version of a file (size and time of change): an index made for one is not used for another."""

    size: int
    mtime_ns: int


class _Descriptor:
    """An open file; it stays open as long as anybody reads from it, also after it has left the cache."""

    def __init__(self, path: str) -> None:
        self.number = _open(path)
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


def absolute(path: str) -> str:
    """The path from the root; a URL stays what it is."""
    return path if is_url(path) else os.path.abspath(path)


def real(path: str) -> str:
    """The path from the root with links followed; a URL stays what it is."""
    return path if is_url(path) else os.path.realpath(path)


def file_name(key: str) -> str:
    """A file name for any key, another one for every other key."""
    name = quote(key, safe=" ")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def exists(path: str) -> bool:
    """Is there a file (not a folder)?"""
    if is_url(path):
        with _store(path) as store:
            return bool(store.isfile(path))
    try:
        return os.path.isfile(path)
    except ValueError:  # a name with a zero byte
        return False


def stamp(path: str) -> Stamp:
    """Size and time of change of a file; raises OSError when there is none, or when it is no regular file."""
    if is_url(path):
        with _store(path) as store:
            return Stamp(int(store.info(path)["size"]), 0)
    status = os.stat(path)
    _refuse_irregular(path, status.st_mode)
    return Stamp(status.st_size, status.st_mtime_ns)


def read_bytes(path: str) -> bytes:
    """The whole file."""
    if is_url(path):
        with _store(path) as store:
            return bytes(store.cat_file(path))
    with open_binary(path) as stream:
        return stream.read()


def read_range(path: str, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` (fewer where the file ends). Safe in threads and after a fork."""
    if is_url(path):
        with _store(path) as store:
            return bytes(store.cat_file(path, start=offset, end=offset + size))
    file = _descriptor(path)
    size = min(size, os.fstat(file.number).st_size - offset)  # no buffer beyond the end of the file
    pieces = []
    while size > 0:
        piece = os.pread(file.number, size, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def open_binary(path: str) -> BinaryIO:
    """The file as a stream that can seek. Raises OSError for what is no regular file."""
    if is_url(path):
        with _store(path) as store:
            stream: BinaryIO = store.open(path, "rb")
            return stream
    return open(_open(path), "rb")


def _open(path: str) -> int:
    """A descriptor of a regular file. A pipe or a device is refused at once: reading it may never end."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0))
    try:
        _refuse_irregular(path, os.fstat(number).st_mode)
    except OSError:
        os.close(number)
        raise
    return number


def _refuse_irregular(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, no regular file", path)


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


@contextmanager
def _store(path: str) -> Iterator[Any]:
    """The object store of a URL. Whatever goes wrong there is an OSError, or a DataError with the remedy."""
    protocol = path.partition("://")[0]
    try:
        import fsspec

        yield fsspec.url_to_fs(path)[0]  # one instance per process, which fsspec keeps
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
    except ImportError as error:
        reason = f"expected the Python package that reads {protocol}:// URLs, found none: {error}"
        _refuse(path, f"{reason}; install it with pip", error)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        _refuse(
            path, f"expected a URL that fsspec opens, found: {message}; check its protocol and host", error
        )


def _refuse(path: str, reason: str, error: Exception) -> NoReturn:
    raise DataError(Defect(DefectKind.UNREADABLE_FILE, path, reason=reason)) from error


# --- Source and result kept apart.


def refuse_file(path: str | os.PathLike[str], sources: Iterable[str], option: str = "--output") -> None:
    """Raise DataError where a file about to be written is one of the sources, by whatever name."""
    real_path, own = os.path.realpath(path), identity(path)
    for source in sources:
        if os.path.realpath(source) == real_path or (own is not None and identity(source) == own):
            raise DataError(
                f"{option}: expected a place apart from the source, found that {path} is {source} itself; "
                "name another one"
            )


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Device and inode of a file, which hard links share; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
