"""Input side of a session: audio events in, user turns out; turn detection starts and interrupts (barge-in)
replies."""

from __future__ import annotations

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve.protocol import client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import TurnDetection
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.protocol.wire_audio import MIN_SAMPLES, decode_base64
from echat.serve.realtime import conversation
from echat.serve.realtime.conversation import MIN_WINDOW, WINDOW, Entry
from echat.serve.realtime.input_buffer import InputAudioBuffer
from echat.serve.realtime.item_events import emit_item
from echat.serve.realtime.response_manager import ResponseManager
from echat.serve.realtime.session_context import SessionContext
from echat.serve.realtime.turn_detection import (
    EagerEndOfTurn,
    Signal,
    SpeechDismissed,
    SpeechStarted,
    SpeechSuspected,
    TurnEnded,
    TurnPhase,
    TurnResumed,
)

IDLE_SAMPLES = SAMPLE_RATE  # of silence that become a turn after `idle_timeout_ms`


class InputManager:
    """The user's audio and turns of one session."""

    def __init__(self, context: SessionContext, response_manager: ResponseManager) -> None:
        self.context, self.response_manager = context, response_manager
        self.input_buffer = InputAudioBuffer(
            context.app.vad, context.config.turns, context.config.limits.question_seconds
        )
        self._item_id = new_id("item")  # of the next turn
        self._windows_prefilled = 0  # whole windows of the present turn that are submitted for prefill
        response_manager.on_idle = self._idle
        self.configure()

    def configure(self) -> None:
        """Apply changed session settings."""
        self.input_buffer.configure(self.context.session.audio.input, self.context.session.options)
        self.response_manager.drop_speculative()

    # --- events of the client

    async def append(self, event: client.AudioAppend) -> None:
        data, before = decode_base64(event.audio, "audio"), self.input_buffer.received_ms
        self.input_buffer.replying = self.response_manager.is_playing
        async for signal in self.input_buffer.process(data):
            self._on(signal)
            self.input_buffer.replying = self.response_manager.is_playing
        self.context.metrics.audio_in.inc((self.input_buffer.received_ms - before) / 1000)
        self._prefill_audio()
        if self.input_buffer.is_full:
            most = self.context.config.limits.question_seconds
            raise ProtocolError(
                f"audio: a question has at most {most:g} s; commit it", "input_audio_buffer_full", "audio"
            )

    async def commit(self, event: client.AudioCommit) -> None:
        samples = self.input_buffer.commit()
        self.response_manager.drop_speculative()
        if len(samples) < MIN_SAMPLES:
            raise ProtocolError(
                f"input audio buffer: expected at least {MIN_SECONDS * 1000:g} ms of sound, "
                f"found {len(samples) * 1000 / SAMPLE_RATE:.0f} ms",
                "input_audio_buffer_commit_empty",
            )
        self._add(self._entry(samples))

    async def clear(self, event: client.AudioClear) -> None:
        self.input_buffer.clear()
        self.response_manager.drop_speculative()
        self._windows_prefilled = 0
        self.context.emit(server.Cleared())

    # --- signals of turn detection

    def _on(self, signal: Signal) -> None:
        match signal:
            case SpeechSuspected(start):
                if self.context.session.options.pause:
                    self.context.emit(server.SpeechSuspectedEvent(audio_start_ms=_ms(start)))
            case SpeechDismissed(start, end):
                if self.context.session.options.pause:
                    self.context.emit(
                        server.SpeechDismissedEvent(audio_start_ms=_ms(start), audio_end_ms=_ms(end))
                    )
            case SpeechStarted(start):
                begin_ms = self.input_buffer.begin_turn(start)
                self.context.emit(server.SpeechStartedEvent(audio_start_ms=begin_ms, item_id=self._item_id))
                if self._detection.interrupt_response:
                    self.response_manager.interrupt()
            case EagerEndOfTurn(end):
                self._speculate(self.input_buffer.turn_samples(end))
            case TurnResumed():
                self.response_manager.drop_speculative()
            case TurnEnded(end, eager_end, _):
                self._end(end, eager_end)

    @property
    def _detection(self) -> TurnDetection:
        return self.context.session.audio.input.turn_detection or TurnDetection()

    @property
    def _responds(self) -> bool:
        return self.context.session.type == "realtime" and self._detection.create_response

    def _speculate(self, samples: np.ndarray) -> None:
        """At an eager end of turn: start a speculative reply, and run the turn detector."""
        if self._responds:
            self.response_manager.start_speculative(self._entry(samples))
        turns = self.input_buffer.turns
        if self.context.app.turn_detector is not None and turns is not None and turns.config.adaptive:
            self.response_manager.run_in_background(self._detect_end(samples))

    async def _detect_end(self, samples: np.ndarray) -> None:
        detector, turns = self.context.app.turn_detector, self.input_buffer.turns
        assert detector is not None and turns is not None
        eager_end = turns.eager_end
        sound = samples.astype(np.float32) / 32768
        completeness = await self.context.app.async_engine.call(lambda: detector(sound))
        if eager_end is not None and turns.eager_end is eager_end:  # still the same silence
            turns.set_completeness(float(completeness))

    def _end(self, end: float, eager_end: EagerEndOfTurn | None) -> None:
        self.context.emit(server.SpeechStoppedEvent(audio_end_ms=_ms(end), item_id=self._item_id))
        speculative = self.response_manager.take_speculative()
        samples = self.input_buffer.turn_samples(eager_end.end if eager_end else end)
        self.input_buffer.end_turn(end)
        self._add(speculative.entry if speculative else self._entry(samples))
        if not self._responds:
            return
        if speculative is not None:
            self.response_manager.respond(self.response_manager.params(), speculative.stream)
        else:
            self.response_manager.respond_in_turn()

    def _idle(self) -> None:
        """Idle timeout: take the silence after an answer for a turn."""
        if self.input_buffer.turns is None or self.input_buffer.turns.phase is not TurnPhase.QUIET:
            return
        samples = self.input_buffer.turn_samples()[-IDLE_SAMPLES:]
        end_ms = self.input_buffer.received_ms
        self.context.emit(
            server.TimeoutTriggered(
                audio_start_ms=max(0, end_ms - len(samples) * 1000 // SAMPLE_RATE),
                audio_end_ms=end_ms,
                item_id=self._item_id,
            )
        )
        self.input_buffer.end_turn()
        if len(samples) < IDLE_SAMPLES:
            samples = np.concatenate([samples, np.zeros(IDLE_SAMPLES - len(samples), np.int16)])
        self._add(self._entry(samples))
        if self._responds:
            self.response_manager.respond_in_turn()

    def _entry(self, samples: np.ndarray) -> Entry:
        part = ContentPart(type="input_audio")
        item = Item(id=self._item_id, role="user", status="completed", content=[part])
        return Entry(item, samples=samples)

    def _add(self, entry: Entry) -> None:
        """Add a turn to the conversation."""
        assert entry.item.id is not None
        self._item_id, self._windows_prefilled = new_id("item"), 0
        before = self.context.items.add(entry)
        self.context.emit(server.Committed(item_id=entry.item.id, previous_item_id=before))
        emit_item(self.context, entry, before)
        self.context.record(entry)
        session = self.context.session
        if session.audio.input.transcription is not None or session.type == "transcription":
            self.response_manager.run_in_background(self._transcribe(entry))

    async def _transcribe(self, entry: Entry) -> None:
        assert entry.item.id is not None and entry.samples is not None and entry.item.content
        item_id, emit = entry.item.id, self.context.emit
        try:
            audio = conversation.to_recording(entry.samples)
            text = await self.context.app.async_engine.transcribe(audio, self.response_manager.aside_lane)
        except Exception as error:
            message = str(error) if isinstance(error, ValueError) else type(error).__name__
            detail = server.ErrorDetail(type="server_error", code="transcription_failed", message=message)
            emit(server.TranscriptionFailed(item_id=item_id, error=detail))
            return
        entry.item.content[0].transcript = text
        if text:
            emit(server.TranscriptionDelta(item_id=item_id, delta=text))
        usage = {"type": "duration", "seconds": round(len(entry.samples) / SAMPLE_RATE, 3)}
        emit(server.TranscriptionCompleted(item_id=item_id, transcript=text, usage=usage))

    def _prefill_audio(self) -> None:
        """Prefill every whole window of a long question while the user still speaks."""
        if self.context.session.type != "realtime" or not self.input_buffer.is_in_turn:
            return
        audio, begin = self.input_buffer.audio, self.input_buffer.turn_begin
        n_windows = (audio.end - begin - MIN_WINDOW) // WINDOW
        if n_windows <= self._windows_prefilled:
            return
        self._windows_prefilled = n_windows
        history = self.context.items.turns(self._entry(audio.take(begin, begin + n_windows * WINDOW)))
        self.response_manager.run_in_background(self.response_manager.prefill(history))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
