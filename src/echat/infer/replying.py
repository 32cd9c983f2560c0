"""What is asked of the engine, and the events of one reply, whoever writes its ids."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echat.command import ModelError
from echat.dialogue.tasks import DecodingDefaults, Task
from echat.dialogue.turns import Conversation
from echat.infer import events
from echat.infer.events import Defect, Event, Reply
from echat.infer.generation import Strand, Written
from echat.infer.memory import Memory
from echat.infer.sampling import derived_seed
from echat.infer.speaking import Speaker
from echat.infer.telling import Clock, Teller

if TYPE_CHECKING:
    from torch import Tensor

    from echat.infer.engine import Engine
    from echat.token2wav.voice import VoicePrompt


@dataclass(frozen=True)
class Request:
    """A conversation to answer and how; the settings of `Engine.reply`."""

    conversation: Conversation
    task: Task
    seed: int | None = None
    decoding: DecodingDefaults | None = None
    voice: "VoicePrompt | str | None" = None
    speak: bool = True
    stream: bool = False
    memory: Memory | None = None
    cancel: threading.Event | None = None
    show_thinking: bool = False


def tell(
    engine: "Engine", request: Request, strand: Strand, steps: Iterator[Written], clock: Clock
) -> Iterator[Event]:
    """The events of a reply whose ids come from `steps`; the strand is over when they end."""
    for event in _Telling(engine, request, strand, clock).tell(steps):
        yield event
        clock.skip()


def finished(
    engine: "Engine", request: Request, strand: Strand, clock: Clock, speaker: Speaker | None = None
) -> Reply:
    """The reply of a strand that is over. What no `speaker` spoke in pieces is spoken in whole here."""
    reply = engine.finish(strand.writing, request.task)
    if is_cancelled(request, strand):
        reply = replace(reply, finish_reason="cancelled")
    waveform = speaker.waveform if speaker else None
    is_due = request.speak and engine.token2wav is not None and reply.speech_ids
    if speaker is None and is_due and reply.finish_reason != "cancelled":
        waveform = engine.need_token2wav().synthesize(reply.speech_ids, request.voice, request.seed)
        clock.lap("synthesise")
    return replace(
        reply,
        waveform=waveform,
        rate=None if waveform is None else engine.need_token2wav().rate,
        memory=strand.memory,
        counts={
            "positions_prefilled": strand.n_read,
            "positions_reused": strand.prompt.reused,
            "positions_of_sound": sum(isinstance(place, tuple) for place in strand.prompt.places),
            "mel_frames_encoded": strand.prompt.mel_frames_encoded,
            "turns_left_out": strand.turns_left_out,
        },
    )


def defect_of(reply: Reply, task: Task) -> Defect | None:
    """What is missing of a reply; nothing of an understanding: there may be no words in a sound."""
    if task.understands:
        return None
    if task.writes_text and not reply.text.strip():
        return "no text"
    if task.writes_speech and not reply.speech_ids:
        return "no speech"
    return None if reply.wellformed else "unreadable thought"


def answered(
    engine: "Engine", conversation: Conversation, task: Task, seed: int | None, **settings: Any
) -> Reply:
    """`Engine.run` for somebody who wants an answer: a reply with a defect is drawn once more, with a seed
    that follows from the first. Raises ModelError where that has a defect too.
    """
    reply = engine.run(conversation, task, seed=seed, **settings)
    if reply.defect is None:
        return reply
    decoding = task.decoding_for(engine.profile).by_chance()
    again = engine.run(
        conversation,
        task,
        seed=None if seed is None else derived_seed(seed, 1),
        decoding=decoding,
        **settings,
    )
    if again.defect is None:
        return again
    raise ModelError(
        f"answer: expected a reply that can be read, found {again.defect} in two tries "
        f"(the model wrote {again.raw_text[:80]!r}); try another --seed or --think, or a clearer recording"
    )


def is_cancelled(request: Request, strand: Strand) -> bool:
    """Was the reply told to stop, by the time it was written or after it?"""
    asked = request.cancel is not None and request.cancel.is_set()
    return asked or strand.writing.finish_reason == "cancelled"


class _Telling:
    """One reply on its way out."""

    def __init__(self, engine: "Engine", request: Request, strand: Strand, clock: Clock) -> None:
        self.engine, self.request, self.strand, self.clock = engine, request, strand, clock
        plan = strand.writing.plan
        self.teller = Teller(engine, plan, request.show_thinking)
        self.boundary = plan.vocabulary.speech_boundary
        self.speaker: Speaker | None = None
        if request.stream and request.speak and engine.token2wav is not None and plan.task.writes_speech:
            self.speaker = Speaker(engine.token2wav, request.voice, request.seed)

    def tell(self, steps: Iterator[Written]) -> Iterator[Event]:
        for step in steps:
            self.clock.lap("speak" if step.is_speech else "write")
            yield from self.teller.take(step.id)
            if step.is_speech and step.id != self.boundary:
                yield from self._say([step.id])
        if not is_cancelled(self.request, self.strand):
            yield from self.teller.end()
            yield from self._say([], final=True)
        reply = finished(self.engine, self.request, self.strand, self.clock, self.speaker)
        if reply.waveform is not None and self.speaker is None:
            yield self._audio(reply.waveform)
        yield events.Done(replace(reply, seconds=self.clock.total()))

    def _say(self, speech_ids: list[int], final: bool = False) -> Iterator[Event]:
        """The next piece of sound, if one is ready."""
        if self.speaker is None:
            return
        piece = self.speaker.push(speech_ids, final)
        self.clock.lap("synthesise")
        if piece is not None:
            yield self._audio(piece)

    def _audio(self, waveform: "Tensor") -> events.Audio:
        self.clock.mark("first_audio")
        return events.Audio(waveform, self.engine.need_token2wav().rate)
