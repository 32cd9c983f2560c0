"""Index files: what was learnt from one pass over a large file, kept beside it for all later ones.

An index lies beside its file, or in the user's cache where that folder is not to be written in. It is used
only as long as size and time of change of the file are what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from echat.checkpoint import atomic_path
from echat.data import storage

T = TypeVar("T")

SUFFIX = ".index"
VERSION = 2


def load(
    path: str, stamps: tuple[storage.Stamp, ...], kind: str, parse: Callable[[dict[str, Any], bytes], T]
) -> T | None:
    """What ``parse`` makes of header and body of an index of that kind made for these stamps.

    None where there is none; a damaged index is like none at all.
    """
    for place in _places(path):
        try:
            head, _, body = storage.read_bytes(place).partition(b"\n")
            header = json.loads(head)
            whole = header["kind"] == kind and header["crc32"] == zlib.crc32(body)
            if whole and _fits(header, stamps, by_size=storage.is_url(path)):
                return parse(header, body)
        except (OSError, ValueError, TypeError, LookupError):
            continue
    return None


def save(path: str, stamps: tuple[storage.Stamp, ...], kind: str, more: dict[str, Any], body: bytes) -> None:
    """Keep an index where it can be kept; a machine without such a place goes without."""
    head = {"version": VERSION, "kind": kind, "stamps": [list(stamp) for stamp in stamps]}
    text = json.dumps({**head, "crc32": zlib.crc32(body), **more}).encode()
    for place in _places(path):
        if storage.is_url(place) or not _may_write(os.path.dirname(place)):
            continue
        try:
            with atomic_path(place) as temporary:
                temporary.write_bytes(text + b"\n" + body)
            return
        except OSError:
            continue


def _fits(header: dict[str, Any], stamps: tuple[storage.Stamp, ...], by_size: bool) -> bool:
    if header.get("version") != VERSION:
        return False
    made_for = [tuple(stamp) for stamp in header.get("stamps", ())]
    if by_size:  # an object store has other times than the disk the index was made on
        return [size for size, _ in made_for] == [stamp.size for stamp in stamps]
    return made_for == [tuple(stamp) for stamp in stamps]


def _may_write(folder: str) -> bool:
    """A folder that its owner has closed stays as it is, also for those whom nothing is closed to."""
    try:
        return bool(os.stat(folder or ".").st_mode & 0o222)
    except FileNotFoundError:
        return True  # it is made


def _places(path: str) -> tuple[str, str]:
    name = path if storage.is_url(path) else os.path.abspath(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "echat" / "index"
    return path + SUFFIX, str(
        cache / (hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() + SUFFIX)
    )
