"""Our own format: one JSON object per line, one name per field of :class:`Sample`, audio by path.

``speech_ids.jsonl`` beside a manifest adds speech ids by key. Every name that is no field stays in
``Sample.extra``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from echat.data import storage
from echat.data.defects import DataError, Defect, DefectKind, defect_from
from echat.data.formats.audio_folder import AudioFolder, is_under
from echat.data.formats.jsonl import JsonLines, present
from echat.data.sample import AudioRef, Sample, Turn, speech_ids_of
from echat.dialogue.labels import UNKNOWN_TAG, VOICE_KINDS, Labels

MANIFEST = "manifest.jsonl"
SPEECH_IDS = "speech_ids.jsonl"  # sidecar of a manifest: {"key": ..., "speech_ids": [...]} per line
_TEXTS = ("text", "task", "prompt", "target", "reply", "reply_emotion", "thought", "split")
_NESTED = "fields"  # further fields whose names are taken
FIELDS = frozenset(
    ("key", "audio", "start_seconds", "end_seconds", *_TEXTS, *VOICE_KINDS)
    + ("reply_audio", "speech_ids", "history", "lang", "source", "duration_s", _NESTED)
)


def sample_of(row: Mapping[str, Any], folder: AudioFolder, source: str = "") -> Sample:
    """The sample of one row; ``source`` names the corpus if the row does not.

    ``speech_ids`` speak the ``reply``; in a row without reply (a reading voice) they speak ``text``. Raises
    DataError that names the field.
    """
    rest = dict(row)
    key = rest.pop("key", None)
    if not isinstance(key, str) or not key:
        found = "nothing" if key is None else repr(key)
        reason = f"field key: expected a non-empty string, found {found}"
        raise DataError(
            Defect(DefectKind.MISSING_FIELD if key is None else DefectKind.BAD_FIELD, "", reason=reason)
        )
    labels, unknown = _labels(rest)
    start, end = (_number(rest.pop(name, None), name) for name in ("start_seconds", "end_seconds"))
    texts: dict[str, Any] = {name: _text(rest.pop(name, None), name) for name in _TEXTS}
    sample = Sample(
        key=key,
        audio=_audio(rest.pop("audio", None), folder, "audio", (start, end)),
        labels=labels,
        reply_audio=_audio(rest.pop("reply_audio", None), folder, "reply_audio"),
        speech_ids=speech_ids_of(rest.pop("speech_ids", None)),
        history=_history(rest.pop("history", None), folder),
        language=_text(rest.pop("lang", None), "lang"),
        source=_text(rest.pop("source", None), "source") or source,
        seconds=_number(rest.pop("duration_s", None), "duration_s"),
        **texts,
    )
    nested = rest.pop(_NESTED, None) or {}
    if not isinstance(nested, dict):
        raise _bad(_NESTED, "an object", nested)
    return replace(sample, extra={**rest, **unknown, **nested})


def row_of(sample: Sample, folder: Path | str) -> dict[str, Any]:
    """The row that :func:`sample_of` reads back as an equal sample; absent fields are left out.

    Audio under ``folder`` is named relative to it. Sound without a file must have been stored before.
    """
    row: dict[str, Any] = {"key": sample.key}
    if sample.audio is not None:
        whole = replace(sample.audio, start_seconds=None, end_seconds=None)
        row["audio"] = _audio_row(whole, str(folder), sample.key)
        row |= present(start_seconds=sample.audio.start_seconds, end_seconds=sample.audio.end_seconds)
    row |= present(**{name: getattr(sample, name) for name in _TEXTS})
    row |= _label_fields(sample)
    reply_audio = _audio_row(sample.reply_audio, str(folder), sample.key) if sample.reply_audio else None
    row |= present(
        reply_audio=reply_audio,
        speech_ids=list(sample.speech_ids) if sample.speech_ids else None,
        history=[_turn_row(turn, str(folder), sample.key) for turn in sample.history] or None,
        lang=sample.language,
        source=sample.source or None,
        duration_s=sample.seconds,
    )
    taken = {name: value for name, value in sample.extra.items() if name in FIELDS}
    row |= {name: value for name, value in sample.extra.items() if name not in FIELDS}
    return row | ({_NESTED: taken} if taken else {})


def read_manifest(path: Path | str, split: str | None = None) -> list[Sample]:
    """All samples of a manifest, with ``speech_ids.jsonl`` beside it joined by key when it exists.

    ``split`` keeps the rows of that split only. Raises DataError at the first bad row; to read past bad rows,
    or a large manifest, see :func:`echat.data.formats.corpus.open_corpus`.
    """
    path = Path(path)
    sidecar, folder = SpeechIdSidecar(str(path.with_name(SPEECH_IDS))), AudioFolder(str(path.parent), "/")
    samples = []
    for line, row in json_rows(path):
        try:
            sample = sample_of(row, folder, source=path.parent.name)
            ids = sidecar.get(sample.key)
        except Exception as error:  # one data row: the error names its line
            key = row.get("key")
            shown = None if key is None else str(key)
            raise DataError(defect_from(error, str(path), line, shown)) from error
        if split is None or sample.split == split:
            samples.append(replace(sample, speech_ids=ids) if ids else sample)
    if not samples:
        raise DataError(f"{path}: expected records{f' of split {split}' if split else ''}, found none")
    return samples


def json_rows(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``line 7``, object) of each row of JSON lines. Raises DataError at the first bad or repeated one."""
    lines = JsonLines(str(path))
    for number in range(len(lines)):
        row, line = lines[number]
        yield line, row


class SpeechIdSidecar:
    """Ids by key from the sidecar of a manifest; only the line numbers are held."""

    def __init__(self, path: str) -> None:
        self._lines = JsonLines(path)
        self._numbers: dict[str, int] | None = None

    def get(self, key: str) -> tuple[int, ...] | None:
        if self._numbers is None:
            there = storage.exists(self._lines.path)
            self._numbers = {key: number for number, key in self._lines.keyed()} if there else {}
        number = self._numbers.get(key)
        if number is None:
            return None
        return speech_ids_of(self._lines[number][0].get("speech_ids"))

    def __getstate__(self) -> dict[str, Any]:
        return {"_lines": self._lines, "_numbers": None}


def _audio(
    value: object, folder: AudioFolder, name: str, stretch: tuple[float | None, float | None] = (None, None)
) -> AudioRef | None:
    """A path, or an object with the fields of :class:`AudioRef` (a member of a tar)."""
    if not value:
        return None
    if isinstance(value, str):
        return AudioRef(folder.find(value, name), *stretch)
    known = {item.name for item in fields(AudioRef)} - {"data"}
    if isinstance(value, dict) and isinstance(value.get("path"), str) and value.keys() <= known:
        whole = AudioRef(**{**value, "path": folder.find(value["path"], name)})
        return (
            whole
            if stretch == (None, None)
            else replace(whole, start_seconds=stretch[0], end_seconds=stretch[1])
        )
    raise _bad(name, "a path, or an object with a path", value)


def _history(value: object, folder: AudioFolder) -> tuple[Turn, ...]:
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise _bad("history", "a list of objects", value)
    return tuple(_turn(turn, folder, f"history {number}") for number, turn in enumerate(value, 1))


def _turn(turn: Mapping[str, Any], folder: AudioFolder, name: str) -> Turn:
    reply = _text(turn.get("reply"), f"{name} reply")
    if reply is None:
        raise _bad(f"{name} reply", "text", None)
    ids = speech_ids_of(turn.get("speech_ids"), f"{name} speech_ids")
    return Turn(_audio(turn.get("audio"), folder, f"{name} audio"), _text(turn.get("text"), name), reply, ids)


def _turn_row(turn: Turn, folder: str, key: str) -> dict[str, Any]:
    audio = _audio_row(turn.audio, folder, key) if turn.audio else None
    ids = list(turn.speech_ids) if turn.speech_ids else None
    return present(audio=audio, text=turn.text, reply=turn.reply, speech_ids=ids)


def _audio_row(ref: AudioRef, folder: str, key: str) -> str | dict[str, Any]:
    if ref.data is not None:
        raise DataError(f"record {key}: expected sound in a file, found it in memory; store it before")
    path = os.path.relpath(ref.path, folder) if is_under(ref.path, folder) else ref.path
    names = ("start_seconds", "end_seconds", "offset", "size", "member")
    more = present(**{name: getattr(ref, name) for name in names})
    return {"path": path, **more} if more else path


def _label_fields(sample: Sample) -> dict[str, str]:
    found = present(**{name: getattr(sample.labels, name) for name in VOICE_KINDS})
    if sample.labels.sound_event is None and sample.text:
        found["sound_event"] = UNKNOWN_TAG  # no mention would mean speech alone
    return found


def _labels(rest: dict[str, Any]) -> tuple[Labels, dict[str, str]]:
    """The labels, taken out of the row, and the words among them that no table knows."""
    found = {name: _text(rest.pop(name, None), name) for name in VOICE_KINDS}
    labels = Labels.from_record({**found, "text": rest.get("text")})
    unknown = {}
    for name, word in found.items():
        known = getattr(labels, name)
        if word and word != UNKNOWN_TAG and (known is None or (known == "other" and word != "other")):
            unknown[name] = word
    return labels, unknown


def _text(value: object, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _bad(name, "text", value)


def _number(value: object, name: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise _bad(name, "a number", value)


def _bad(name: str, expected: str, value: object) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(
        Defect(DefectKind.BAD_FIELD, "", reason=f"field {name}: expected {expected}, found {shown}")
    )
