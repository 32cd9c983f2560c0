"""A table of written dialogues becomes spoken pairs: a folder to fine-tune on or to measure with.

Columns: ``text`` and ``reply`` (needed), ``emotion``, ``age``, ``gender``, ``sound_event`` of the question,
``reply_emotion``, ``gist`` (what follows "The user" in the thought), ``split`` (train, or test for voices
that training never hears), ``key``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.checkpoint import atomic_path
from echat.corpus.en.scenario_grammar import AGES, GENDERS, Dialogue
from echat.corpus.en.situation import CUE_OF_EMOTION, EMOTIONS, EVENTS
from echat.corpus.en.thought_template import DescribedUtterance, write_thought
from echat.corpus.spoken_questions import Condition, SpokenQuestion, render_question
from echat.corpus.synthesis.tts_engines import REPLY_VOICE, speak
from echat.data.defects import DataError, Defect
from echat.data.tabular.readers import rows_of, table_folder
from echat.dialogue.labels import NEUTRAL_REPLY, REPLY_EMOTIONS

METADATA = "metadata.jsonl"
QUESTIONS, ANSWERS = "questions", "answers"  # folders of the sounds
_KNOWN = {"emotion": EMOTIONS, "age": tuple(AGES), "gender": GENDERS, "sound_event": EVENTS}


def speak_table(table: Path, folder: Path, seed: int = 1) -> Path:
    """Write ``metadata.jsonl`` and a WAV for every question and answer into ``folder``; returns the metadata.

    Raises DataError that names file, line and column of a row that cannot be spoken.
    """
    dialogues = list(_dialogues(table))
    if not dialogues:
        raise DataError(f"{table}: expected rows with text and reply, found none")
    for name in (QUESTIONS, ANSWERS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / METADATA
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for dialogue, split in dialogues:
            lines.write(json.dumps(_spoken(dialogue, split, folder, seed), ensure_ascii=False) + "\n")
    return path


def _dialogues(table: Path) -> Iterator[tuple[Dialogue, str]]:
    for number, row in enumerate(rows_of(str(table), table_folder(str(table))), 1):
        if isinstance(row, Defect):
            raise DataError(row)
        columns, where = row.columns, f"{table}, {row.place}"
        for name in ("text", "reply"):
            if not columns.get(name):
                raise DataError(f"{where}: expected words in column {name}, found none")
        for name, known in _KNOWN.items():
            if columns.get(name) is not None and columns[name] not in known:
                raise DataError(
                    f"{where}, column {name}: expected one of {', '.join(known)}, found {columns[name]!r}"
                )
        if columns.get("reply_emotion", NEUTRAL_REPLY) not in REPLY_EMOTIONS:
            raise DataError(
                f"{where}, column reply_emotion: expected one of {', '.join(REPLY_EMOTIONS)}, "
                f"found {columns['reply_emotion']!r}"
            )
        yield _dialogue(columns, f"{table.stem}-{number:04d}"), columns.get("split", "train")


def _dialogue(columns: dict[str, Any], key: str) -> Dialogue:
    """The row as a made dialogue; what it does not say is plain: an adult, calm."""
    age, emotion = columns.get("age", "adult"), columns.get("emotion", "neutral")
    gender = None if age == "child" else columns.get("gender", "female")
    utterance = DescribedUtterance(columns["text"], age, gender, emotion, columns.get("sound_event"))
    cue = CUE_OF_EMOTION[emotion]
    return Dialogue(
        key=columns.get("key", key),
        text=utterance.text,
        emotion=emotion,
        gender=gender,
        age=age,
        sound_event=utterance.sound_event,
        situation=columns.get("situation", ""),
        pattern="",
        reply=columns["reply"],
        reply_emotion=columns.get("reply_emotion", NEUTRAL_REPLY),
        thought=write_thought(utterance, columns.get("gist", "tells something"), cue),
        accepted=[columns["reply"]],
        cue=cue,
    )


def _spoken(dialogue: Dialogue, split: str, folder: Path, seed: int) -> dict[str, Any]:
    """Both sounds on disk; the row that names them."""
    question, answer = f"{QUESTIONS}/{dialogue.key}.wav", f"{ANSWERS}/{dialogue.key}.wav"
    condition: Condition | None = "espeak" if split == "test" else None
    wave, record = render_question(SpokenQuestion(dialogue, split, dialogue.key, seed, condition), {})
    write(folder / question, wave, SAMPLE_RATE)
    write(folder / answer, speak(dialogue.reply, REPLY_VOICE), SAMPLE_RATE)
    key = record.pop("key")
    kept = {name: value for name, value in record.items() if value not in (None, "")}
    return {"key": key, "question": question, "answer": answer, **kept}
