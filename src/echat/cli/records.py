"""Turns as files: spoken questions and histories to read, replies and recognition results as JSON records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read
from echat.cli.io import STREAM, Inputs, stdin_bytes
from echat.dialogue.thinking import LabelThought, LanguageThought, Thought
from echat.dialogue.turns import AssistantTurn, Turn, UserTurn

if TYPE_CHECKING:
    from echat.infer.events import Reply, Understanding


def read_question(path: Path) -> UserTurn:
    """A spoken user turn at the rate of the speech encoder."""
    if path == STREAM:
        waveform, _ = read(stdin_bytes(), SAMPLE_RATE, name="stdin")
    else:
        waveform, _ = read(path, SAMPLE_RATE)
    return UserTurn(audio=waveform)


def read_questions(inputs: Inputs) -> Iterator[tuple[int, UserTurn]]:
    """(number, turn) of every input that is a sound, before a model is loaded."""
    for number, path in inputs:
        with inputs.part(number):
            yield number, read_question(path)


def reply_record(
    answer: Reply,
    task: str,
    question: Path | None = None,
    text: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """One finished turn for programs; ``read_history`` reads it back."""
    return {
        "question": {"text": text} if question is None else {"audio": _name(question)},
        "task": task,
        "thought": thought_record(answer.thought),
        "reply": answer.text,
        "reply_emotion": answer.reply_emotion,
        "speech_ids": list(answer.speech_ids),
        "audio": None if output is None else _name(output),
        "duration_s": duration(answer),
        "seconds": {name: round(value, 3) for name, value in answer.seconds.items()},
        "finish_reason": answer.finish_reason,
        "raw_text": answer.raw_text,
    }


def _name(path: Path) -> str:
    return str(path) if path == STREAM else str(path.resolve())


def duration(answer: Reply) -> float | None:
    """Seconds of speech, None without any."""
    if answer.waveform is None or answer.rate is None:
        return None
    return round(len(answer.waveform) / answer.rate, 3)


def thought_record(thought: Thought | None) -> dict[str, Any] | None:
    if thought is None:
        return None
    return {"form": "label" if isinstance(thought, LabelThought) else "language", **thought.as_dict()}


def understanding_record(found: Understanding, task: str, clip: Path) -> dict[str, Any]:
    return {
        "audio": _name(clip),
        "task": task,
        "text": found.text,
        "labels": found.labels.as_dict(),
        "reply": found.reply,
        "raw_text": found.raw_text,
    }


def read_history(path: Path) -> list[Turn]:
    """The turns of a history file: one record of ``echat reply --json`` or a list of them.

    Of a record only ``question`` (``audio``, relative to the file, or ``text``) and ``reply`` are needed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a history file, found none; write one with echat reply --json")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON as echat reply --json prints it, found other content ({error})"
        ) from error
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a turn or a list of turns, found a {type(records).__name__}")
    return [turn for number, record in enumerate(records) for turn in _turns(record, path, number)]


def _turns(record: Any, path: Path, number: int) -> list[Turn]:
    where = f"{path}, turn {number}"
    if not isinstance(record, dict) or not isinstance(record.get("reply"), str):
        raise ValueError(f"{where}: expected an object with question and reply, found {str(record)[:60]!r}")
    question = record.get("question")
    if not isinstance(question, dict) or not (question.get("audio") or question.get("text")):
        raise ValueError(
            f'{where}, question: expected {{"audio": path}} or {{"text": words}}, found {question!r}'
        )
    if question.get("audio"):
        user = read_question(path.parent / str(question["audio"]))
    else:
        user = UserTurn(text=str(question["text"]))
    speech_ids, thought = _speech_ids(record, where), _thought(record, where)
    return [user, AssistantTurn(text=record["reply"], speech_ids=speech_ids, thought=thought)]


def _speech_ids(record: dict[str, Any], where: str) -> list[int] | None:
    ids = record.get("speech_ids") or None
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
        raise ValueError(f"{where}, speech_ids: expected a list of ids from 0 up, found {str(ids)[:60]}")
    return ids


def _thought(record: dict[str, Any], where: str) -> Thought | None:
    thought = record.get("thought")
    if thought is None:
        return None
    forms = {"label": LabelThought, "language": LanguageThought}
    try:
        fields = dict(thought)
        return forms[fields.pop("form")](**fields)  # type: ignore[no-any-return]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{where}, thought: expected the form and fields that echat reply --json prints, "
            f"found {str(thought)[:80]}"
        ) from error
