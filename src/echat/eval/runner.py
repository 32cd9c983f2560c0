"""Batched inference for benchmarks: items in, the model's responses out, in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import AudioError, read
from echat.data.sample import Sample
from echat.dialogue.tasks import get_task
from echat.dialogue.turns import Conversation, UserTurn
from echat.progress import with_progress

if TYPE_CHECKING:
    from echat.infer.engine import Engine
    from echat.infer.events import Reply, Understanding

BATCH_SIZE = 16
Element = TypeVar("Element")


@dataclass(frozen=True)
class Request:
    """A task that a model performs on an item."""

    task: str
    aloud: bool = False
    """Synthesise the reply, too: one item at a time, as in a conversation."""


@dataclass(frozen=True)
class EvalItem:
    """One question of a benchmark: the record with sound and truth, and what the model is asked to do."""

    sample: Sample
    requests: tuple[Request, ...]
    group: str | None = None
    """The set or subset that it belongs to."""
    reference: Any = None
    """What else the score needs, in the benchmark's own form."""


@dataclass(frozen=True)
class ModelResponse:
    """What the model made of a request."""

    item: EvalItem
    request: Request
    output: Any
    """An `Understanding` for tasks that understand, else a `Reply`."""
    question_seconds: float


@dataclass
class ModelResponses:
    """All responses of a model to a benchmark, in the order of its items and their requests."""

    responses: list[ModelResponse] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Key of an item whose sound could not be used -> the reason. Never silent: reports print the count."""
    has_voice: bool = True
    """False: the model has no token2wav, so that nothing was asked aloud."""


def respond(
    engine: Engine, items: Sequence[EvalItem], seed: int = 0, skip: bool = True, batch_size: int = BATCH_SIZE
) -> ModelResponses:
    """Perform every request of every item, request by request in batches of similar length.

    An item whose sound cannot be used is skipped, or raises an AudioError with `skip=False`.
    """
    found: dict[tuple[int, Request], ModelResponse] = {}
    result = ModelResponses(has_voice=engine.token2wav is not None)
    for request in dict.fromkeys(request for item in items for request in item.requests):
        if request.aloud and not result.has_voice:
            continue
        rows = [row for row, item in enumerate(items) if request in item.requests]
        if not request.aloud:
            rows.sort(key=lambda row: items[row].sample.seconds or 0.0)
        perform, label = _performer(engine, request, seed)
        size = 1 if request.aloud else batch_size
        for part in with_progress([rows[n : n + size] for n in range(0, len(rows), size)], label):
            questions = dict(_questions(items, part, result.skipped if skip else None))
            outputs = perform(list(questions.values())) if questions else []
            for (row, question), output in zip(questions.items(), outputs, strict=True):
                found[row, request] = ModelResponse(items[row], request, output, len(question) / SAMPLE_RATE)
    result.responses = [
        found[row, request]
        for row, item in enumerate(items)
        for request in item.requests
        if (row, request) in found
    ]
    return result


def _performer(
    engine: Engine, request: Request, seed: int
) -> tuple[Callable[[list[Tensor]], Sequence[Understanding | Reply]], str]:
    """(waveforms -> outputs, label of the progress bar)."""
    if get_task(request.task).understands:
        return lambda sounds: engine.understand_batch(sounds, request.task), f"understanding ({request.task})"
    if request.aloud:
        return lambda sounds: [engine.run(_ask(sound), request.task, seed=seed) for sound in sounds], (
            "answering aloud"
        )
    return (
        lambda sounds: engine.run_batch([_ask(sound) for sound in sounds], request.task, seed=seed),
        f"answering ({request.task})",
    )


def _ask(sound: Tensor) -> Conversation:
    return Conversation([UserTurn(audio=sound)])


def _questions(
    items: Sequence[EvalItem], rows: Sequence[int], skipped: dict[str, str] | None
) -> Iterator[tuple[int, Tensor]]:
    """(row, 16 kHz waveform (samples,)) of the items whose sound can be used."""
    for row in rows:
        sample = items[row].sample
        try:
            if sample.audio is None:
                raise AudioError(f"record {sample.key}: expected a field audio, found none")
            yield row, read(sample.audio.path, SAMPLE_RATE, allow_silence=True)[0]
        except AudioError as error:
            if skipped is None:
                raise
            skipped[sample.key] = str(error)


def evenly_spaced(elements: Sequence[Element], limit: int | None) -> list[Element]:
    """At most ``limit`` elements, evenly spaced, so that every part of a sorted manifest is met."""
    if limit is None or limit >= len(elements):
        return list(elements)
    return [elements[i * len(elements) // limit] for i in range(limit)]
