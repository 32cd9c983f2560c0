"""Tar writer with reproducible bytes: owner 0, time 0, members in a fixed order."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from echat.data.defects import DataError, Defect, DefectKind
from echat.data.formats.osum_record import FILLED, FILLER, to_record
from echat.data.formats.tar_members import BLOCK
from echat.data.sample import AudioRef, Sample

_END = 20 * BLOCK  # archives end on a multiple of this
_TURN = re.compile(r"(?:txt|wav)_(\d+)")
_TOP = {"key", "txt", "task", "extra", *FILLED}
Encode = Callable[[AudioRef], tuple[bytes, str]]


class TarWriter:
    """Writes members one after the other; ``sha256`` is that of all bytes so far."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._length = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        self.write(member_bytes(name, data))

    def write(self, *members: bytes) -> None:
        """Members as :func:`member_bytes` makes them."""
        for member in members:
            self._write(member)

    def close(self) -> None:
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._length % _END))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.sha256.update(data)
        self._length += len(data)


def member_bytes(name: str, data: bytes) -> bytes:
    """A member as it lies in a tar: header, content, filling. Raises ValueError for an impossible name."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def shard_members(sample: Sample, encode: Encode) -> list[bytes]:
    """The members of one record as bytes of a tar, in the published order.

    ``encode`` gives bytes and suffix of a sound. Raises DataError for a key that cannot be a name in a tar.
    """
    record, sounds = to_record(sample)
    key = checked_key(sample.key)
    extra = shard_extra(record)
    duration = extra.pop("duration", 0)
    found = {"txt": record["txt"].encode()}
    suffixes = {}
    for name in ("wav", *_turn_fields(record), *sorted(sounds.keys() - {"wav"})):
        if name in sounds and name not in found:
            found[name], suffixes[name] = encode(sounds[name])
        elif name in record and name not in found:
            found[name] = record[name].encode()
    for name in ("task", *FILLED):
        found[name] = (record[name] if _is_member(record.get(name)) else FILLER).encode()
    found |= {"duration": str(duration).encode(), "extra": json.dumps(extra, ensure_ascii=False).encode()}
    return [
        member_bytes(f"{key}{suffixes['wav']}" if name == "wav" else f"{key}.{name}", data)
        for name, data in found.items()
    ]


def _turn_fields(record: Mapping[str, Any]) -> Iterator[str]:
    for number in sorted(int(turn[1]) for turn in map(_TURN.fullmatch, record) if turn):
        yield from (f"txt_{number}", f"wav_{number}")


def shard_extra(record: Mapping[str, Any]) -> dict[str, Any]:
    """``extra`` with the fields of the record that have no member of their own."""
    extra = dict(record["extra"])
    nested = {
        name: value
        for name, value in record.items()
        if not (name in _TOP and (name not in FILLED or _is_member(value))) and not _TURN.fullmatch(name)
    }
    if nested:
        extra["echat"] = {**extra.get("echat", {}), "fields": nested}
    return extra


def checked_key(key: str) -> str:
    """A key that names members inside the archive. Raises DataError for any other."""
    parts = key.split("/")
    if "" in parts or "." in parts or ".." in parts:
        reason = "expected a key that is a name inside an archive, found one that leads out of it; rename it"
        raise DataError(Defect(DefectKind.PATH_ESCAPE, "", key=key, reason=reason))
    if any(ord(char) < 32 for char in key):
        reason = f"field key: expected printable characters, found {key!r}; rename it"
        raise DataError(Defect(DefectKind.BAD_FIELD, "", key=key, reason=reason))
    return key


def _is_member(value: object) -> bool:
    """Text that comes back from a member as it was: stripped, not the filler itself."""
    return isinstance(value, str) and value == value.strip() and value not in ("", FILLER)
