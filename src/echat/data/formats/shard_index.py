"""Tar shards with an index: scanned once, then every record is a few reads away.

Members that share everything before the last dot of their names are one record, wherever in the tar they lie.
A record is ordered by its first member.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from echat.audio.containers import SOUND_SUFFIXES
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, duplicate_key, file_defect
from echat.data.formats import index_files
from echat.data.formats.osum_record import FILLED, QUESTION_SOUND, REPLY_SOUND
from echat.data.formats.tar_members import ArchiveProblem, Member, members
from echat.data.formats.text_files import TextForm, text_of

_FIELD = re.compile(
    rf"txt|task|extra|{'|'.join(FILLED)}|duration|(?:txt|wav)_\d+|{REPLY_SOUND}|{QUESTION_SOUND}"
)
_KEPT_INDEXES = 128  # of shards, per process: what a shuffled stream reads from at a time, 0.3 MB each
_NEIGHBOURS = 4096  # bytes between two members that are read along rather than asked for twice


@dataclass(slots=True)
class ShardRecord:
    """One record: where its members lie, by field (``wav`` whatever the suffix), or why it is refused."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    problem: Defect | None = None


class ShardIndex:
    """The records of one tar."""

    def __init__(self, path: str, lines: list[bytes], defects: tuple[Defect, ...]) -> None:
        self.path = path
        self.defects = defects  # of the archive, beside those of single records
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> ShardRecord:
        key, stretches, problem = json.loads(self._lines[index])
        found = {name: Member(f"{key}.{suffix}", offset, size) for name, suffix, offset, size in stretches}
        return ShardRecord(key, found, Defect.from_dict(problem) if problem else None)

    def keys(self) -> Iterator[str]:
        return (json.loads(line)[0] for line in self._lines)


def open_shard(path: str) -> ShardIndex:
    """The index of a tar, made when there is none. Raises DataError when the tar cannot be read at all."""
    stamp, known = _opened.get(path, (None, None))
    if known is not None and storage.is_url(path):
        _opened.move_to_end(path)
        return known  # an object store is asked once
    try:
        now = storage.stamp(path)
    except OSError as error:
        raise DataError(file_defect(error, path, "a tar", "check the list")) from error
    if known is None or stamp != now:
        known = _load(path, now)
        _opened[path] = now, known
    _opened.move_to_end(path)
    if len(_opened) > _KEPT_INDEXES:
        _opened.popitem(last=False)
    return known


_opened: OrderedDict[str, tuple[storage.Stamp, ShardIndex]] = OrderedDict()


def _load(path: str, stamp: storage.Stamp) -> ShardIndex:
    known = index_files.load(path, (stamp,), "shard", partial(_parsed, path))
    if known is not None:
        return known
    try:
        with storage.open_binary(path) as stream:
            records, defects = group_members(path, members(stream, stamp.size))
    except OSError as error:
        raise DataError(file_defect(error, path, "a tar", "check the list")) from error
    lines = [_line(record) for record in records]
    header = {"records": len(lines), "defects": [defect.as_dict() for defect in defects]}
    index_files.save(path, (stamp,), "shard", header, b"\n".join(lines))
    return ShardIndex(path, lines, tuple(defects))


def _parsed(path: str, header: Mapping[str, Any], body: bytes) -> ShardIndex:
    return ShardIndex(path, body.splitlines(), tuple(map(Defect.from_dict, header["defects"])))


def _line(record: ShardRecord) -> bytes:
    stretches = [
        [name, member.name[len(record.key) + 1 :], member.offset, member.size]
        for name, member in record.members.items()
    ]
    problem = record.problem.as_dict() if record.problem else None
    return json.dumps([record.key, stretches, problem]).encode()


def group_members(
    path: str, found: Iterable[Member | ArchiveProblem]
) -> tuple[list[ShardRecord], list[Defect]]:
    """Records in the order of their first members, and what belongs to none of them."""
    grouping = _Grouping(path)
    for item in found:
        if isinstance(item, ArchiveProblem):
            grouping.add_problem(item)
        else:
            grouping.add(item)
    grouping.close_gaps()
    return grouping.records, grouping.defects


class _Grouping:
    def __init__(self, path: str) -> None:
        self.path = path
        self.records: list[ShardRecord] = []
        self.defects: list[Defect] = []
        self._open: dict[str, ShardRecord] = {}  # by key: the record that takes further members
        self._first: dict[str, ShardRecord] = {}
        self._last: ShardRecord | None = None
        self._gaps: list[tuple[ShardRecord | None, ArchiveProblem]] = []  # record before it

    def add(self, member: Member) -> None:
        name = member.name.removeprefix("./")
        key, dot, suffix = name.rpartition(".")
        field_name = "wav" if suffix.lower() in SOUND_SUFFIXES else suffix
        if not dot or not key or (field_name != "wav" and not _FIELD.fullmatch(field_name)):
            reason = "expected KEY.FIELD with a known field, found a member of no record; it is left out"
            if suffix == "json":
                reason += "; echat data import reads tars of KEY.json and sound (webdataset)"
            self.defects.append(
                Defect(DefectKind.FOREIGN_MEMBER, self.path, f"member {member.name}", reason=reason)
            )
            return
        record = self._record(key, field_name, name)
        record.members[field_name] = Member(name, member.offset, member.size)
        self._last = record

    def _record(self, key: str, field_name: str, name: str) -> ShardRecord:
        record = self._open.get(key)
        if record is not None and field_name not in record.members:
            return record
        record = self._open[key] = ShardRecord(key)
        self.records.append(record)
        if key in self._first:
            record.problem = duplicate_key(self.path, f"member {name}", key)
        elif key.startswith("/") or ".." in key.split("/"):
            reason = "expected a name inside the archive, found one that leads out of it"
            record.problem = self._defect(DefectKind.PATH_ESCAPE, name, key, reason)
        elif not _is_text(key):
            reason = "expected a name in UTF-8, found other bytes; rename it before it goes into the tar"
            record.problem = self._defect(DefectKind.BAD_TEXT, name, key, reason)
        self._first.setdefault(key, record)
        return record

    def add_problem(self, archive_problem: ArchiveProblem) -> None:
        key, _, _ = archive_problem.name.removeprefix("./").rpartition(".")
        if archive_problem.kind is DefectKind.TRUNCATED_ARCHIVE and key:
            record = self._open.get(key)
            if record is None:
                record = self._open[key] = ShardRecord(key)
                self.records.append(record)
            record.problem = self._defect(
                archive_problem.kind, archive_problem.name, key, archive_problem.reason
            )
        elif archive_problem.kind in (DefectKind.TRUNCATED_ARCHIVE, DefectKind.DAMAGED_ARCHIVE):
            self._gaps.append((self._last, archive_problem))
        else:
            place = f"member {archive_problem.name}" if archive_problem.name else ""
            self.defects.append(Defect(archive_problem.kind, self.path, place, reason=archive_problem.reason))

    def close_gaps(self) -> None:
        """A gap between members hurts the record beside it that has fewer fields than its neighbour."""
        for before, archive_problem in self._gaps:
            damaged = self._damaged_record(before)
            if damaged is None or damaged.problem is not None:
                place = f"byte {archive_problem.offset}"
                self.defects.append(
                    Defect(archive_problem.kind, self.path, place, reason=archive_problem.reason)
                )
            else:
                damaged.problem = self._defect(
                    archive_problem.kind, "", damaged.key, archive_problem.reason, archive_problem.offset
                )

    def _damaged_record(self, before: ShardRecord | None) -> ShardRecord | None:
        at = next((n for n, record in enumerate(self.records) if record is before), -1)
        after = self.records[at + 1] if at + 1 < len(self.records) else None
        other = self.records[at - 1] if at > 0 else None
        if before is None:
            return None
        for one, neighbour in ((before, after or other), (after, before)):
            if one is not None and neighbour is not None and len(one.members) < len(neighbour.members):
                return one
        return None

    def _defect(self, kind: DefectKind, name: str, key: str, reason: str, offset: int = 0) -> Defect:
        return Defect(kind, self.path, f"member {name}" if name else f"byte {offset}", key, reason)


def _is_text(name: str) -> bool:
    """Was the name UTF-8? Other bytes are surrogates in it."""
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)


def member_texts(path: str, wanted: Iterable[Member]) -> dict[str, str]:
    """Text members by name, stripped, neighbours read at once. Raises DataError for one that is no UTF-8."""
    run: list[Member] = []
    texts: dict[str, str] = {}
    for member in sorted(wanted, key=lambda member: member.offset):
        if run and member.offset - run[-1].offset - run[-1].size > _NEIGHBOURS:
            texts |= _run_texts(path, run)
            run = []
        run.append(member)
    return texts | _run_texts(path, run) if run else texts


def _run_texts(path: str, run: Sequence[Member]) -> dict[str, str]:
    start, end = run[0].offset, run[-1].offset + run[-1].size
    data = storage.read_range(path, start, end - start)
    return {member.name: _text(path, member, data[member.offset - start :][: member.size]) for member in run}


def _text(path: str, member: Member, data: bytes) -> str:
    place = f"member {member.name}"
    if len(data) < member.size:
        reason = f"expected {member.size} bytes, found {len(data)}; copy the tar again"
        raise DataError(Defect(DefectKind.TRUNCATED_ARCHIVE, path, place, reason=reason))
    return text_of(data, TextForm("utf-8-sig"), path, place).strip()
