"""Columns of people's tables as fields of ours: by --map, by the usual names, by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from echat.audio.containers import SOUND_SUFFIXES
from echat.data.defects import DataError, Defect
from echat.data.formats.manifest import FIELDS
from echat.data.tabular.delimited import TableRow
from echat.data.tabular.huggingface import EmbeddedAudio

ALIASES = {
    "key": ("id", "utt_id", "utterance_id", "uid", "__key__"),
    "audio": ("path", "file", "file_name", "filename", "audio_path", "audio_file", "audio_filepath", "wav")
    + ("wav_path", "clip", "sound", "question_audio", "question_wav", "audio_question"),
    "reply_audio": ("answer_audio", "answer_wav", "reply_wav", "response_audio", "audio_answer"),
    "text": ("sentence", "transcript", "transcription", "txt", "normalized_text", "caption")
    + ("question_text", "text_question"),
    "reply": ("answer_text", "response_text", "text_answer"),
    "lang": ("language", "locale"),
    "duration_s": ("duration", "seconds"),
}
PAIRS = {  # columns of pairs, which hold sound or text: (field of the sound, field of the text), names
    ("audio", "text"): ("question", "query", "user", "instruction", "input"),
    ("reply_audio", "reply"): ("answer", "response", "output", "assistant"),
}
WORDS = {  # of published tables, as labels of ours
    "gender": {"male_masculine": "male", "female_feminine": "female", "m": "male", "f": "female"},
    "age": dict.fromkeys(("twenties", "thirties", "fourties", "forties", "fifties"), "adult")
    | dict.fromkeys(("sixties", "seventies", "eighties", "nineties"), "old"),
}
_USED = ("audio", "reply_audio", "text", "reply", "target", "history")  # a record needs one of them
_SHOWN = 40  # columns that a message lists


def renamed(columns: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """A row under our names; columns that are no field keep their own. ``mapping`` is field -> column."""
    there = {name.strip().lower(): name for name in reversed(list(columns))}
    mapped = {field: name for field, name in mapping.items() if name in columns}
    fields = dict(columns)

    def take(field: str, name: str | None) -> None:
        if name is not None:
            fields.pop(name, None)
            fields[field] = columns[name]

    for field in FIELDS - mapped.keys() - columns.keys():
        names = (field, *ALIASES.get(field, ()))
        take(field, next((there[name] for name in names if name in there), None))
    for (sound, text), names in PAIRS.items():
        name = next((there[name] for name in names if name in there), None)
        if name is not None and name not in mapped.values():
            field = sound if _is_sound(columns[name]) else text
            take(field, name if field not in fields and field not in mapped else None)
    for field, name in mapped.items():
        take(field, name)
    for field, words in WORDS.items():
        if isinstance(fields.get(field), str):
            fields[field] = words.get(fields[field].lower(), fields[field])
    return fields


def refuse_columns(rows: Iterable[TableRow | Defect], where: str, mapping: Mapping[str, str]) -> None:
    """Raise DataError where the mapping names a column that no row has, or no column is known."""
    there: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, Defect):
            there |= dict.fromkeys(row.names or row.columns)
    if not there:
        return
    shown = ", ".join(list(there)[:_SHOWN])
    for field, column in mapping.items():
        if column not in there:
            raise DataError(
                f"{where}, --map {field}={column}: expected one of the columns {shown}, found no {column}"
            )
    pairs = chain.from_iterable(PAIRS.values())
    aliases = chain.from_iterable(names for field, names in ALIASES.items() if field in _USED)
    if not {*_USED, *aliases, *pairs} & {name.strip().lower() for name in there} and not mapping:
        raise DataError(
            f"{where}: expected columns of known names (audio, path, text, sentence, question, ...) in the "
            f"first line, found {shown}; say which is which, such as --map text={next(iter(there))}"
        )


def key_shown(columns: Mapping[str, Any]) -> str | None:
    """The key of a row for a message about it."""
    key = next((columns[name] for name in ("key", *ALIASES["key"]) if name in columns), None)
    return None if key is None else str(key)


def _is_sound(value: object) -> bool:
    if isinstance(value, str):
        return Path(value).suffix.lower().lstrip(".") in SOUND_SUFFIXES
    return isinstance(value, EmbeddedAudio | dict)
