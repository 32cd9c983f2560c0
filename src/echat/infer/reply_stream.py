"""From generated ids to the events of a reply: text is decoded, speech synthesised, each stage timed. All of
it is local to one reply."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echat.dialogue import thinking
from echat.dialogue.tasks import DecodingDefaults, Task
from echat.dialogue.turns import Conversation
from echat.errors import ModelError
from echat.infer import events
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.events import Defect, Event, Reply
from echat.infer.generation import GeneratedId, SequenceState
from echat.infer.prompt_cache import PromptCache
from echat.infer.sampling import derived_seed

if TYPE_CHECKING:
    from torch import Tensor

    from echat.infer.engine import Engine
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt


SPEECH_CHUNK = 25  # codec ids per event: one second
REPLACEMENT_CHARACTER = (
    "\ufffd"  # what a decoder writes for a character of which the last bytes are still to come
)


class StageTimer:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call belongs to this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, moment: str) -> None:
        """Something happens for the first time: seconds since the start."""
        self.seconds.setdefault(moment, time.perf_counter() - self._start)

    def skip(self) -> None:
        """The time since the last call was somebody else's."""
        self._last = time.perf_counter()

    def total(self) -> dict[str, float]:
        """All stages and the time since the start."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


class Detokenizer:
    """Turns the ids of a reply into events. It keeps its own record of the reply, so that the ids may come
    from another thread."""

    def __init__(self, engine: "Engine", rules: DecodingRules, show_thinking: bool = False) -> None:
        self.engine, self.task, self.show_thinking = engine, rules.task, show_thinking
        self.state = GenerationState(rules)
        self.thought_emitted = not rules.task.thinks
        self.text_emitted = not rules.task.writes_text
        self.n_speech_emitted = 0
        self._text = ""  # the text so far, up to its last whole character
        self._n_decoded = 0  # ids in it
        self._emitted = ""  # of the reply, as told
        self._emitted_thought = ""  # of the thought, as told

    def push(self, id_: int) -> Iterator[Event]:
        """What becomes known with the next id."""
        self.state.push(id_)
        yield from self._emit(self.state.text_ended, len(self.state.speech_ids) % SPEECH_CHUNK == 0)

    def end(self) -> Iterator[Event]:
        """What is left to tell when nothing more is written."""
        yield from self._emit(text_ended=True, speech_is_due=True)

    def _emit(self, text_ended: bool, speech_is_due: bool) -> Iterator[Event]:
        if not self.text_emitted:
            yield from self._emit_text(text_ended)
        if self.task.writes_speech and speech_is_due:
            ids = self.state.codec_ids[self.n_speech_emitted :]
            self.n_speech_emitted += len(ids)
            if ids:
                yield events.SpeechIds(tuple(ids))

    def _emit_text(self, ended: bool) -> Iterator[Event]:
        has_grown = self._decode()
        if not (ended or has_grown):
            return
        if self.show_thinking and not self.thought_emitted:
            yield from self._emit_thought()
        if not self.thought_emitted and (ended or thinking.THINK_END in self._text):
            parsed = thinking.parse_reply(self.engine.decode(self.state, self.task))
            if parsed.thought is not None:
                self.thought_emitted = True
                yield events.Thought(parsed.thought, parsed.wellformed)
        reply = self.engine.parse_output(self.state, self.task) if ended else None
        so_far = reply.text if reply else self._reply_so_far()
        if so_far.startswith(self._emitted) and len(so_far) > len(self._emitted):
            piece, self._emitted = so_far[len(self._emitted) :], so_far
            yield events.TextPiece(piece)
        if reply:
            self.text_emitted = True
            yield events.Text(reply.text, reply.reply_emotion)

    def _emit_thought(self) -> Iterator[Event]:
        so_far = thinking.unfinished_thought(self._text)
        if len(so_far) > len(self._emitted_thought) and so_far.startswith(self._emitted_thought):
            piece, self._emitted_thought = so_far[len(self._emitted_thought) :], so_far
            yield events.ThoughtPiece(piece)

    def _decode(self) -> bool:
        """Bring `_text` up to date; has it grown? Bytes of an unfinished character wait for the rest."""
        new = self.engine.visible_text_ids(self.state, self.task)[self._n_decoded :]
        text = self.engine.tokenizer.decode(new)
        if not text or text.endswith(REPLACEMENT_CHARACTER):
            return False
        self._text += text
        self._n_decoded += len(new)
        return True

    def _reply_so_far(self) -> str:
        """The part of the text that is certainly reply, as it will stand in `Text`; "" while one cannot
        tell."""
        if self.task.understands:
            return self._text.strip()
        begun = self._text.lstrip()
        if thinking.THINK_END not in begun and (self.task.thinks or begun.startswith("<think")):
            return ""
        reply = thinking.parse_reply(begun).reply
        return "" if reply.startswith("<") and ">" not in reply else reply


# --- A reply spoken piece by piece while its speech ids are still being written.


class StreamingSynthesizer:
    """Speech ids in, sound out as soon as there are enough of them. Local to one reply."""

    def __init__(self, token2wav: "Token2Wav", voice: "VoicePrompt | str | None", seed: int | None) -> None:
        from echat.token2wav import streaming

        self._streaming: Any = streaming
        self._token2wav = token2wav
        self._stream = self._streaming.begin(token2wav, token2wav.voice(voice), seed)
        self._pieces: list[Tensor] = []
        self._has_ids = False

    def push(self, speech_ids: Sequence[int], final: bool = False) -> Tensor | None:
        """The next piece (samples,), or None while too few ids have gathered; `final` gives the rest."""
        if not speech_ids and not (final and self._has_ids):
            return None
        self._has_ids = True
        piece, self._stream = self._streaming.push(self._token2wav, self._stream, speech_ids, final)
        if not len(piece):
            return None
        self._pieces.append(piece)
        return piece

    @property
    def waveform(self) -> Tensor | None:
        """Everything said so far (samples,); None where nothing was."""
        return torch.cat(self._pieces) if self._pieces else None


# --- What is asked of the engine, and the events of one reply, whoever writes its ids.


@dataclass(frozen=True)
class ReplyRequest:
    """A conversation to answer and how; the settings of `Engine.reply`."""

    conversation: Conversation
    task: Task
    seed: int | None = None
    decoding: DecodingDefaults | None = None
    voice: "VoicePrompt | str | None" = None
    speak: bool = True
    stream: bool = False
    prompt_cache: PromptCache | None = None
    cancel: threading.Event | None = None
    show_thinking: bool = False


def emit(
    engine: "Engine",
    request: ReplyRequest,
    sequence: SequenceState,
    steps: Iterator[GeneratedId],
    timer: StageTimer,
) -> Iterator[Event]:
    """The events of a reply whose ids come from `steps`; the sequence is over when they end."""
    for event in _EventEmitter(engine, request, sequence, timer).emit(steps):
        yield event
        timer.skip()


def build_reply(
    engine: "Engine",
    request: ReplyRequest,
    sequence: SequenceState,
    timer: StageTimer,
    synthesizer: StreamingSynthesizer | None = None,
) -> Reply:
    """The reply of a sequence that is over. What no `synthesizer` spoke in pieces is spoken in whole here."""
    reply = engine.parse_output(sequence.state, request.task)
    if is_cancelled(request, sequence):
        reply = replace(reply, finish_reason="cancelled")
    waveform = synthesizer.waveform if synthesizer else None
    is_due = request.speak and engine.token2wav is not None and reply.speech_ids
    if synthesizer is None and is_due and reply.finish_reason != "cancelled":
        waveform = engine.need_token2wav().synthesize(reply.speech_ids, request.voice, request.seed)
        timer.lap("synthesise")
    return replace(
        reply,
        waveform=waveform,
        rate=None if waveform is None else engine.need_token2wav().rate,
        prompt_cache=sequence.prompt_cache,
        counts={
            "prefilled_tokens": sequence.n_prefilled,
            "cached_tokens": sequence.prompt.n_cached,
            "audio_tokens": sum(isinstance(key, tuple) for key in sequence.prompt.position_keys),
            "mel_frames_encoded": sequence.prompt.mel_frames_encoded,
            "turns_left_out": sequence.turns_left_out,
        },
    )


def find_defect(reply: Reply, task: Task) -> Defect | None:
    """What is missing of a reply; nothing of an understanding: there may be no words in a sound."""
    if task.understands:
        return None
    if task.writes_text and not reply.text.strip():
        return "no text"
    if task.writes_speech and not reply.speech_ids:
        return "no speech"
    return None if reply.wellformed else "unreadable thought"


def reply_with_retry(
    engine: "Engine", conversation: Conversation, task: Task, seed: int | None, **settings: Any
) -> Reply:
    """`Engine.run` for somebody who wants an answer: a reply with a defect is drawn once more, with a seed
    that follows from the first. Raises ModelError where that has a defect too.
    """
    reply = engine.run(conversation, task, seed=seed, **settings)
    if reply.defect is None:
        return reply
    decoding = task.decoding_for(engine.profile).with_sampling()
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


def is_cancelled(request: ReplyRequest, sequence: SequenceState) -> bool:
    """Was the reply told to stop, by the time it was written or after it?"""
    asked = request.cancel is not None and request.cancel.is_set()
    return asked or sequence.state.finish_reason == "cancelled"


class _EventEmitter:
    """One reply on its way out."""

    def __init__(
        self, engine: "Engine", request: ReplyRequest, sequence: SequenceState, timer: StageTimer
    ) -> None:
        self.engine, self.request, self.sequence, self.timer = engine, request, sequence, timer
        rules = sequence.state.rules
        self.detokenizer = Detokenizer(engine, rules, request.show_thinking)
        self.boundary = rules.vocabulary.speech_boundary
        self.synthesizer: StreamingSynthesizer | None = None
        if request.stream and request.speak and engine.token2wav is not None and rules.task.writes_speech:
            self.synthesizer = StreamingSynthesizer(engine.token2wav, request.voice, request.seed)

    def emit(self, steps: Iterator[GeneratedId]) -> Iterator[Event]:
        for step in steps:
            self.timer.lap("speak" if step.is_speech else "write")
            yield from self.detokenizer.push(step.id)
            if step.is_speech and step.id != self.boundary:
                yield from self._synthesize([step.id])
        if not is_cancelled(self.request, self.sequence):
            yield from self.detokenizer.end()
            yield from self._synthesize([], final=True)
        reply = build_reply(self.engine, self.request, self.sequence, self.timer, self.synthesizer)
        if reply.waveform is not None and self.synthesizer is None:
            yield self._audio(reply.waveform)
        yield events.Done(replace(reply, seconds=self.timer.total()))

    def _synthesize(self, speech_ids: list[int], final: bool = False) -> Iterator[Event]:
        """The next piece of sound, if one is ready."""
        if self.synthesizer is None:
            return
        piece = self.synthesizer.push(speech_ids, final)
        self.timer.lap("synthesise")
        if piece is not None:
            yield self._audio(piece)

    def _audio(self, waveform: "Tensor") -> events.Audio:
        self.timer.mark("first_audio")
        return events.Audio(waveform, self.engine.need_token2wav().rate)
