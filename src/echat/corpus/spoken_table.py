"""Synthesis of a table of written dialogues: a folder of spoken questions and answers for fine-tuning.

Columns: ``text`` and ``reply`` (needed), ``emotion``, ``age``, ``gender``, ``sound_event`` of the question,
``reply_emotion``, ``gist`` (what follows "The user" in the thought), ``split`` (train, or test for
held-out voices), ``key``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.corpus.en.scenario_grammar import Dialogue
from echat.corpus.en.situation import CUE_OF_EMOTION
from echat.corpus.en.thought_template import DescribedUtterance, write_thought
from echat.corpus.en.voices import REPLY_VOICE
from echat.corpus.manifests import write_jsonl
from echat.corpus.spoken_questions import Condition, SpokenQuestion, render_question
from echat.corpus.synthesis.prosody import EMOTIONS
from echat.corpus.synthesis.sound_events import EVENTS
from echat.corpus.synthesis.tts_engines import speak
from echat.data.defects import DataError, Defect
from echat.data.tabular.readers import rows_of, table_folder
from echat.dialogue.labels import NEUTRAL_REPLY, SHOWN_KINDS, VALUES
from echat.dialogue.thinking import SLOTS

METADATA = "metadata.jsonl"
QUESTIONS, ANSWERS = "questions", "answers"  # folders of the sounds
_KNOWN = {kind: VALUES[kind] for kind in SHOWN_KINDS if kind in SLOTS} | {
    "emotion": EMOTIONS,
    "sound_event": EVENTS,
}


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
    write_jsonl(path, (_spoken(dialogue, split, folder, seed) for dialogue, split in dialogues))
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
        yield _dialogue(columns, f"{table.stem}-{number:04d}"), columns.get("split", "train")


def _dialogue(columns: dict[str, Any], key: str) -> Dialogue:
    """The dialogue of a row; the defaults of its labels are an adult, calm voice."""
    age, emotion = columns.get("age", "adult"), columns.get("emotion", "neutral")
    gender = None if age == "child" else columns.get("gender", "female")
    utterance = DescribedUtterance(columns["text"], age, gender, emotion, columns.get("sound_event"))
    cue = CUE_OF_EMOTION[emotion]
    return Dialogue(
        **vars(utterance),
        key=columns.get("key", key),
        situation=columns.get("situation", ""),
        pattern="",
        reply=columns["reply"],
        reply_emotion=columns.get("reply_emotion", NEUTRAL_REPLY),
        thought=write_thought(utterance, columns.get("gist", "tells something"), cue),
        accepted=[columns["reply"]],
        cue=cue,
    )


def _spoken(dialogue: Dialogue, split: str, folder: Path, seed: int) -> dict[str, Any]:
    """Write the audio of question and answer; returns the row that names them."""
    question, answer = f"{QUESTIONS}/{dialogue.key}.wav", f"{ANSWERS}/{dialogue.key}.wav"
    condition: Condition | None = "espeak" if split == "test" else None
    wave, record = render_question(SpokenQuestion(dialogue, split, dialogue.key, seed, condition), {})
    write(folder / question, wave, SAMPLE_RATE)
    write(folder / answer, speak(dialogue.reply, REPLY_VOICE), SAMPLE_RATE)
    key = record.pop("key")
    kept = {name: value for name, value in record.items() if value not in (None, "")}
    return {"key": key, "question": question, "answer": answer, **kept}
