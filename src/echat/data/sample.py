"""The record type that every reader yields: a question, how it sounded, and its reply."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO

from echat.audio.speech_tokens import CODEC_SIZE
from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind
from echat.dialogue.labels import REPLY_EMOTIONS, Labels
from echat.dialogue.tasks import TASKS

IDS_PER_UNIT = 0.8  # at least; nobody speaks a word or an ideograph in 30 ms

_LONGEST_SECONDS = 1e9  # a whole number can be beyond any float


@dataclass(frozen=True, slots=True)
class AudioRef:
    """Reference to stored audio: a file, a member of a tar, or bytes in memory; all of it or a stretch.

    ``path`` is a local path or a URL that fsspec opens. A member of a tar is the stretch of ``size`` bytes
    from ``offset`` in the tar; ``member`` is its name there. ``data`` holds the bytes themselves, ``path``
    then only names them.
    """

    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    offset: int | None = None
    size: int | None = None
    member: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        start, end = self.start_seconds or 0.0, self.end_seconds
        if start < 0 or (end is not None and not end > start):
            raise DataError(
                f"{self.where}: expected 0 <= start < end in seconds, found {self.start_seconds} and {end}"
            )
        if (self.offset is None) != (self.size is None):
            raise DataError(f"{self.where}: expected offset and size of a member together, found only one")

    @property
    def name(self) -> str:
        """File name of the sound itself."""
        return os.path.basename(self.member or self.path)

    @property
    def suffix(self) -> str:
        """``.wav``, in lower case."""
        return os.path.splitext(self.name)[1].lower()

    @property
    def where(self) -> str:
        """For messages: the file, and the member in it."""
        return f"{self.path}, member {self.member}" if self.member else self.path

    @property
    def is_file(self) -> bool:
        """Is it a file of its own?"""
        return self.data is None and self.offset is None

    def read_bytes(self) -> bytes:
        """The encoded sound, whole: a stretch in seconds is for the decoder. Raises DataError."""
        if self.data is not None:
            return self.data
        try:
            if self.offset is None or self.size is None:
                return storage.read_bytes(self.path)
            data = storage.read_range(self.path, self.offset, self.size)
        except FileNotFoundError as error:
            reason = "expected sound, found no such file; check the path, or say where it begins (--root)"
            raise DataError(self._defect(DefectKind.MISSING_AUDIO, reason)) from error
        except OSError as error:
            reason = f"expected a readable file, found: {error.strerror or error}; check its permissions"
            raise DataError(self._defect(DefectKind.UNREADABLE_FILE, reason)) from error
        if len(data) < self.size:
            reason = f"expected {self.size} bytes from {self.offset}, found {len(data)}; copy the tar again"
            raise DataError(self._defect(DefectKind.TRUNCATED_ARCHIVE, reason))
        return data

    def open(self) -> BinaryIO:
        """The encoded sound as a stream that can seek."""
        if self.is_file:
            return storage.open_binary(self.path)
        return io.BytesIO(self.read_bytes())

    def _defect(self, kind: DefectKind, reason: str) -> Defect:
        return Defect(kind, self.path, f"member {self.member}" if self.member else "", reason=reason)


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished exchange before the present question."""

    audio: AudioRef | None
    text: str | None  # what the user said
    reply: str
    speech_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record: the user's question, its labels, and the reply to it; None where not known."""

    key: str
    audio: AudioRef | None = None  # the question as sound
    text: str | None = None  # the words spoken in ``audio``, or typed instead of it
    labels: Labels = field(default_factory=Labels)  # how it sounded
    task: str | None = None  # fixed task of this record; None: the recipe says which tasks it serves
    prompt: str | None = None  # user prompt of an understanding task; None: the task's own
    target: str | None = (
        None  # finished target text of an understanding task; None: made from text and labels
    )
    reply: str | None = None
    reply_emotion: str | None = None  # word of the reply's emotion tag
    reply_audio: AudioRef | None = None
    speech_ids: tuple[int, ...] | None = None  # codec ids of ``reply`` spoken, without begin and end marker
    thought: str | None = None  # thought in free language
    history: tuple[Turn, ...] = ()
    language: str | None = None
    split: str | None = None
    source: str = ""  # name of the corpus
    seconds: float | None = None  # duration of ``audio`` where the record states it
    extra: Mapping[str, Any] = field(default_factory=dict)  # whatever else the record said

    def audios(self) -> Iterator[AudioRef]:
        """Every sound of the record: past turns, the question, the reply."""
        turns = (turn.audio for turn in self.history)
        return (ref for ref in (*turns, self.audio, self.reply_audio) if ref is not None)

    def defects(self, codec_size: int = CODEC_SIZE) -> Iterator[tuple[DefectKind, str]]:
        """What is wrong with the fields, each with its reason, without a look at the sound."""
        for name in _TEXT_FIELDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                yield DefectKind.BAD_FIELD, f"field {name}: expected text, found {value!r}"
        if not self.key:
            yield DefectKind.MISSING_FIELD, f"field key: expected a non-empty string, found {self.key!r}"
        if self.task is not None and self.task not in TASKS:
            yield (
                DefectKind.UNKNOWN_TASK,
                f"field task: expected one of {', '.join(TASKS)}, found {self.task!r}",
            )
        if self.reply_emotion is not None and self.reply_emotion not in REPLY_EMOTIONS:
            known = ", ".join(REPLY_EMOTIONS)
            yield (
                DefectKind.BAD_FIELD,
                f"field reply_emotion: expected one of {known}, found {self.reply_emotion!r}",
            )
        if self.seconds is not None and not 0 <= self.seconds <= _LONGEST_SECONDS:
            yield DefectKind.BAD_FIELD, f"field seconds: expected a duration, found {str(self.seconds)[:40]}"
        spoken = self.reply if self.reply is not None else self.text
        yield from _speech_defects("speech_ids", self.speech_ids, spoken, codec_size)
        for number, turn in enumerate(self.history, 1):
            yield from _speech_defects(f"history {number}", turn.speech_ids, turn.reply, codec_size)


_TEXT_FIELDS = tuple(
    item.name for item in fields(Sample) if item.type in ("str", "str | None") and item.name != "key"
)


def _speech_defects(
    name: str, ids: Sequence[int] | None, text: str | None, codec_size: int
) -> Iterator[tuple[DefectKind, str]]:
    if not ids:
        return
    if min(ids) < 0 or max(ids) >= codec_size:
        position, found = next((n, id_) for n, id_ in enumerate(ids) if not 0 <= id_ < codec_size)
        remedy = (
            "; begin and end are added when the sequence is made, strip them" if found >= codec_size else ""
        )
        yield (
            DefectKind.SPEECH_ID_RANGE,
            f"field {name}: expected ids in 0..{codec_size - 1}, "
            f"found {found} at position {position}{remedy}",
        )
    units = speech_units(text or "")
    if IDS_PER_UNIT * (units + 1) >= len(ids) + 2:
        yield (
            DefectKind.SPEECH_TOO_SHORT,
            f"field {name}: expected {IDS_PER_UNIT:g} ids or more for each of {units} words or ideographs, "
            f"found {len(ids)}; the ids belong to another text or were cut",
        )


def speech_units(text: str) -> int:
    """Words of alphabets and single ideographs, kana or syllable blocks: what takes time to say."""
    units, inside = 0, False
    for char in text:
        if "\u3040" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af":
            units, inside = units + 1, False
        elif char.isalnum():
            units, inside = units + (not inside), True
        elif char not in "'’":
            inside = False
    return units


def speech_ids_of(value: object, name: str = "speech_ids") -> tuple[int, ...] | None:
    """Speech ids as integers (numbers in strings allowed); empty counts as absent. Raises DataError."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _bad(name, f"expected a list of integers, found {type(value).__name__}")
    try:
        ids = tuple(item if type(item) is int else int(item) for item in value)
    except (TypeError, ValueError) as error:
        raise _bad(name, f"expected integers, {error}") from error
    if ids and min(ids) < 0:
        raise DataError(
            Defect(
                DefectKind.SPEECH_ID_RANGE,
                "",
                reason=f"field {name}: expected ids from 0 up, found {min(ids)}",
            )
        )
    return ids or None


def _bad(name: str, what: str) -> DataError:
    return DataError(Defect(DefectKind.BAD_FIELD, "", reason=f"field {name}: {what}"))
