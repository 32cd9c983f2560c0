"""The one record type every reader yields and everything downstream understands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echat.dialogue.labels import Labels


class DataError(ValueError):
    """A record that cannot be used: file, record, field, expected, found, remedy."""


@dataclass(frozen=True, slots=True)
class AudioRef:
    """Where sound lies: a file, or a stretch of it."""

    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished exchange before the present question."""

    audio: AudioRef | None
    text: str | None  # what the user said
    reply: str
    speech_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A question somebody asked, how it sounded, and the answer it deserves; None where not known."""

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

    @classmethod
    def from_manifest_row(cls, row: Mapping[str, Any], folder: Path, source: str = "") -> Sample:
        """A line of one of our manifests (audio paths relative to ``folder``).

        ``speech_ids`` speak the ``reply``; in a row without reply (a reading voice) they speak ``text``.
        """
        known = dict(row)
        key = known.pop("key", None)
        if not isinstance(key, str) or not key:
            raise DataError(f"{folder}: field key: expected a non-empty string, found {key!r}")
        where = f"{folder}, record {key}"
        ids = speech_ids_of(known.pop("speech_ids", None), where)
        labels = Labels.from_record(row)
        for name in ("age", "gender", "emotion", "sound_event", "style"):
            known.pop(name, None)
        return cls(
            key=key,
            audio=_audio(known.pop("audio", None), folder),
            text=_text(known.pop("text", None), where, "text"),
            labels=labels,
            reply=_text(known.pop("reply", None), where, "reply"),
            reply_emotion=_text(known.pop("reply_emotion", None), where, "reply_emotion"),
            reply_audio=_audio(known.pop("reply_audio", None), folder),
            speech_ids=ids,
            thought=_text(known.pop("thought", None), where, "thought"),
            language=known.pop("lang", None),
            split=known.pop("split", None),
            source=source,
            seconds=known.pop("duration_s", None),
            extra=known,
        )


def read_manifest(path: Path | str, split: str | None = None) -> list[Sample]:
    """All samples of a JSON-lines manifest, with ``speech_ids.jsonl`` beside it joined by key when it exists.

    ``split`` keeps the rows of that split only.
    """
    path = Path(path)
    spoken = read_speech_ids(path.with_name(SPEECH_IDS))
    samples = []
    for number, row in json_lines(path):
        try:
            sample = Sample.from_manifest_row(row, path.parent, source=path.parent.name)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if split is not None and sample.split != split:
            continue
        ids = spoken.get(sample.key, sample.speech_ids)
        samples.append(replace(sample, speech_ids=ids) if ids != sample.speech_ids else sample)
    if not samples:
        raise DataError(f"{path}: expected records{f' of split {split}' if split else ''}, found none")
    return samples


SPEECH_IDS = "speech_ids.jsonl"  # sidecar of a manifest: {"key": ..., "speech_ids": [...]} per line


def read_speech_ids(path: Path) -> dict[str, tuple[int, ...]]:
    """The sidecar's ids by key; empty when there is no such file."""
    if not path.is_file():
        return {}
    rows = (
        (row["key"], speech_ids_of(row["speech_ids"], f"{path}, line {number}"))
        for number, row in json_lines(path)
    )
    return {key: ids for key, ids in rows if ids}


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSON-lines file; blank lines are skipped."""
    if not path.is_file():
        raise DataError(f"{path}: expected a JSON-lines file, found nothing; check the path in the recipe")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: expected a JSON object, {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            yield number, row


def _audio(value: object, folder: Path) -> AudioRef | None:
    return AudioRef(str(folder / str(value))) if value else None


def _text(value: object, where: str, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{where}, field {name}: expected text, found {value!r}")


def speech_ids_of(value: object, where: str) -> tuple[int, ...] | None:
    """Speech ids as integers (numbers in strings allowed); empty counts as absent."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{where}, field speech_ids: expected a list of integers, found {type(value).__name__}"
        )
    try:
        ids = tuple(int(item) for item in value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}, field speech_ids: expected integers, {error}") from error
    if ids and min(ids) < 0:
        raise DataError(f"{where}, field speech_ids: expected ids from 0 up, found {min(ids)}")
    return ids or None
