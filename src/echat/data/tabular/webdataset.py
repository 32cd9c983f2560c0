"""WebDataset reader: tars of samples, ``KEY.json`` beside ``KEY.wav``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from echat.audio.containers import SOUND_SUFFIXES
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.jsonl import json_object
from echat.data.formats.shard_index import member_texts
from echat.data.formats.tar_members import ArchiveProblem, Member, members
from echat.data.tabular.delimited import TableRow
from echat.dialogue.labels import VOICE_KINDS

_LONGEST_TEXT = 1 << 20  # bytes of a member that is read as text
_WORDS = ("txt", "text", "lab", "trans", "transcript")  # suffixes of members that hold what is said
_TEXTS = (*_WORDS, "cls", "lang", "speaker", *VOICE_KINDS)
_OURS = {"txt", "task", "extra"}  # members of a published shard


def tar_rows(path: str) -> Iterator[TableRow | Defect]:
    """Every sample of a tar. Sound stays in the tar and is referenced by its offset."""
    samples: dict[str, dict[str, Member]] = {}
    with storage.open_binary(path) as stream:
        for found in members(stream, storage.stamp(path).size):
            if isinstance(found, ArchiveProblem):
                place = f"member {found.name}" if found.name else f"byte {found.offset}"
                if found.kind is not DefectKind.FOREIGN_MEMBER:
                    yield Defect(found.kind, path, place, reason=found.reason)
                continue
            key, suffix = _split(found.name.removeprefix("./"))
            samples.setdefault(key, {}).setdefault(suffix, found)
    if any(fields.keys() >= _OURS for fields in samples.values()):
        reason = "expected a table, found a shard with tasks; echat data check and convert read it as it is"
        raise DataError(Defect(DefectKind.BAD_RECORD, path, reason=reason))
    for key, fields in samples.items():
        try:
            yield TableRow(_columns(path, fields), f"member {next(iter(fields.values())).name}", path, key)
        except DataError as error:
            yield Defect(error.defect.kind, path, error.defect.place, key, error.defect.reason)


def _split(name: str) -> tuple[str, str]:
    """(key, suffix): what stands before and behind the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _columns(path: str, fields: dict[str, Member]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    sound = None
    for suffix, member in fields.items():
        kind = suffix.rpartition(".")[2]
        if kind in SOUND_SUFFIXES:
            sound = sound or member
        elif kind == "json":
            columns = {**json_object(_text(path, member), path, f"member {member.name}"), **columns}
        elif kind in _TEXTS:
            columns["text" if kind in _WORDS else kind] = _text(path, member).strip()
    if sound is not None:  # a path in the JSON is one of the machine it was made on
        columns["audio"] = _audio_row(path, sound)
    return columns


def _audio_row(path: str, member: Member) -> dict[str, Any]:
    where = storage.absolute(path)  # whatever folder the relative paths of the table begin at
    return {"path": where, "offset": member.offset, "size": member.size, "member": member.name}


def _text(path: str, member: Member) -> str:
    place = f"member {member.name}"
    if member.size > _LONGEST_TEXT:
        reason = f"expected text of at most {_LONGEST_TEXT} bytes, found {member.size}"
        raise DataError(Defect(DefectKind.BAD_TEXT, path, place, reason=reason))
    return member_texts(path, [member])[member.name]
