"""Written conversations as dialogue records: cue sets and dialogues of YAML files, with their sound.

    python -m echat.corpus.written TEXTS OUT [--spoken CORPUS]

writes OUT/text.jsonl, every conversation as text, and with `--spoken` OUT/spoken.jsonl, those whose question
and reply `echat.corpus.kokoro_corpus` has read aloud. A cue set gives a record for each wording and answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from echat.corpus.audio_sets import reply_audio_key, write_jsonl
from echat.dialogue.labels import AGES, EMOTIONS, GENDERS, REPLY_EMOTIONS_IN_ENGLISH, SOUND_EVENTS
from echat.errors import Arguments, command

SHIPPED = Path(__file__).parent / "en" / "conversations"  # README.md there has the rules they were written by
DEV_SHARE = 25  # one conversation in so many is kept for validation
_TONES = {english: word for word, english in REPLY_EMOTIONS_IN_ENGLISH.items()}
_KINDS = {"emotion": EMOTIONS, "age": AGES, "gender": GENDERS, "sound_event": SOUND_EVENTS}
_PLAIN = {"emotion": "neutral", "age": "adult", "gender": None, "sound_event": "none"}
Row = dict[str, Any]


class ConversationError(ValueError):
    """A conversation breaks the format; the message names file, conversation and field."""


@dataclass(frozen=True)
class ClipIndex:
    """What was read aloud: paths of questions by their text, of answers by the key of their text."""

    questions: Mapping[str, tuple[Row, ...]]
    answers: Mapping[str, str]

    @classmethod
    def of(cls, corpus: Path, start: Path) -> ClipIndex:
        """The clips of a corpus folder, paths as seen from `start`."""
        questions: dict[str, list[Row]] = {}
        for row in _rows(corpus / "questions" / "manifest.jsonl"):
            path = os.path.relpath(corpus / "questions" / row["audio"], start)
            questions.setdefault(row["text"], []).append(row | {"audio": path})
        answers = {
            row["key"]: os.path.relpath(corpus / "answers" / row["audio"], start)
            for row in _rows(corpus / "answers" / "manifest.jsonl")
        }
        return cls({text: tuple(rows) for text, rows in questions.items()}, answers)


def _rows(manifest: Path) -> Iterator[Row]:
    """Rows of a manifest that may still grow: a torn last line is not there yet."""
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True) if manifest.exists() else []
    yield from (json.loads(line) for line in lines if line.endswith("\n"))


def conversations(folder: Path) -> Iterator[tuple[str, Row]]:
    """(file name, conversation) of all `cues-*.yaml` and `dialogues-*.yaml` below it. Raises WrittenError."""
    for path in sorted([*folder.rglob("cues-*.yaml"), *folder.rglob("dialogues-*.yaml")]):
        try:
            rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConversationError(f"{path.name}: expected YAML, found: {error}") from error
        for row in rows or []:
            yield path.name, row


def manifest_rows(folder: Path) -> Iterator[Row]:
    """Manifest rows without sound, a dialogue as its last turn with the turns before as its history."""
    for file, one in conversations(folder):
        try:
            yield from _of_dialogue(one) if "turns" in one else _of_cue_set(one)
        except (KeyError, TypeError, ValueError) as error:
            where = one.get("id", "without id") if isinstance(one, dict) else "no mapping"
            raise ConversationError(f"{file}, conversation {where}: {error}") from error


def _of_cue_set(one: Row) -> Iterator[Row]:
    for number, text in enumerate(one["say"]):
        for answer in one["answers"]:
            key = f"{one['id']}-{number}-{_word(answer['cue'])}"
            yield _record(key, one, text, answer)


def _of_dialogue(one: Row) -> Iterator[Row]:
    *past, last = one["turns"]
    history = [{"text": turn["user"], "reply": turn["reply"]} for turn in past]
    yield _record(one["id"], one, last["user"], last) | {"history": history}


def _record(key: str, one: Row, text: str, answer: Row) -> Row:
    labels = labels_of(answer.get("cue"), f"{one['id']} {text}")
    row = {"key": key, "text": text, "lang": "en", "split": split_of(one["id"]), **labels}
    row |= {"reply": answer["reply"], "reply_emotion": _tone(answer["tone"])}
    if thought := answer.get("thought"):
        row["thought"] = f'The user says: "{text}". {thought}'  # the quoted words are what was heard
    return row


def labels_of(cue: str | None, seed: str) -> Row:
    """Labels of a voice that a cue describes: calm, adult and without a sound where it says nothing else.

    An adult without a gender gets that which `seed` decides, a child has none. ValueError for other words.
    """
    found: Row = {}
    for word in (cue or "").split(","):
        kinds = [kind for kind, words in _KINDS.items() if word.strip() in words]
        if word.strip() and not kinds:
            known = ", ".join(word for words in _KINDS.values() for word in words)
            raise ValueError(f"cue: expected one of {known}, found {word.strip()!r}")
        found |= {kind: word.strip() for kind in kinds}
    labels = _PLAIN | found
    if labels["gender"] is None and labels["age"] != "child":
        labels["gender"] = GENDERS[_hash(seed) % 2]
    return labels


def split_of(identity: str) -> str:
    """By conversation, so that all its wordings are on one side."""
    return "dev" if _hash(identity) % DEV_SHARE == 0 else "train"


def with_audio(rows: Sequence[Row], clips: ClipIndex) -> Iterator[Row]:
    """Rows with sound: the question in each voice that said it, calm, and the reply."""
    for row in rows:
        reply = clips.answers.get(reply_audio_key(row["reply"]))
        is_plain = row["emotion"] == "neutral" and row["age"] == "adult" and row["sound_event"] == "none"
        for clip in (
            clips.questions.get(row["text"], ()) if reply and is_plain and not row.get("history") else ()
        ):
            voice = {name: clip[name] for name in ("audio", "duration_s", "voice", "gender")}
            yield row | voice | {"key": f"{row['key']}-{clip['key'][-8:]}", "reply_audio": reply}


def _tone(tone: str) -> str:
    if tone not in _TONES:
        raise ValueError(f"tone: expected one of {', '.join(_TONES)}, found {tone!r}")
    return _TONES[tone]


def _word(cue: str) -> str:
    return "-".join(part.strip() for part in cue.split(","))


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@command
def main(arguments: Arguments) -> None:
    """`python -m echat.corpus.written TEXTS OUT`"""
    parser = argparse.ArgumentParser(prog="python -m echat.corpus.written", description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spoken", type=Path, help="corpus folder with questions/ and answers/")
    given = parser.parse_args(arguments)
    rows = list(manifest_rows(given.texts))
    given.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(given.out / "text.jsonl", rows)
    print(f"{given.out / 'text.jsonl'}: {len(rows)} records")
    if given.spoken is not None:
        rows_with_audio = list(with_audio(rows, ClipIndex.of(given.spoken, given.out)))
        write_jsonl(given.out / "spoken.jsonl", rows_with_audio)
        print(f"{given.out / 'spoken.jsonl'}: {len(rows_with_audio)} records")


if __name__ == "__main__":
    sys.exit(main())
