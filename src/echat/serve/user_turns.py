"""The user's turns of a session: sound comes in, turns come out, replies are begun and interrupted."""

from __future__ import annotations

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve import items as keeping
from echat.serve.answering import Answering
from echat.serve.editing import MIN_SAMPLES, decoded, tell_item
from echat.serve.items import Entry
from echat.serve.listening import Listener
from echat.serve.protocol import client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import TurnDetection
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.sound import MIN_WINDOW, WINDOW
from echat.serve.state import Talk
from echat.serve.turn_taking import (
    GuessDropped,
    Phase,
    Signal,
    SpeechDismissed,
    SpeechStarted,
    SpeechSuspected,
    TurnEnded,
    TurnGuessed,
)

IDLE_SAMPLES = SAMPLE_RATE  # of silence that is answered when nobody speaks


class UserTurns:
    """Local to one session."""

    def __init__(self, talk: Talk, answering: Answering) -> None:
        self.talk, self.answering = talk, answering
        self.listener = Listener(talk.house.vad, talk.config.turns, talk.config.limits.question_seconds)
        self.listener.configure(talk.session.audio.input, talk.session.options)
        self._item_id = new_id("item")  # of the turn to come
        self._windows_ahead = 0  # whole windows of the present turn that were handed over to be read
        answering.on_idle = self._idle

    def configure(self) -> None:
        """Take over a changed session."""
        self.listener.configure(self.talk.session.audio.input, self.talk.session.options)
        self.answering.drop_guess()

    # --- events of the client

    async def append(self, event: client.AudioAppend) -> None:
        data, before = decoded(event.audio, "audio"), self.listener.received_ms
        self.listener.replying = self.answering.is_sounding
        async for signal in self.listener.hear(data):
            self._on(signal)
            self.listener.replying = self.answering.is_sounding
        self.talk.metrics.audio_in.inc((self.listener.received_ms - before) / 1000)
        self._listen_ahead()
        if self.listener.is_full:
            most = self.talk.config.limits.question_seconds
            raise ProtocolError(
                f"audio: a question has at most {most:g} s; commit it", "input_audio_buffer_full", "audio"
            )

    async def commit(self, event: client.AudioCommit) -> None:
        samples = self.listener.commit()
        self.answering.drop_guess()
        if len(samples) < MIN_SAMPLES:
            raise ProtocolError(
                f"input audio buffer: expected at least {MIN_SECONDS * 1000:g} ms of sound, "
                f"found {len(samples) * 1000 / SAMPLE_RATE:.0f} ms",
                "input_audio_buffer_commit_empty",
            )
        self._add(self._entry(samples))

    async def clear(self, event: client.AudioClear) -> None:
        self.listener.clear()
        self.answering.drop_guess()
        self._windows_ahead = 0
        self.talk.emit(server.Cleared())

    # --- signals of turn-taking

    def _on(self, signal: Signal) -> None:
        match signal:
            case SpeechSuspected(start):
                if self.talk.session.options.pause:
                    self.talk.emit(server.SpeechSuspectedEvent(audio_start_ms=_ms(start)))
            case SpeechDismissed(start, end):
                if self.talk.session.options.pause:
                    self.talk.emit(
                        server.SpeechDismissedEvent(audio_start_ms=_ms(start), audio_end_ms=_ms(end))
                    )
            case SpeechStarted(start):
                begin_ms = self.listener.begin_turn(start)
                self.talk.emit(server.SpeechStartedEvent(audio_start_ms=begin_ms, item_id=self._item_id))
                if self._detection.interrupt_response:
                    self.answering.interrupt()
            case TurnGuessed(end):
                self._guess(self.listener.so_far(end))
            case GuessDropped():
                self.answering.drop_guess()
            case TurnEnded(end, guessed, _):
                self._end(end, guessed)

    @property
    def _detection(self) -> TurnDetection:
        return self.talk.session.audio.input.turn_detection or TurnDetection()

    @property
    def _responds(self) -> bool:
        return self.talk.session.type == "realtime" and self._detection.create_response

    def _guess(self, samples: np.ndarray) -> None:
        """Perhaps the turn is over: begin a reply on trial, and ask the detector."""
        if self._responds:
            self.answering.begin_guess(self._entry(samples))
        detector = self.talk.house.turn_detector
        if detector is not None and self.listener.turns is not None and self.listener.turns.config.adaptive:
            self.answering.in_background(self._judge(samples))

    async def _judge(self, samples: np.ndarray) -> None:
        detector, turn_taking = self.talk.house.turn_detector, self.listener.turns
        assert detector is not None and turn_taking is not None
        guess = turn_taking.guess
        sound = samples.astype(np.float32) / 32768
        opinion = await self.talk.house.desk.call(lambda: detector(sound))
        if guess is not None and turn_taking.guess is guess:  # still the same silence
            turn_taking.judge(float(opinion))

    def _end(self, end: float, guessed: TurnGuessed | None) -> None:
        self.talk.emit(server.SpeechStoppedEvent(audio_end_ms=_ms(end), item_id=self._item_id))
        guess = self.answering.take_guess()
        entry = guess.entry if guess else self._entry(self.listener.so_far(guessed.end if guessed else end))
        self.listener.end_turn(end)
        self._add(entry)
        if not self._responds:
            return
        if guess is not None:
            self.answering.respond(self.answering.plan(), guess.stream)
        else:
            self.answering.respond_in_turn()

    def _idle(self) -> None:
        """Nobody spoke for a while: answer the silence."""
        if self.listener.turns is None or self.listener.turns.phase is not Phase.quiet:
            return
        samples = self.listener.so_far()[-IDLE_SAMPLES:]
        end_ms = self.listener.received_ms
        self.talk.emit(
            server.TimeoutTriggered(
                audio_start_ms=max(0, end_ms - len(samples) * 1000 // SAMPLE_RATE),
                audio_end_ms=end_ms,
                item_id=self._item_id,
            )
        )
        self.listener.end_turn()
        if len(samples) < IDLE_SAMPLES:
            samples = np.concatenate([samples, np.zeros(IDLE_SAMPLES - len(samples), np.int16)])
        self._add(self._entry(samples))
        if self._responds:
            self.answering.respond_in_turn()

    def _entry(self, samples: np.ndarray) -> Entry:
        part = ContentPart(type="input_audio")
        item = Item(id=self._item_id, role="user", status="completed", content=[part])
        return Entry(item, sound=samples)

    def _add(self, entry: Entry) -> None:
        """The turn is part of the conversation."""
        assert entry.item.id is not None
        self._item_id, self._windows_ahead = new_id("item"), 0
        before = self.talk.items.add(entry)
        self.talk.emit(server.Committed(item_id=entry.item.id, previous_item_id=before))
        tell_item(self.talk, entry, before)
        self.talk.record(entry)
        session = self.talk.session
        if session.audio.input.transcription is not None or session.type == "transcription":
            self.answering.in_background(self._transcribe(entry))

    async def _transcribe(self, entry: Entry) -> None:
        assert entry.item.id is not None and entry.sound is not None and entry.item.content
        item_id, emit = entry.item.id, self.talk.emit
        try:
            sound = keeping.recording(entry.sound)
            words = await self.talk.house.desk.transcribe(sound, self.answering.aside_lane)
        except Exception as error:
            message = str(error) if isinstance(error, ValueError) else type(error).__name__
            detail = server.ErrorDetail(type="server_error", code="transcription_failed", message=message)
            emit(server.TranscriptionFailed(item_id=item_id, error=detail))
            return
        entry.item.content[0].transcript = words
        if words:
            emit(server.TranscriptionDelta(item_id=item_id, delta=words))
        seconds = round(len(entry.sound) / SAMPLE_RATE, 3)
        emit(
            server.TranscriptionCompleted(
                item_id=item_id, transcript=words, usage={"type": "duration", "seconds": seconds}
            )
        )

    def _listen_ahead(self) -> None:
        """Of a long question, hear and read every whole window while it is still being asked."""
        if self.talk.session.type != "realtime" or not self.listener.is_in_turn:
            return
        n_windows = (self.listener.sound.end - self.listener.turn_begin - MIN_WINDOW) // WINDOW
        if n_windows <= self._windows_ahead:
            return
        self._windows_ahead = n_windows
        heard = self.listener.sound.take(
            self.listener.turn_begin, self.listener.turn_begin + n_windows * WINDOW
        )
        asked = self.talk.items.turns(self._entry(heard))
        self.answering.in_background(self.answering.read_ahead(asked))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
