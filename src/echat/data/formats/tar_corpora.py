"""The two formats whose sound lies in tars: shard (tars alone) and combine (tars and JSON lines)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, file_defect
from echat.data.formats import index_files
from echat.data.formats.index_files import CorpusPart, PartFacts, PartIndex
from echat.data.formats.indexed_corpus import IndexedCorpus, ReadOptions, RecordRow
from echat.data.formats.jsonl import JsonLines, json_object
from echat.data.formats.osum_record import extra_of
from echat.data.formats.shard_index import ShardRecord, member_texts, open_shard
from echat.data.sample import AudioRef

_KEPT_PAIRINGS = 64  # per process


class ShardCorpus(IndexedCorpus):
    """Tars that hold whole records."""

    def __init__(self, path: str, name: str, tars: Sequence[str], options: ReadOptions) -> None:
        super().__init__(name, options)
        self.path = path
        self.parts = PartIndex(path, [CorpusPart((tar,)) for tar in tars], _shard_facts)

    def __len__(self) -> int:
        return len(self.parts)

    def keys(self) -> Iterator[tuple[int, str]]:
        tars = (part.files[0] for part, count in self.parts.counted() if count)
        return enumerate(chain.from_iterable(open_shard(tar).keys() for tar in tars))

    def row(self, index: int) -> RecordRow:
        part, number = self.parts.find(index)
        (tar,) = part.files
        return _shard_row(tar, open_shard(tar)[number])

    def defects(self) -> Iterator[Defect]:
        return self.parts.defects()


class CombineCorpus(IndexedCorpus):
    """Tars that hold the sound, and JSON lines that say which records there are and what they mean.

    Records come in the order of the tar; those that the lines do not name are left out. What a line does not
    say is taken from the tar.
    """

    def __init__(self, path: str, name: str, pairs: Sequence[tuple[str, str]], options: ReadOptions) -> None:
        super().__init__(name, options)
        self.path = path
        self.parts = PartIndex(path, [CorpusPart(pair) for pair in pairs], _pair_facts)

    def __len__(self) -> int:
        return len(self.parts)

    def keys(self) -> Iterator[tuple[int, str]]:
        begin = 0
        for part, count in self.parts.counted():
            if count:
                inside = list(open_shard(part.files[1]).keys())
                records = pairing(*part.files)[:, 0].tolist()
                yield from ((begin + n, inside[record]) for n, record in enumerate(records) if record >= 0)
            begin += count

    def row(self, index: int) -> RecordRow:
        part, number = self.parts.find(index)
        lines, tar = part.files
        record, line = (int(value) for value in pairing(lines, tar)[number])
        fields, place = JsonLines(lines)[line]
        row = RecordRow(fields, lines, place, {})
        if record < 0:
            raise row.refuse(DefectKind.UNPAIRED_ROW, f"expected a record of this key in {tar}, found none")
        inside = _shard_row(tar, open_shard(tar)[record])
        merged = _merged(fields, inside.fields)
        if "task" not in merged:
            raise row.refuse(
                DefectKind.MISSING_FIELD, "field task: expected one in the row or tar, found none"
            )
        return RecordRow(merged, lines, place, inside.sounds)

    def defects(self) -> Iterator[Defect]:
        return self.parts.defects()


def _shard_row(tar: str, record: ShardRecord) -> RecordRow:
    """Texts of the members read, sounds left where they lie. Raises DataError for a record refused."""
    if record.problem is not None:
        raise DataError(record.problem)
    audio_members = {name: member for name, member in record.members.items() if "wav" in name}
    text_members = {name: member for name, member in record.members.items() if "wav" not in name}
    try:
        texts = member_texts(tar, text_members.values())
        fields: dict[str, Any] = {"key": record.key}
        fields |= {name: texts[member.name] for name, member in text_members.items()}
        if "extra" in fields:
            fields["extra"] = json_object(fields["extra"], tar, f"member {text_members['extra'].name}")
    except DataError as error:
        cause = error.defect
        raise DataError(Defect(cause.kind, tar, cause.place, record.key, cause.reason)) from error
    sounds = {
        name: AudioRef(tar, offset=member.offset, size=member.size, member=member.name)
        for name, member in audio_members.items()
    }
    place = next((f"member {member.name}" for member in record.members.values()), "")
    duration = fields.pop("duration", None)
    if duration is not None:
        fields["extra"] = {"duration": duration, **fields.get("extra", {})}
    return RecordRow(fields, tar, place, sounds)


def _merged(row: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """The row, completed from the tar; the duration lies inside ``extra``."""
    own = {name: value for name, value in row.items() if name not in ("wav", "tar_path_key")}
    merged = {**inside, **own}  # the row's tar_path_key names the tar; one that the record had lies deeper
    extra = extra_of(merged.get("extra"))
    duration = extra_of(inside.get("extra")).get("duration")
    return {**merged, "extra": extra if duration is None else {"duration": duration, **extra}}


def _shard_facts(part: CorpusPart) -> PartFacts:
    index = open_shard(part.files[0])
    return PartFacts(len(index), index.defects)


def _pair_facts(part: CorpusPart) -> PartFacts:
    lines, tar = part.files
    return PartFacts(len(pairing(lines, tar)), open_shard(tar).defects)


_pairings: OrderedDict[tuple[str, str], tuple[tuple[storage.Stamp, ...], np.ndarray]] = OrderedDict()


def pairing(lines: str, tar: str) -> np.ndarray:
    """(records, 2): number in the tar, or -1, and number of the line; in the order of the tar."""
    known = _pairings.get((lines, tar))
    if known is not None and storage.is_url(lines):
        return known[1]
    stamps = (_stamp(lines, "JSON lines"), _stamp(tar, "a tar"))
    if known is None or known[0] != stamps:
        known = stamps, _load_pairing(lines, tar, stamps)
        _pairings[lines, tar] = known
        if len(_pairings) > _KEPT_PAIRINGS:
            _pairings.popitem(last=False)
    return known[1]


def _stamp(path: str, what: str) -> storage.Stamp:
    try:
        return storage.stamp(path)
    except OSError as error:
        raise DataError(file_defect(error, path, what, "check the list")) from error


def _load_pairing(lines: str, tar: str, stamps: tuple[storage.Stamp, ...]) -> np.ndarray:
    name = f"{lines}.pairs"
    kept = index_files.load(name, stamps, "pairs", lambda head, body: _table(body, head["tar"] == tar))
    if kept is not None:
        return kept
    table = _pair(JsonLines(lines), tar)
    index_files.save(name, stamps, "pairs", {"tar": tar}, table.astype("<i8").tobytes())
    return table


def _table(body: bytes, belongs: bool) -> np.ndarray | None:
    return np.frombuffer(body, dtype="<i8").reshape(-1, 2) if belongs else None


def _pair(lines: JsonLines, tar: str) -> np.ndarray:
    numbers: dict[str, int] = {}
    for number, key in lines.keyed():
        numbers.setdefault(key, number)
    rows: list[tuple[int, int]] = []
    for record, key in enumerate(open_shard(tar).keys()):
        if key in numbers:
            rows.append((record, numbers[key]))
    paired = {number for _, number in rows}
    rows += [(-1, number) for number in range(len(lines)) if number not in paired]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)
