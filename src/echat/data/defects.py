"""Data errors: kinds of defects, single defects, and the report that counts them.

Reading never stops at a bad record and never repairs one by guessing: the record is left out and named here,
its neighbours stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self
from unicodedata import category

from echat.audio.errors import AudioError

_LONGEST = 200  # characters of a key or place that are shown, and a quarter of those of a reason
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, surrogate, separators of lines
MAX_KEPT = 10  # defects of each kind that a report keeps whole; the others are only counted


class DefectKind(StrEnum):
    """Kinds of defects, from the outside of the data inwards."""

    MISSING_FILE = "missing-file"  # a list, shard or table that is named but not there
    UNREADABLE_FILE = "unreadable-file"  # permissions, a folder instead, a broken disk
    NOT_AN_ARCHIVE = "not-an-archive"
    TRUNCATED_ARCHIVE = "truncated-archive"
    DAMAGED_ARCHIVE = "damaged-archive"  # a member header that does not add up
    FOREIGN_MEMBER = "foreign-member"  # belongs to no record
    PATH_ESCAPE = "path-escape"  # a name that leads out of the folder it belongs to
    BAD_JSON = "bad-json"
    BAD_TEXT = "bad-text"  # not UTF-8
    MISSING_FIELD = "missing-field"
    BAD_FIELD = "bad-field"
    DUPLICATE_KEY = "duplicate-key"
    UNPAIRED_ROW = "unpaired-row"  # metadata without a record in the tar
    UNKNOWN_TASK = "unknown-task"
    SPEECH_ID_RANGE = "speech-id-range"
    SPEECH_TOO_SHORT = "speech-too-short"  # fewer ids than anyone needs to say the text
    MISSING_AUDIO = "missing-audio"
    EMPTY_AUDIO = "empty-audio"
    TRUNCATED_AUDIO = "truncated-audio"
    UNDECODABLE_AUDIO = "undecodable-audio"
    SAMPLE_RATE = "sample-rate"  # a header that announces an impossible rate
    DURATION = "duration"  # the sound is not as long as its record says
    NOT_FINITE = "not-finite"  # NaN or infinity among the samples
    SILENT_AUDIO = "silent-audio"
    TOO_SHORT = "too-short"
    TOO_LONG = "too-long"
    UNWANTED = "unwanted"  # not an error: the recipe selects other records, or the task needs other fields
    BAD_RECORD = "bad-record"  # anything else a record was refused for


@dataclass(frozen=True, slots=True)
class Defect:
    """One data error: file, position in it (line, member or offset), key of the record, reason."""

    kind: DefectKind
    file: str
    place: str = ""  # "line 7", "member a/k.wav"
    key: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        """Text of untrusted files is shown without control characters and with bounded length."""
        object.__setattr__(self, "file", printable(self.file))
        object.__setattr__(self, "place", printable(self.place, _LONGEST))
        object.__setattr__(self, "reason", printable(self.reason, 4 * _LONGEST))
        if self.key is not None:
            object.__setattr__(self, "key", printable(self.key, _LONGEST))

    def __str__(self) -> str:
        where = [self.file, self.place, f"record {self.key}" if self.key is not None else ""]
        place = ", ".join(part for part in where if part)
        return f"{place}: {self.reason} [{self.kind}]" if place else self.reason

    def as_dict(self) -> dict[str, str | None]:
        return {
            "kind": self.kind.value,
            "file": self.file,
            "place": self.place,
            "key": self.key,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Defect:
        return cls(**{**fields, "kind": DefectKind(fields["kind"])})


def printable(text: str, longest: int | None = None) -> str:
    """The text with control characters and halves of characters escaped, cut where it is too long."""
    if longest is not None and len(text) > longest:
        text = f"{text[: longest - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if category(char) in _UNSEEN else char for char in text
    )


class DataError(ValueError):
    """A record or file that cannot be used; ``defect`` says which, where and why."""

    def __init__(self, problem: str | Defect) -> None:
        super().__init__(str(problem))
        self.defect = (
            problem if isinstance(problem, Defect) else Defect(DefectKind.BAD_RECORD, "", reason=problem)
        )

    def __reduce__(self) -> tuple[type[DataError], tuple[Defect]]:
        return type(self), (self.defect,)  # keeps the defect on the way out of a worker process


_AUDIO_KINDS: dict[str | None, DefectKind] = {
    "missing": DefectKind.MISSING_AUDIO,
    "unreadable": DefectKind.UNREADABLE_FILE,
    "empty": DefectKind.EMPTY_AUDIO,
    "cut off": DefectKind.TRUNCATED_AUDIO,
    "undecodable": DefectKind.UNDECODABLE_AUDIO,
    "rate": DefectKind.SAMPLE_RATE,
    "not finite": DefectKind.NOT_FINITE,
    "silent": DefectKind.SILENT_AUDIO,
    "short": DefectKind.TOO_SHORT,
    "long": DefectKind.TOO_LONG,
}


def defect_from(error: Exception, file: str, place: str = "", key: str | None = None) -> Defect:
    """What an exception raised while a record was read or decoded says, with its position filled in."""
    if isinstance(error, DataError):
        cause = error.defect
        known = cause.key if cause.key is not None else key
        if cause.file:
            return Defect(cause.kind, cause.file, cause.place, known, cause.reason)
        return Defect(cause.kind, file, cause.place or place, known, cause.reason)
    if isinstance(error, AudioError):
        return Defect(
            _AUDIO_KINDS.get(error.kind, DefectKind.UNDECODABLE_AUDIO), file, place, key, str(error)
        )
    if isinstance(error, OSError):
        return replace(file_defect(error, file), place=place, key=key)
    return Defect(DefectKind.BAD_RECORD, file, place, key, str(error) or type(error).__name__)


def file_defect(error: OSError, path: str, what: str = "a file", remedy: str = "check the path") -> Defect:
    """Why a file cannot be opened: it is missing (and its remedy), or not to be read."""
    if isinstance(error, FileNotFoundError):
        return Defect(DefectKind.MISSING_FILE, path, reason=f"expected {what}, found nothing; {remedy}")
    reason = f"expected a readable file, found: {error.strerror or error}; check its permissions"
    return Defect(DefectKind.UNREADABLE_FILE, path, reason=reason)


def duplicate_key(file: str, place: str, key: str | None, earlier: str = "an earlier record") -> Defect:
    """A record with the key of an earlier one."""
    reason = f"expected a key of its own, found that of {earlier}; the first one is kept"
    return Defect(DefectKind.DUPLICATE_KEY, file, place, key, reason)


class DefectReport:
    """Counts defects by kind and keeps the first ten of each; ``strict`` raises at the first instead."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[DefectKind, int] = {}
        self._first: dict[DefectKind, list[Defect]] = {}

    def add(self, defect: Defect) -> None:
        if self.strict:
            raise DataError(defect)
        self.counts[defect.kind] = self.counts.get(defect.kind, 0) + 1
        kept = self._first.setdefault(defect.kind, [])
        if len(kept) < MAX_KEPT:
            kept.append(defect)

    @contextmanager
    def catch(self, file: str, place: str = "", key: str | None = None) -> Iterator[None]:
        """Around all that is done with one data row: what it raises, of whatever type, becomes a defect.

        A closed list of types would miss the next malformed input. What concerns more than the row (saving
        the result) belongs outside.
        """
        try:
            yield
        except Exception as error:
            defect = defect_from(error, file, place, key)
            if self.strict:
                raise DataError(defect) from error
            self.add(defect)

    def extend(self, defects: Iterable[Defect]) -> None:
        for defect in defects:
            self.add(defect)

    def merge(self, other: DefectReport) -> None:
        """Take over what another process counted."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self._first.setdefault(kind, [])
            kept.extend(other._first[kind][: MAX_KEPT - len(kept)])

    def first(self, kind: DefectKind) -> tuple[Defect, ...]:
        return tuple(self._first.get(kind, ()))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __iter__(self) -> Iterator[Defect]:
        """The kept defects, kind by kind in the order of :class:`DefectKind`."""
        for kind in DefectKind:
            yield from self._first.get(kind, ())

    def __str__(self) -> str:
        """One line per kind with its count, then the kept defects of it, indented."""
        lines = []
        for kind in DefectKind:
            if kind in self.counts:
                lines.append(f"{kind}: {self.counts[kind]}")
                lines.extend(f"  {defect}" for defect in self.first(kind))
                more = self.counts[kind] - len(self.first(kind))
                lines.extend([f"  and {more} more"] if more else [])
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": {kind.value: self.counts[kind] for kind in DefectKind if kind in self.counts},
            "first": [defect.as_dict() for defect in self],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        report = cls()
        report.extend(map(Defect.from_dict, fields["first"]))
        report.counts = {DefectKind(kind): count for kind, count in fields["counts"].items()}
        return report
