"""Records numbered across many files: which file holds record n, known from counts alone."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from echat.data import index_files, storage
from echat.data.defects import Defect, defect_of

_WORTH_KEEPING = 16  # parts; fewer are asked one by one


class Part(NamedTuple):
    """One file of records, or two that belong together (metadata and tar)."""

    files: tuple[str, ...]


class Facts(NamedTuple):
    """What is kept of a part between runs."""

    records: int
    defects: tuple[Defect, ...]  # beside those of single records


Open = Callable[[Part], Facts]
Kept = tuple[list[list[int]] | None, Facts]  # stamps of the files of a part, and its facts


class Parts:
    """Counts of all parts of a list, kept in an index of it; a part that has changed is counted anew."""

    def __init__(self, list_path: str, parts: Sequence[Part], open_part: Open) -> None:
        self.parts = tuple(parts)
        self._facts = _facts(list_path, self.parts, open_part)
        self._ends = list(accumulate(facts.records for facts in self._facts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[Part, int]:
        """The part that holds record ``index``, and its number there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    @property
    def ends(self) -> Sequence[int]:
        """For each part the number of records up to its end."""
        return tuple(self._ends)

    def facts(self, number: int) -> Facts:
        """What is known of one part."""
        return self._facts[number]

    def counted(self) -> Iterator[tuple[Part, int]]:
        """Each part with the number of its records."""
        return ((part, facts.records) for part, facts in zip(self.parts, self._facts))

    def defects(self) -> Iterator[Defect]:
        return (defect for facts in self._facts for defect in facts.defects)


def _facts(list_path: str, parts: Sequence[Part], open_part: Open) -> list[Facts]:
    known = _load(list_path)
    facts: list[Facts] = []
    table: dict[str, Kept] = {}
    for part in parts:
        name, stamps = "|".join(part.files), _stamps(part)
        kept = known.get(name)
        if kept is not None and stamps is not None and kept[0] in (stamps, None):
            fact = kept[1]
        else:
            fact = _ask(part, open_part)
        facts.append(fact)
        if stamps is not None:
            table[name] = stamps, fact
    if table != known and len(table) >= _WORTH_KEEPING:
        _save(list_path, table)
    return facts


def _ask(part: Part, open_part: Open) -> Facts:
    try:
        return open_part(part)
    except Exception as error:  # whatever is in one file, the others of the list are read
        return Facts(0, (defect_of(error, part.files[-1]),))


def _stamps(part: Part) -> list[list[int]] | None:
    """None where a file is not there. An object store is not asked: a thousand questions take minutes."""
    try:
        return [[0, 0] if storage.is_url(file) else list(storage.stamp(file)) for file in part.files]
    except OSError:
        return None


def _load(list_path: str) -> dict[str, Kept]:
    try:
        known = index_files.load(list_path, (storage.stamp(list_path),), "parts", _parsed)
    except OSError:
        return {}
    return known or {}


def _parsed(header: dict[str, Any], body: bytes) -> dict[str, Kept]:
    table = json.loads(body)
    return {
        name: (stamps, Facts(int(records), tuple(map(Defect.from_dict, defects))))
        for name, (stamps, records, defects) in table.items()
    }


def _save(list_path: str, table: dict[str, Kept]) -> None:
    try:
        stamps = (storage.stamp(list_path),)
    except OSError:
        return  # a list made in memory, or a single shard
    rows = {
        name: [found, fact.records, [defect.as_dict() for defect in fact.defects]]
        for name, (found, fact) in table.items()
    }
    index_files.save(list_path, stamps, "parts", {}, json.dumps(rows).encode())
