"""Index files: the result of one pass over a large file, saved beside it for all later ones.

An index lies beside its file, or in the user's cache where that folder is not to be written in. It is used
only as long as size and time of change of the file are what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import Defect, defect_from

T = TypeVar("T")

SUFFIX = ".index"
VERSION = 2


def load(
    path: str, stamps: tuple[storage.Stamp, ...], kind: str, parse: Callable[[dict[str, Any], bytes], T]
) -> T | None:
    """What ``parse`` makes of header and body of an index of that kind made for these stamps.

    None where there is none; a damaged index is like none at all.
    """
    for index_path in _index_paths(path):
        try:
            head, _, body = storage.read_bytes(index_path).partition(b"\n")
            header = json.loads(head)
            whole = header["kind"] == kind and header["crc32"] == zlib.crc32(body)
            if whole and _is_current(header, stamps, by_size=storage.is_url(path)):
                return parse(header, body)
        except (OSError, ValueError, TypeError, LookupError):
            continue
    return None


def save(path: str, stamps: tuple[storage.Stamp, ...], kind: str, more: dict[str, Any], body: bytes) -> None:
    """Save an index where one can be written; without a writable folder there is none."""
    head = {"version": VERSION, "kind": kind, "stamps": [list(stamp) for stamp in stamps]}
    text = json.dumps({**head, "crc32": zlib.crc32(body), **more}).encode()
    for index_path in _index_paths(path):
        if storage.is_url(index_path) or not _may_write(os.path.dirname(index_path)):
            continue
        try:
            with atomic_path(index_path) as temporary:
                temporary.write_bytes(text + b"\n" + body)
            return
        except OSError:
            continue


def _is_current(header: dict[str, Any], stamps: tuple[storage.Stamp, ...], by_size: bool) -> bool:
    if header.get("version") != VERSION:
        return False
    made_for = [tuple(stamp) for stamp in header.get("stamps", ())]
    if by_size:  # an object store has other times than the disk the index was made on
        return [size for size, _ in made_for] == [stamp.size for stamp in stamps]
    return made_for == [tuple(stamp) for stamp in stamps]


def _may_write(folder: str) -> bool:
    """A read-only folder stays as it is, even for root."""
    try:
        return bool(os.stat(folder or ".").st_mode & 0o222)
    except FileNotFoundError:
        return True  # it is made


def _index_paths(path: str) -> tuple[str, str]:
    name = storage.absolute(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "echat" / "index"
    return path + SUFFIX, str(
        cache / (hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() + SUFFIX)
    )


# --- Records numbered across many files: which file holds record n, known from counts alone.

_WORTH_KEEPING = 16  # parts; fewer are asked one by one


class CorpusPart(NamedTuple):
    """One file of records, or two that belong together (metadata and tar)."""

    files: tuple[str, ...]


class PartFacts(NamedTuple):
    """What is kept of a part between runs."""

    records: int
    defects: tuple[Defect, ...]  # beside those of single records


Open = Callable[[CorpusPart], PartFacts]
CachedFacts = tuple[list[list[int]] | None, PartFacts]  # stamps of the files of a part, and its facts


class PartIndex:
    """Counts of all parts of a list, kept in an index of it; a part that has changed is counted anew."""

    def __init__(self, list_path: str, parts: Sequence[CorpusPart], open_part: Open) -> None:
        self.parts = tuple(parts)
        self._facts = _facts(list_path, self.parts, open_part)
        self._ends = list(accumulate(facts.records for facts in self._facts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[CorpusPart, int]:
        """The part that holds record ``index``, and its number there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    @property
    def ends(self) -> Sequence[int]:
        """For each part the number of records up to its end."""
        return tuple(self._ends)

    def facts(self, number: int) -> PartFacts:
        """What is known of one part."""
        return self._facts[number]

    def counted(self) -> Iterator[tuple[CorpusPart, int]]:
        """Each part with the number of its records."""
        return ((part, facts.records) for part, facts in zip(self.parts, self._facts))

    def defects(self) -> Iterator[Defect]:
        return (defect for facts in self._facts for defect in facts.defects)


def _facts(list_path: str, parts: Sequence[CorpusPart], open_part: Open) -> list[PartFacts]:
    known = _load(list_path)
    facts: list[PartFacts] = []
    table: dict[str, CachedFacts] = {}
    for part in parts:
        name, stamps = "|".join(part.files), _stamps(part)
        kept = known.get(name)
        if kept is not None and stamps is not None and kept[0] in (stamps, None):
            fact = kept[1]
        else:
            fact = _read_facts(part, open_part)
        facts.append(fact)
        if stamps is not None:
            table[name] = stamps, fact
    if table != known and len(table) >= _WORTH_KEEPING:
        _save(list_path, table)
    return facts


def _read_facts(part: CorpusPart, open_part: Open) -> PartFacts:
    try:
        return open_part(part)
    except Exception as error:  # whatever is in one file, the others of the list are read
        return PartFacts(0, (defect_from(error, part.files[-1]),))


def _stamps(part: CorpusPart) -> list[list[int]] | None:
    """None where a file is not there. An object store is not asked: a thousand questions take minutes."""
    try:
        return [[0, 0] if storage.is_url(file) else list(storage.stamp(file)) for file in part.files]
    except OSError:
        return None


def _load(list_path: str) -> dict[str, CachedFacts]:
    try:
        known = load(list_path, (storage.stamp(list_path),), "parts", _parsed)
    except OSError:
        return {}
    return known or {}


def _parsed(header: dict[str, Any], body: bytes) -> dict[str, CachedFacts]:
    table = json.loads(body)
    return {
        name: (stamps, PartFacts(int(records), tuple(map(Defect.from_dict, defects))))
        for name, (stamps, records, defects) in table.items()
    }


def _save(list_path: str, table: dict[str, CachedFacts]) -> None:
    try:
        stamps = (storage.stamp(list_path),)
    except OSError:
        return  # no list file, or a single shard
    rows = {
        name: [found, fact.records, [defect.as_dict() for defect in fact.defects]]
        for name, (found, fact) in table.items()
    }
    save(list_path, stamps, "parts", {}, json.dumps(rows).encode())
