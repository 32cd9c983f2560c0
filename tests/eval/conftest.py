"""A small synthetic corpus on disk, and an engine that answers from it without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from echat.audio.waveform import write
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import Labels
from echat.dialogue.thinking import LabelThought, LanguageThought, format_reply, parse_reply
from echat.dialogue.turns import Conversation
from echat.infer.events import Reply, Understanding

ROWS = [
    {"text": "i lost my keys", "emotion": "sad", "condition": "espeak", "reply": "oh no, that is hard"},
    {"text": "i lost my keys", "emotion": "angry", "condition": "espeak", "reply": "i see why you are angry"},
    {"text": "it is my birthday", "emotion": "happy", "condition": "natural", "reply": "happy birthday"},
    {"text": "it is my birthday", "emotion": "sad", "condition": "natural", "reply": "why are you sad today"},
    {"text": "the bus is late", "emotion": "neutral", "condition": "noise", "reply": "it will come soon"},
    {"text": "the bus is late", "emotion": "fear", "condition": "noise", "reply": "do not be afraid of it"},
]


class EchoEngine:
    """Finds each question by its length in samples; its output is the truth, unless ``wrong`` has the key."""

    token2wav: Any = None

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.by_length = {1600 * (n + 2): sample for n, sample in enumerate(samples)}
        self.wrong: dict[str, str] = {}
        self.batch_sizes: list[int] = []

    def understand_batch(self, audios: Sequence[Any], task: str) -> list[Understanding]:
        self.batch_sizes.append(len(audios))
        return [self._understand(self.by_length[len(audio)]) for audio in audios]

    def run_batch(self, conversations: Sequence[Conversation], task: str, **_: Any) -> list[Reply]:
        return [self.run(conversation, task) for conversation in conversations]

    def run(self, conversation: Conversation, task: str, **_: Any) -> Reply:
        sample = self.by_length[len(conversation.question.audio)]
        said = self.wrong.get(sample.key, sample.reply or "")
        if task.endswith("label"):
            raw = format_reply(LabelThought.from_labels(sample.text or "", sample.labels), said)
        else:
            raw = format_reply(LanguageThought("somebody speaks"), said)
        if said == "broken":
            raw = "<think>" + said
        parsed = parse_reply(raw)
        waveform = torch.full((8000,), 0.1) if self.token2wav else None
        return Reply(
            parsed.reply,
            raw,
            parsed.thought,
            wellformed=parsed.wellformed,
            waveform=waveform,
            rate=16000,
            seconds={"total": 0.5},
        )

    def _understand(self, sample: Sample) -> Understanding:
        if sample.key in self.wrong:
            return Understanding("", Labels(), "")
        return Understanding(sample.text or "", sample.labels, "")


def write_corpus(folder: Path) -> Path:
    """The rows with their sounds; sounds differ in length."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n, row in enumerate(ROWS):
        write(folder / f"{n}.wav", 0.1 * torch.sin(torch.arange(1600 * (n + 2)) * 0.3), 16000)
        known = {"key": f"q{n}", "audio": f"{n}.wav", "age": "adult", "gender": "female", "sound_event": None}
        situation = f"s{n // 2}"
        more = {"situation": situation, "accepted": [row["reply"]], "lang": "en", "duration_s": 9.0 - n}
        lines.append(json.dumps(known | more | row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "made")


@pytest.fixture
def corpus_writer() -> Callable[[Path], Path]:
    return write_corpus


@pytest.fixture
def engine(manifest: Path) -> Any:
    return EchoEngine(read_manifest(manifest))
