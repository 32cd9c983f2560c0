"""Records of written conversations: cue sets and dialogues of YAML files as manifests, some with audio.

`text.jsonl` has every conversation as text; `spoken.jsonl` those whose question and reply
`echat.corpus.conversation_audio` has synthesised, `questions.jsonl` all its questions. A cue set gives
a record for each wording and answer. Replies, also past ones, have their speech ids when
`answers/speech_ids.jsonl` is there. What is recognised is in written form, whatever the author typed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from echat.corpus.en import LANGUAGE
from echat.corpus.en.questions import word_set
from echat.corpus.en.written_form import mid_sentence_capitals, written_form
from echat.corpus.manifests import (
    DEV_ONE_IN,
    Row,
    read_growing_jsonl,
    read_jsonl,
    reply_audio_key,
    write_jsonl,
)
from echat.data.formats.manifest import SPEECH_IDS
from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import EVALUATED_KINDS, REPLY_EMOTIONS_IN_ENGLISH, VALUES

SHIPPED = Path(__file__).parent / "en" / "conversations"  # README.md there has the rules they were written by
_TONES = {english: word for word, english in REPLY_EMOTIONS_IN_ENGLISH.items()}
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast
_COMMON_WORDS = word_set(  # that the conversations have as names, too
    "bloom central chapel daisy dairy flute frank grace ida jun lane lin mercury nacht ns olive orchard "
    "palace paz pepper piper pole poppy roman stools windy"
)
_PLAIN = {kind: LABEL_KINDS[kind].unmarked for kind in EVALUATED_KINDS}


class ConversationError(ValueError):
    """A conversation breaks the format; the message names file, conversation and field."""


@dataclass(frozen=True)
class ClipIndex:
    """Index of synthesised clips: questions by text and labels, paths and ids of answers by their key."""

    questions: Mapping[tuple[str, ...], tuple[Row, ...]] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    speech_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, corpus: Path, start: Path) -> ClipIndex:
        """The clips of a corpus folder, paths as seen from `start`."""
        questions: dict[tuple[str, ...], list[Row]] = {}
        for folder in ("questions", "cues"):
            for row in read_growing_jsonl(corpus / folder / "manifest.jsonl"):
                path = os.path.relpath(corpus / folder / row["audio"], start)
                found = _PLAIN | row | {"audio": path}
                questions.setdefault(_sound_of(found), []).append(found)
        answers = {
            row["key"]: os.path.relpath(corpus / "answers" / row["audio"], start)
            for row in read_growing_jsonl(corpus / "answers" / "manifest.jsonl")
        }
        ids = {row["key"]: row["speech_ids"] for row in read_jsonl(corpus / "answers" / SPEECH_IDS)}
        return cls({sound: tuple(rows) for sound, rows in questions.items()}, answers, ids)

    def spoken(self, row: Row) -> Row:
        """A row or past turn with the speech ids of its reply, where they are known."""
        ids = self.speech_ids.get(reply_audio_key(row["reply"]))
        return row if ids is None else row | {"speech_ids": ids}

    def asked(self, turn: Row, voice: Row) -> Row:
        """A past turn with its question in this voice, or another one of its gender; else as text alone."""
        clips = self.questions.get(_sound_of(_PLAIN | turn), ())
        for name in ("voice", "gender"):
            for clip in clips:
                if clip[name] == voice[name]:
                    return turn | {"audio": clip["audio"]}
        return turn


def conversations(folder: Path) -> Iterator[tuple[str, Row]]:
    """(file name, conversation) of all `cues-*.yaml` and `dialogues-*.yaml` below a folder."""
    for path in sorted([*folder.rglob("cues-*.yaml"), *folder.rglob("dialogues-*.yaml")]):
        try:
            rows = yaml.load(path.read_text(encoding="utf-8"), Loader=_READER)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConversationError(f"{path.name}: expected YAML, found: {error}") from error
        for row in rows or []:
            yield path.name, row


@cache
def shipped_lexicon() -> dict[str, str]:
    """Names and other words that the shipped conversations write with a capital inside sentences."""
    texts = []
    for _, one in conversations(SHIPPED):
        turns = (*one.get("answers", ()), *one.get("turns", ()))
        texts += [
            *one.get("say", ()),
            *(turn[who] for turn in turns for who in ("user", "reply") if who in turn),
        ]
    return mid_sentence_capitals(texts, _COMMON_WORDS)


def manifest_rows(folder: Path) -> Iterator[Row]:
    """Manifest rows without audio; the row of a dialogue is its last turn, with the earlier ones as history.

    Raises ConversationError for a conversation that breaks the format.
    """
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
    row = {"key": key, "text": text, "lang": LANGUAGE, "split": split_of(one["id"]), **labels}
    row |= {"reply": answer["reply"], "reply_emotion": _tone(answer["tone"])}
    if thought := answer.get("thought"):
        row["thought"] = f'The user says: "{text}". {thought}'  # quotes the transcript
    return row


def labels_of(cue: str | None, seed: str) -> Row:
    """Labels of a cue such as "child, fear"; by default a neutral adult voice without a sound event.

    The gender of an adult without one depends on `seed`, a child has none. ValueError for unknown labels.
    """
    found: Row = {}
    for word in (cue or "").split(","):
        kinds = [kind for kind in EVALUATED_KINDS if word.strip() in VALUES[kind]]
        if word.strip() and not kinds:
            known = ", ".join(word for kind in EVALUATED_KINDS for word in VALUES[kind])
            raise ValueError(f"cue: expected one of {known}, found {word.strip()!r}")
        found |= {kind: word.strip() for kind in kinds}
    labels = _PLAIN | found
    if labels["gender"] is None and labels["age"] != "child":
        labels["gender"] = VALUES["gender"][_hash(seed) % 2]
    return labels


def split_of(identity: str) -> str:
    """Split of a conversation: the same for all its wordings."""
    return "dev" if _hash(identity) % DEV_ONE_IN == 0 else "train"


def with_speech_ids(rows: Sequence[Row], clips: ClipIndex) -> Iterator[Row]:
    """Rows with the speech ids of their replies, past ones as well, where they are known."""
    for row in rows:
        history = [clips.spoken(turn) for turn in row.get("history", ())]
        yield clips.spoken(row) | ({"history": history} if history else {})


def with_audio(rows: Sequence[Row], clips: ClipIndex) -> Iterator[Row]:
    """Rows with the audio of the reply and of the question, one for each clip with its words and labels.

    What is recognised is in written form, also where the thought quotes it. Past turns of a dialogue have
    audio where somebody like the speaker of the question says them.
    """
    for row in rows:
        reply = clips.answers.get(reply_audio_key(row["reply"]))
        if not reply:
            continue
        written = _transcript(row["text"])
        texts = {"text": written}
        if "thought" in row:
            texts["thought"] = row["thought"].replace(f'"{row["text"]}"', f'"{written}"', 1)
        for clip in clips.questions.get(_sound_of(row), ()):
            voice = {name: clip[name] for name in ("audio", "duration_s", "voice", "gender")}
            history = [clips.asked(turn, voice) for turn in row.get("history", ())]
            more = {"history": history} if history else {}
            key = f"{row['key']}-{clip['key'][-8:]}"
            yield row | texts | voice | {"key": key, "reply_audio": reply} | more


def question_rows(clips: ClipIndex) -> Iterator[Row]:
    """All clips of questions, calm and with cues, with their labels and the words in written form."""
    for rows in clips.questions.values():
        for row in rows:
            yield row | {"text": _transcript(row["text"])}


def write_records(texts: Path, out: Path, spoken: Path | None = None) -> dict[Path, int]:
    """Write `text.jsonl`, with a corpus `spoken` also `spoken.jsonl` and `questions.jsonl`; rows of each."""
    clips = ClipIndex() if spoken is None else ClipIndex.of(spoken, out)
    rows = list(with_speech_ids(list(manifest_rows(texts)), clips))
    counts = {out / "text.jsonl": write_jsonl(out / "text.jsonl", rows)}
    if spoken is not None:
        counts |= {
            (path := out / f"{name}.jsonl"): write_jsonl(path, found)
            for name, found in (("spoken", with_audio(rows, clips)), ("questions", question_rows(clips)))
        }
    return counts


def _sound_of(row: Row) -> tuple[str, ...]:
    """What makes two clips alike: words, emotion, age, sound event."""
    return (row["text"], row["emotion"], row["age"], row["sound_event"])


def _transcript(text: str) -> str:
    return written_form(text, shipped_lexicon())


def _tone(tone: str) -> str:
    if tone not in _TONES:
        raise ValueError(f"tone: expected one of {', '.join(_TONES)}, found {tone!r}")
    return _TONES[tone]


def _word(cue: str) -> str:
    return "-".join(part.strip() for part in cue.split(","))


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
