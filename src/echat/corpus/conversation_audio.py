"""Synthesis of written conversations with Kokoro: replies in one voice, questions in all training voices.

The texts are a folder of conversations (`cues-*.yaml`, `dialogues-*.yaml`), which may grow meanwhile. The
output has `answers/` and `questions/`, each with `manifest.jsonl` and `audio/PART/KEY.flac` at 24 kHz. A clip
depends on its text, voice and speed alone; each is made once, also after interruptions.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from echat.audio.waveform import write
from echat.corpus.conversations import ConversationError
from echat.corpus.cue_audio import Clips, speak_cues
from echat.corpus.en import LANGUAGE
from echat.corpus.en.spoken_form import kokoro_text
from echat.corpus.manifests import DEV_ONE_IN, json_line, read_growing_jsonl, read_jsonl, reply_audio_key
from echat.corpus.recordings import real_clips
from echat.corpus.synthesis.kokoro import ANSWER_VOICE, RATE, Kokoro, KokoroVoice
from echat.corpus.synthesis.tts_engines import VoiceError

Role = Literal["answers", "questions"]
ROLES: tuple[Role, ...] = get_args(Role)
CLIPS_IN_PART = 200
SPEEDS = (0.8, 1.25)  # slowest and fastest question
LINES_PER_ROUND: dict[Role, int] = {"answers": 32, "questions": 8}  # clips until new texts are looked for
FOLLOW_SECONDS = 30.0  # between two looks when everything is spoken


@dataclass(frozen=True)
class SpokenLine:
    """One text to synthesise in one voice."""

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
        return "dev" if int(_digest(self.text), 16) % DEV_ONE_IN == 0 else "train"


def answer_line(text: str, source: str) -> SpokenLine:
    return SpokenLine("answers", text, ANSWER_VOICE, source=source)


def question_line(text: str, source: str, voices: tuple[str, ...], copy: int = 0) -> SpokenLine:
    """A question in a voice and at a speed that depend on its text and the number of the copy."""
    rng = random.Random(f"{text}|{copy}")
    voice = voices[(int(_digest(text), 16) + copy) % len(voices)]
    return SpokenLine("questions", text, voice, round(rng.uniform(*SPEEDS), 2), source)


def conversation_lines(folder: Path, voices: tuple[str, ...]) -> Iterator[SpokenLine]:
    """Replies and questions of the conversations of a folder; files that are not YAML are reported."""
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
        questions, replies = _texts_of(row) if isinstance(row, dict) else ([], [])
        lines += [answer_line(text, path.name) for text in replies]
        lines += [question_line(text, path.name, voices) for text in questions]
    return tuple(lines)


def _texts_of(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Questions and replies of a cue set or a dialogue."""
    turns = row.get("turns") or []
    questions = [*(row.get("say") or []), *(turn.get("user") for turn in turns)]
    replies = [turn.get("reply") for turn in [*(row.get("answers") or []), *turns]]
    return [one for one in questions if _has_words(one)], [one for one in replies if _has_words(one)]


def _has_words(text: object) -> bool:
    return isinstance(text, str) and any(character.isalpha() for character in text)


def filler_lines(path: Path | None, voices: tuple[str, ...]) -> list[SpokenLine]:
    """Lines of a JSONL of `{"role", "text", "source"}`, in its order."""
    if path is None:
        return []
    return [
        answer_line(row["text"], row["source"])
        if row["role"] == "answers"
        else question_line(row["text"], row["source"], voices)
        for row in read_jsonl(path)
    ]


def training_voices(folder: Path) -> tuple[str, ...]:
    """The training voices of users in a folder: without those of tests and the answer voice."""
    names = sorted(path.stem for path in folder.glob("[ab][fm]_*.bin"))
    return tuple(name for name in names if KokoroVoice(name).is_for_training and name != ANSWER_VOICE)


class LineSynthesizer:
    """Synthesises lines into a folder; a clip enters the manifest when its file is complete."""

    def __init__(self, kokoro: Kokoro, out: Path) -> None:
        self.kokoro, self.out = kokoro, out
        self.manifests = {role: out / role / "manifest.jsonl" for role in ROLES}
        self.done: dict[Role, set[str]] = {}
        for role, manifest in self.manifests.items():
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self.done[role] = {row["key"] for row in read_growing_jsonl(manifest, repair=True)}
        self.failed: set[str] = set()

    def next_round(self, lines: Iterable[SpokenLine]) -> list[SpokenLine]:
        """The first lines that have no clip yet, at most `LINES_PER_ROUND` of each role."""
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
        """Make the clip of one line; returns its seconds, 0 for a text that fails, which is reported."""
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
        self._add_to_manifest(line, audio, len(wave) / RATE)
        return len(wave) / RATE

    def _add_to_manifest(self, line: SpokenLine, audio: str, seconds: float) -> None:
        row: dict[str, Any] = {
            "key": line.key,
            "audio": audio,
            "text": line.text,
            "lang": LANGUAGE,
            "split": line.split,
            "duration_s": round(seconds, 3),
            "voice": f"kokoro:{line.voice}",
            "speed": line.speed,
            "emotion": "neutral",
            "age": "adult",
            "gender": KokoroVoice(line.voice).gender,
            "origin": line.source,
        }
        with self.manifests[line.role].open("a", encoding="utf-8") as out:
            out.write(json_line(row))
        self.done[line.role].add(line.key)


def speak_conversations(
    ingredients: Path,
    texts: Path,
    out: Path,
    fillers: Path | None = None,
    follow: bool = False,
    cues: bool = False,
    data_pack: Path | None = None,
) -> None:
    """Synthesise all conversations of a folder, then the filler texts; with `follow`, wait for more.

    `ingredients` is a folder with `kokoro/model.onnx` and `kokoro/voices/`. With `cues` questions of cue sets
    are delivered with the cues of their answers, too; sound events may be recordings of a data pack.
    """
    kokoro = Kokoro(ingredients / "kokoro" / "model.onnx", ingredients / "kokoro" / "voices")
    lines = filler_lines(fillers, training_voices(kokoro.voices))
    events = real_clips(data_pack, "train") if data_pack else {}
    run(LineSynthesizer(kokoro, out), texts, lines, follow, events if cues else None)


def run(
    synthesizer: LineSynthesizer,
    texts: Path,
    fillers: list[SpokenLine],
    follow: bool,
    events: Clips | None = None,
) -> None:
    """Synthesise everything, conversations before fillers; with `follow`, wait for more.

    With `events`, recordings of sound events by name, each round ends with the cues of its questions.
    """
    voices = training_voices(synthesizer.kokoro.voices)
    while True:
        lines = synthesizer.next_round(chain(conversation_lines(texts, voices), fillers))
        start = time.process_time()
        seconds = sum(synthesizer.synthesize(line) for line in lines)
        if lines:
            counts = ", ".join(f"{len(synthesizer.done[role])} {role}" for role in ROLES)
            factor = (time.process_time() - start) / max(seconds, 0.1)
            print(f"{time.strftime('%H:%M:%S')} {counts}, CPU real-time factor {factor:.2f}", flush=True)
        if events is not None:
            _speak_cues(texts, synthesizer.out, events)
        if not lines and not follow:
            return
        if not lines:
            time.sleep(FOLLOW_SECONDS)


def _speak_cues(texts: Path, out: Path, events: Clips) -> None:
    try:
        speak_cues(texts, out, events)
    except ConversationError as error:  # a file that is being written
        print(f"cues wait until it is mended: {error}", file=sys.stderr, flush=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
