"""Read written texts aloud with Kokoro: replies in the answer voice, questions in all voices that may train.

    python -m echat.corpus.conversation_audio INGREDIENTS TEXTS OUT [--fillers texts.jsonl] [--follow]

TEXTS is a folder of conversations (`cues-*.yaml`, `dialogues-*.yaml`), which may grow while this runs. OUT
gets `answers/` and `questions/`, each with `manifest.jsonl` and `audio/PART/KEY.flac` at 24 kHz. A sound
depends on its text, voice and pace alone; each is made once, also after interruptions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml

from echat.audio.waveform import write
from echat.corpus.audio_sets import read_finished, reply_audio_key
from echat.corpus.synthesis.kokoro import ANSWER_VOICE, RATE, Kokoro, KokoroVoice
from echat.corpus.synthesis.tts_engines import VoiceError
from echat.errors import Arguments, command

Role = Literal["answers", "questions"]
ROLES: tuple[Role, Role] = ("answers", "questions")
CLIPS_IN_PART = 200
SPEEDS = (0.8, 1.25)  # slowest and fastest question
LINES_PER_ROUND: dict[Role, int] = {"answers": 32, "questions": 8}  # clips until new texts are looked for
FOLLOW_SECONDS = 30.0  # between two looks when everything is spoken
DEV_SHARE = 25  # one text in so many is kept for validation

_DIGITS = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
)
_NAME = re.compile(r"\bechat\b", re.IGNORECASE)  # which espeak-ng would read as one French word
_EMERGENCY_NUMBER = re.compile(r"\b(?:911|999|112|988|116 ?123)\b")


@dataclass(frozen=True)
class SpokenLine:
    """One text in one voice."""

    role: Role
    text: str
    voice: str
    speed: float = 1.0
    source: str = ""  # where the text comes from

    @property
    def key(self) -> str:
        if self.role == "answers":
            return reply_audio_key(self.text)
        return "question-" + _digest(f"{self.text}|{self.voice}|{self.speed}")[:16]

    @property
    def split(self) -> str:
        """By the text alone, so that all voices of a text are on one side."""
        return "dev" if int(_digest(self.text), 16) % DEV_SHARE == 0 else "train"


def kokoro_text(text: str) -> str:
    """The text as it is said: our name as two words, numbers to dial digit by digit, a mark at the end."""
    text = _NAME.sub("e chat", text)
    said = _EMERGENCY_NUMBER.sub(
        lambda m: " ".join(_DIGITS[d] for d in m[0] if d in _DIGITS), " ".join(text.split())
    )
    return said if said[-1:] in ".!?…" else said + "."


def answer_line(text: str, source: str) -> SpokenLine:
    return SpokenLine("answers", text, ANSWER_VOICE, source=source)


def question_line(text: str, source: str, voices: tuple[str, ...], copy: int = 0) -> SpokenLine:
    """A question in the voice and at the pace that its text and the number of the copy decide."""
    rng = random.Random(f"{text}|{copy}")
    voice = voices[(int(_digest(text), 16) + copy) % len(voices)]
    return SpokenLine("questions", text, voice, round(rng.uniform(*SPEEDS), 2), source)


def conversation_lines(folder: Path, voices: tuple[str, ...]) -> Iterator[SpokenLine]:
    """Replies and questions of the conversations of a folder; unreadable files are passed over."""
    for path in sorted(folder.rglob("*.yaml")):
        yield from _lines_of_file(path, path.stat().st_mtime_ns, voices)


@lru_cache(maxsize=4096)
def _lines_of_file(path: Path, changed: int, voices: tuple[str, ...]) -> tuple[SpokenLine, ...]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        print(f"{path}: expected YAML, passed over until it changes: {error}", file=sys.stderr, flush=True)
        return ()
    lines: list[SpokenLine] = []
    for row in rows if isinstance(rows, list) else []:
        said, replies = _texts_of(row) if isinstance(row, dict) else ([], [])
        lines += [answer_line(text, path.name) for text in replies]
        lines += [question_line(text, path.name, voices) for text in said]
    return tuple(lines)


def _texts_of(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is asked and what is answered in a cue set or a dialogue."""
    turns = row.get("turns") or []
    said = [*(row.get("say") or []), *(turn.get("user") for turn in turns)]
    replies = [turn.get("reply") for turn in [*(row.get("answers") or []), *turns]]
    return [one for one in said if _sayable(one)], [one for one in replies if _sayable(one)]


def _sayable(text: object) -> bool:
    return isinstance(text, str) and any(character.isalpha() for character in text)


def filler_lines(path: Path | None, voices: tuple[str, ...]) -> list[SpokenLine]:
    """Lines of a JSONL of `{"role", "text", "source"}`, in its order."""
    if path is None:
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (answer_line if row["role"] == "answers" else lambda t, s: question_line(t, s, voices))(
            row["text"], row["source"]
        )
        for row in rows
    ]


def training_voices(folder: Path) -> tuple[str, ...]:
    """The English voices of a folder that may train, without the answer voice, which users do not have."""
    names = sorted(path.stem for path in folder.glob("[ab][fm]_*.bin"))
    return tuple(name for name in names if KokoroVoice(name).is_for_training and name != ANSWER_VOICE)


class LineSynthesizer:
    """Speaks lines into a folder and notes each when its file is whole."""

    def __init__(self, kokoro: Kokoro, out: Path) -> None:
        self.kokoro, self.out = kokoro, out
        self.manifests = {role: out / role / "manifest.jsonl" for role in ROLES}
        self.done: dict[Role, set[str]] = {}
        for role, manifest in self.manifests.items():
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self.done[role] = {row["key"] for row in read_finished(manifest)}
        self.failed: set[str] = set()

    def next_round(self, lines: Iterable[SpokenLine]) -> list[SpokenLine]:
        """The first that are not spoken yet, as many of each role as a round has."""
        found: dict[Role, dict[str, SpokenLine]] = {role: {} for role in ROLES}
        for line in lines:
            key, role = line.key, line.role
            if (
                key not in self.done[role]
                and key not in self.failed
                and len(found[role]) < LINES_PER_ROUND[role]
            ):
                found[role].setdefault(key, line)
        return [line for role in ROLES for line in found[role].values()]

    def synthesize(self, line: SpokenLine) -> float:
        """Speak one line; returns its seconds, 0 when the voice refused it, which is reported."""
        try:
            wave = self.kokoro.speak(kokoro_text(line.text), KokoroVoice(line.voice), line.speed)
        except VoiceError as error:
            print(f"{line.source}: {line.text!r} is left out: {error}", file=sys.stderr, flush=True)
            self.failed.add(line.key)
            return 0.0
        part = f"{len(self.done[line.role]) // CLIPS_IN_PART:04d}"
        audio = f"audio/{part}/{line.key}.flac"
        path = self.manifests[line.role].parent / audio
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, wave, RATE)
        self._note(line, audio, len(wave) / RATE)
        return len(wave) / RATE

    def _note(self, line: SpokenLine, audio: str, seconds: float) -> None:
        row: dict[str, Any] = {"key": line.key, "audio": audio, "text": line.text, "lang": "en"}
        row |= {
            "split": line.split,
            "duration_s": round(seconds, 3),
            "voice": f"kokoro:{line.voice}",
            "speed": line.speed,
        }
        row |= {"emotion": "neutral", "age": "adult", "gender": KokoroVoice(line.voice).gender}
        with self.manifests[line.role].open("a", encoding="utf-8") as out:
            out.write(json.dumps(row | {"origin": line.source}, ensure_ascii=False) + "\n")
        self.done[line.role].add(line.key)


def run(synthesizer: LineSynthesizer, texts: Path, fillers: list[SpokenLine], follow: bool) -> None:
    """Speak everything, written conversations before fillers; with `follow`, wait for more."""
    voices = training_voices(synthesizer.kokoro.voices)
    while True:
        some = synthesizer.next_round(chain(conversation_lines(texts, voices), fillers))
        began = time.process_time()
        seconds = sum(synthesizer.synthesize(line) for line in some)
        if some:
            counts = ", ".join(f"{len(synthesizer.done[role])} {role}" for role in ROLES)
            factor = (time.process_time() - began) / max(seconds, 0.1)
            print(f"{time.strftime('%H:%M:%S')} {counts}, CPU real-time factor {factor:.2f}", flush=True)
        elif not follow:
            return
        else:
            time.sleep(FOLLOW_SECONDS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@command
def main(arguments: Arguments) -> None:
    """`python -m echat.corpus.conversation_audio INGREDIENTS TEXTS OUT`"""
    parser = argparse.ArgumentParser(prog="python -m echat.corpus.conversation_audio", description=__doc__)
    parser.add_argument("ingredients", type=Path, help="folder with kokoro/model.onnx and kokoro/voices/")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fillers", type=Path, help="JSONL of further texts, spoken last")
    parser.add_argument("--follow", action="store_true", help="go on for ever, as texts appear")
    given = parser.parse_args(arguments)
    kokoro = Kokoro(given.ingredients / "kokoro" / "model.onnx", given.ingredients / "kokoro" / "voices")
    fillers = filler_lines(given.fillers, training_voices(kokoro.voices))
    run(LineSynthesizer(kokoro, given.out), given.texts, fillers, given.follow)


if __name__ == "__main__":
    sys.exit(main())
