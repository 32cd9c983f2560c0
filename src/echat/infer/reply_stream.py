"""The event stream of one reply (step 5 of `Engine.reply`): ids in, events out, and the finished `Reply`.

A streaming detokenizer turns text ids into characters, a streaming synthesizer turns speech ids into audio,
and each stage is timed. All state is local to one reply, so the ids may come from another thread.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echat.audio.speech_tokens import SPEECH_TOKEN_RATE
from echat.dialogue import thinking
from echat.dialogue.tasks import DecodingDefaults, Task
from echat.dialogue.turns import Conversation
from echat.infer import events
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.events import Defect, Event, Reply
from echat.infer.generation import GeneratedId, SequenceState
from echat.infer.prompt_cache import PromptCache
from echat.model.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt

SPEECH_CHUNK = SPEECH_TOKEN_RATE  # codec ids per event: one second
REPLACEMENT_CHARACTER = "\ufffd"  # decoded where the last bytes of a character are still to come


@dataclass(frozen=True)
class ReplyRequest:
    """A request for one reply: a conversation to answer and the settings of `Engine.reply`."""

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


class StageTimer:
    """Seconds spent in each stage of a reply (latency breakdown)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last call for this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, moment: str) -> None:
        """Record when something happens for the first time: seconds since the start."""
        self.seconds.setdefault(moment, time.perf_counter() - self._start)

    def skip(self) -> None:
        """Count the time since the last call for no stage: the caller spent it."""
        self._last = time.perf_counter()

    def total(self) -> dict[str, float]:
        """All stages and the time since the start."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


def emit(
    tokenizer: TextTokenizer,
    token2wav: "Token2Wav | None",
    request: ReplyRequest,
    sequence: SequenceState,
    steps: Iterator[GeneratedId],
    timer: StageTimer,
) -> Iterator[Event]:
    """The events of a reply whose ids come from `steps`; the sequence is over when they end."""
    rules = sequence.state.rules
    detokenizer = Detokenizer(tokenizer, rules, request.show_thinking)
    synthesizer = None
    if request.stream and request.speak and token2wav is not None and rules.task.writes_speech:
        synthesizer = StreamingSynthesizer(token2wav, request.voice, request.seed, timer)

    def produce() -> Iterator[Event]:
        for step in steps:
            timer.lap("speak" if step.is_speech else "write")
            yield from detokenizer.push(step.id)
            if synthesizer and step.is_speech and step.id != rules.vocabulary.speech_boundary:
                yield from synthesizer.push([step.id])
        if not is_cancelled(request, sequence):
            yield from detokenizer.end()
            if synthesizer:
                yield from synthesizer.push([], final=True)
        reply = build_reply(tokenizer, token2wav, request, sequence, timer, synthesizer)
        if reply.waveform is not None and reply.rate is not None and synthesizer is None:
            timer.mark("first_audio")
            yield events.Audio(reply.waveform, reply.rate)
        yield events.Done(replace(reply, seconds=timer.total()))

    for event in produce():
        yield event
        timer.skip()


# --- Text ids -> text, thought and speech ids


class Detokenizer:
    """A streaming detokenizer: ids of a reply in, events of text, thought and speech ids out.

    It has a `GenerationState` of its own, because the thread that generates goes on meanwhile.
    """

    def __init__(self, tokenizer: TextTokenizer, rules: DecodingRules, show_thinking: bool = False) -> None:
        self.tokenizer, self.task, self.show_thinking = tokenizer, rules.task, show_thinking
        self.state = GenerationState(rules)
        self.thought_emitted = not rules.task.thinks
        self.text_emitted = not rules.task.writes_text
        self.n_speech_emitted = 0
        self._text = ""  # the text so far, up to its last whole character
        self._n_decoded = 0  # ids in it
        self._emitted = ""  # of the reply
        self._emitted_thought = ""  # of the thought

    def push(self, id_: int) -> Iterator[Event]:
        """Events that the next id makes possible."""
        self.state.push(id_)
        yield from self._emit(self.state.text_ended, len(self.state.speech_ids) % SPEECH_CHUNK == 0)

    def end(self) -> Iterator[Event]:
        """Events that remain after the last id."""
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
            parsed = thinking.parse_reply(self.tokenizer.decode(self.state.visible_text_ids))
            if parsed.thought is not None:
                self.thought_emitted = True
                yield events.Thought(parsed.thought, parsed.wellformed)
        reply = parse_output(self.tokenizer, self.state) if ended else None
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
        new = self.state.visible_text_ids[self._n_decoded :]
        text = self.tokenizer.decode(new)
        if not text or text.endswith(REPLACEMENT_CHARACTER):
            return False
        self._text += text
        self._n_decoded += len(new)
        return True

    def _reply_so_far(self) -> str:
        """The part of the text that is certainly reply, as `Text` will have it; "" while that is open."""
        if self.task.understands:
            return self._text.strip()
        begun = self._text.lstrip()
        if thinking.THINK_END not in begun and (self.task.thinks or begun.startswith("<think")):
            return ""
        reply = thinking.parse_reply(begun).reply
        return "" if reply.startswith("<") and ">" not in reply else reply


# --- Speech ids -> audio, while more of them are generated


class StreamingSynthesizer:
    """Streaming synthesis of one reply: speech ids in, audio out as soon as there are enough of them."""

    def __init__(
        self, token2wav: "Token2Wav", voice: "VoicePrompt | str | None", seed: int | None, timer: StageTimer
    ) -> None:
        from echat.token2wav import streaming

        self._token2wav, self._push, self._timer = token2wav, streaming.push, timer
        self._stream = streaming.begin(token2wav, token2wav.voice(voice), seed)
        self._pieces: list[Tensor] = []
        self._has_ids = False

    def push(self, speech_ids: Sequence[int], final: bool = False) -> Iterator[events.Audio]:
        """The next piece of audio, if one is ready; `final` gives the rest."""
        piece = torch.empty(0)
        if speech_ids or (final and self._has_ids):
            self._has_ids = True
            piece, self._stream = self._push(self._token2wav, self._stream, speech_ids, final)
        self._timer.lap("synthesise")
        if len(piece):
            self._pieces.append(piece)
            self._timer.mark("first_audio")
            yield events.Audio(piece, self._token2wav.rate)

    @property
    def waveform(self) -> Tensor | None:
        """All audio so far (samples,); None without any."""
        return torch.cat(self._pieces) if self._pieces else None


# --- The finished reply


def parse_output(tokenizer: TextTokenizer, state: GenerationState) -> Reply:
    """Parse generated ids into thought, emotion, text and speech."""
    task, raw_text = state.rules.task, tokenizer.decode(state.visible_text_ids)
    parsed = thinking.parse_reply(raw_text) if not task.understands else None
    reply = Reply(
        text=parsed.reply if parsed else raw_text.strip(),
        raw_text=raw_text,
        thought=parsed.thought if parsed else None,
        reply_emotion=parsed.reply_emotion if parsed else None,
        wellformed=parsed is None
        or (parsed.wellformed and (parsed.thought is not None) == bool(task.thinks)),
        text_ids=tuple(state.text_ids),
        speech_ids=tuple(state.codec_ids),
        raw_speech_ids=tuple(state.speech_ids),
        finish_reason=state.finish_reason or "end",
    )
    return replace(reply, defect=find_defect(reply, task))


def find_defect(reply: Reply, task: Task) -> Defect | None:
    """What a reply lacks; an understanding lacks nothing, since a sound may hold no words."""
    if task.understands:
        return None
    if task.writes_text and not reply.text.strip():
        return "no text"
    if task.writes_speech and not reply.speech_ids:
        return "no speech"
    return None if reply.wellformed else "unreadable thought"


def build_reply(
    tokenizer: TextTokenizer,
    token2wav: "Token2Wav | None",
    request: ReplyRequest,
    sequence: SequenceState,
    timer: StageTimer,
    synthesizer: StreamingSynthesizer | None = None,
) -> Reply:
    """The reply of a sequence that is over; without a `synthesizer` all of its speech is synthesized here."""
    reply = parse_output(tokenizer, sequence.state)
    if is_cancelled(request, sequence):
        reply = replace(reply, finish_reason="cancelled")
    waveform = synthesizer.waveform if synthesizer else None
    is_due = synthesizer is None and request.speak and reply.finish_reason != "cancelled"
    if token2wav is not None and is_due and reply.speech_ids:
        waveform = token2wav.synthesize(reply.speech_ids, request.voice, request.seed)
        timer.lap("synthesise")
    return replace(
        reply,
        waveform=waveform,
        rate=token2wav.rate if token2wav is not None and waveform is not None else None,
        prompt_cache=sequence.prompt_cache,
        counts={
            "prefilled_tokens": sequence.n_prefilled,
            "cached_tokens": sequence.prompt.n_cached,
            "audio_tokens": sum(isinstance(key, tuple) for key in sequence.prompt.position_keys),
            "mel_frames_encoded": sequence.prompt.mel_frames_encoded,
            "turns_left_out": sequence.turns_left_out,
        },
    )


def is_cancelled(request: ReplyRequest, sequence: SequenceState) -> bool:
    """Was the reply cancelled, while its ids were generated or after it?"""
    is_set = request.cancel is not None and request.cancel.is_set()
    return is_set or sequence.state.finish_reason == "cancelled"
