"""Run samples through an engine in batches: read sound, sort by length, keep the order of the samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import AudioError, read
from echat.data.sample import Sample
from echat.dialogue.turns import Conversation, UserTurn

if TYPE_CHECKING:
    from echat.infer.engine import Engine
    from echat.infer.events import Reply, Understanding

BATCH_SIZE = 16
Item = TypeVar("Item")


@dataclass(frozen=True)
class UnderstandingResult:
    """A sample and what the model made of it."""

    sample: Sample
    output: Understanding


@dataclass(frozen=True)
class ReplyResult:
    """A sample and the model's reply to it."""

    sample: Sample
    reply: Reply


@dataclass
class SkippedSamples:
    """Samples whose sound could not be used, with the reason. Never silent: reports print the count."""

    reasons: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reasons)


def understand(
    engine: Engine,
    samples: Sequence[Sample],
    task: str = "understand",
    batch_size: int = BATCH_SIZE,
    skipped: SkippedSamples | None = None,
) -> list[UnderstandingResult]:
    """What the engine hears in each sample."""
    results: dict[int, UnderstandingResult] = {}
    for rows, sounds in _batches(samples, batch_size, skipped, f"listening ({task})"):
        outputs = engine.understand_batch(sounds, task)
        results.update(
            (row, UnderstandingResult(samples[row], output))
            for row, output in zip(rows, outputs, strict=True)
        )
    return [results[row] for row in sorted(results)]


def answer(
    engine: Engine,
    samples: Sequence[Sample],
    task: str,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    skipped: SkippedSamples | None = None,
) -> list[ReplyResult]:
    """The engine's reply to each sample, without synthesis."""
    answered: dict[int, ReplyResult] = {}
    for rows, sounds in _batches(samples, batch_size, skipped, f"answering ({task})"):
        questions = [Conversation([UserTurn(audio=sound)]) for sound in sounds]
        replies = engine.run_batch(questions, task, seed=seed)
        answered.update(
            (row, ReplyResult(samples[row], reply)) for row, reply in zip(rows, replies, strict=True)
        )
    return [answered[row] for row in sorted(answered)]


def load_question(sample: Sample) -> Tensor:
    """The sample's question as a 16 kHz waveform (samples,)."""
    if sample.audio is None:
        raise AudioError(f"record {sample.key}: expected a field audio, found none")
    waveform, _ = read(sample.audio.path, SAMPLE_RATE, allow_silence=True)
    return waveform


def evenly_spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items, evenly spaced, so that every part of a sorted manifest is met."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def _batches(
    samples: Sequence[Sample], size: int, skipped: SkippedSamples | None, label: str
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Positions and waveforms of similar length; unusable sounds go to ``skipped`` (or raise without it)."""
    order = sorted(range(len(samples)), key=lambda row: samples[row].seconds or 0.0)
    for start in with_progress(range(0, len(order), size), label):
        rows, sounds = [], []
        for row in order[start : start + size]:
            try:
                sounds.append(load_question(samples[row]))
                rows.append(row)
            except AudioError as error:
                if skipped is None:
                    raise
                skipped.reasons[samples[row].key] = str(error)
        if rows:
            yield rows, sounds


def with_progress(steps: Sequence[Item], label: str) -> Iterator[Item]:
    """The steps, under a bar on stderr; where that is no terminal, one line says that they begin."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        print(f"{label}: {len(steps)} steps", file=sys.stderr)
    yield from track(steps, label, console=console, transient=True, disable=not console.is_terminal)
