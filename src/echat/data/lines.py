"""Random access to the lines of a JSON-lines file: one pass, then one read per line."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from echat.data import index_files, storage
from echat.data.defects import DataError, Defect, Kind
from echat.data.manifest import json_object

_KEPT_TABLES = 64  # per process
_WORTH_KEEPING = 4 << 20  # bytes of a list; a smaller one is gone through in the time it takes to look
_KEY_FIRST = re.compile(rb'\s*\{\s*"key"\s*:\s*"([^"\\]*)"')


class Lines:
    """The lines of one file that hold something, in order; no more than a path until they are used.

    A line whose ``key`` an earlier line has too is a duplicate; the first one counts.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """The object on a line, and its place (``line 7``). Raises DataError for a bad or repeated one."""
        offset, size, number, first = (int(value) for value in self.table[index])
        place = f"line {number}"
        row = json_object(storage.read_range(self.path, offset, size), self.path, place)
        if first:
            reason = f"expected a key of its own, found that of line {first}; the first one is kept"
            raise DataError(Defect(Kind.DUPLICATE_KEY, self.path, place, str(row.get("key")), reason))
        return row, place

    def keyed(self) -> Iterator[tuple[int, str]]:
        """(number, key) of every line that has a key and does not repeat one."""
        with storage.open_binary(self.path) as stream:
            for index, (offset, size, _, first) in enumerate(self.table.tolist()):
                stream.seek(offset)
                key = None if first else key_of(stream.read(size))
                if key is not None:
                    yield index, key.decode("utf-8", "surrogatepass")

    @property
    def table(self) -> np.ndarray:
        """(lines, 4): offset, size, line number, line number of the first with this key or 0."""
        stamp, table = _tables.get(self.path, (None, None))
        if table is not None and storage.is_url(self.path):
            return table
        now = _stamp(self.path)
        if table is None or now != stamp:
            table = _load(self.path, now)
            _tables[self.path] = now, table
            if len(_tables) > _KEPT_TABLES:
                _tables.popitem(last=False)
        return table


_tables: OrderedDict[str, tuple[storage.Stamp, np.ndarray]] = OrderedDict()


def first_rows(path: str, count: int = 20) -> list[dict[str, Any]]:
    """The first good objects of a JSON-lines file. Raises OSError."""
    rows: list[dict[str, Any]] = []
    with storage.open_binary(path) as stream:
        for line in stream:
            with suppress(DataError):
                if line.strip():
                    rows.append(json_object(line, path, ""))
            if len(rows) >= count:
                break
    return rows


def key_of(line: bytes) -> bytes | None:
    """The key of a row; None for a line without one."""
    found = _KEY_FIRST.match(line)
    if found:
        return found[1]
    try:
        key = json_object(line, "", "").get("key")
    except DataError:
        return None
    return key.encode("utf-8", "surrogatepass") if isinstance(key, str) else None


def _stamp(path: str) -> storage.Stamp:
    try:
        return storage.stamp(path)
    except OSError as error:
        raise DataError(_missing(path, error)) from error


def _load(path: str, stamp: storage.Stamp) -> np.ndarray:
    known = index_files.load(path, (stamp,))
    if known is not None and known[0].get("kind") == "lines":
        return np.frombuffer(known[1], dtype="<i8").reshape(-1, 4)
    try:
        table = _scan(path)
    except OSError as error:
        raise DataError(_missing(path, error)) from error
    if stamp.size >= _WORTH_KEEPING:
        index_files.save(path, (stamp,), {"kind": "lines"}, table.astype("<i8").tobytes())
    return table


def _missing(path: str, error: OSError) -> Defect:
    if isinstance(error, FileNotFoundError):
        reason = "expected a JSON-lines file, found nothing; check the path in the recipe"
        return Defect(Kind.MISSING_FILE, path, reason=reason)
    reason = f"expected a readable file, found: {error.strerror or error}; check its permissions"
    return Defect(Kind.UNREADABLE_FILE, path, reason=reason)


def _scan(path: str) -> np.ndarray:
    rows: list[tuple[int, int, int, int]] = []
    seen: dict[int, int] = {}  # hash of the key -> line number; keys themselves would fill the memory
    offset = 0
    with storage.open_binary(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                key = key_of(line)
                first = 0 if key is None else seen.setdefault(hash(key), number)
                rows.append((offset, len(line), number, first if first != number else 0))
            offset += len(line)
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
