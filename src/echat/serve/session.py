"""One realtime session: client events in, server events out, no socket. `emit` takes what goes out."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve import items as keeping
from echat.serve.answering import Answering, House, question_in
from echat.serve.items import Entry, Items, Spoken, turns
from echat.serve.listening import Listener
from echat.serve.outbox import Letter, Outbox
from echat.serve.protocol import beta, client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import Session, TurnDetection
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.sound import MIN_WINDOW, WINDOW
from echat.serve.turn_taking import (
    GuessDropped,
    Signal,
    SpeechDismissed,
    SpeechStarted,
    SpeechSuspected,
    TurnEnded,
    TurnGuessed,
)

MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)


class RealtimeSession:
    """Talks with one client. All methods are called in one event loop."""

    def __init__(self, house: House, outbox: Outbox, is_beta: bool = False) -> None:
        self.config, self.outbox, self.is_beta = house.config, outbox, is_beta
        self.metrics = house.metrics
        limits = self.config.limits
        speaks = house.desk.engine.token2wav is not None
        self.session = Session(
            id=new_id("sess"),
            model=house.model,
            expires_at=int(time.time() + limits.session_seconds),
            output_modalities=["audio"] if speaks else ["text"],
        )
        self.listener = Listener(house.vad, self.config.turns, limits.question_seconds)
        self.listener.configure(self.session.audio.input, self.session.options)
        self.items = Items(limits.items, limits.context_seconds)
        self.answering = Answering(house, self.items, self.emit)
        self._desk = house.desk
        self._user_item_id = new_id("item")  # of the turn to come
        self._n_events = 0
        self._handlers: dict[type, Callable[[Any], Awaitable[None]]] = {
            client.SessionUpdate: self._update,
            client.AudioAppend: self._append,
            client.AudioCommit: self._commit,
            client.AudioClear: self._clear,
            client.OutputAudioClear: self._clear_output,
            client.ResponseCreate: self._create_response,
            client.ResponseCancel: self._cancel_response,
            client.ItemCreate: self._create_item,
            client.ItemRetrieve: self._retrieve_item,
            client.ItemTruncate: self._truncate_item,
            client.ItemDelete: self._delete_item,
        }

    # --- out

    def emit(self, event: server.ServerEvent, response_id: str | None = None, audio_ms: int = 0) -> bool:
        """Put an event on its way; False: there was no room for its sound."""
        self._n_events += 1
        event.event_id = f"event_{self.session.id[5:]}_{self._n_events}"
        values = event.dump()
        told = list(beta.to_old(values)) if self.is_beta else [values]
        return all(
            [
                self.outbox.put(Letter(json.dumps(one, ensure_ascii=False), response_id, audio_ms))
                for one in told
            ]
        )

    def refuse(self, error: ProtocolError) -> None:
        """Tell the client what was wrong."""
        detail = server.ErrorDetail(
            message=str(error), code=error.code, param=error.param, event_id=error.event_id
        )
        self.emit(server.Error(error=detail))

    def open(self) -> None:
        """The first words of the server."""
        self.emit(server.SessionCreated(session=self.session.dump()))
        if self.config.recording is not None:
            self.emit(server.RecordingAnnounced(message="This server keeps conversations on disk."))

    async def close(self) -> None:
        """Give up everything that is under way."""
        await self.answering.close()

    # --- in

    async def handle(self, text: str) -> None:
        """One text frame; what is wrong with it is answered, not raised."""
        try:
            event = self._read(text)
        except ProtocolError as error:
            self.refuse(error)
            return
        try:
            await self._handlers[type(event)](event)
        except ProtocolError as error:
            error.event_id = event.event_id
            self.refuse(error)

    def _read(self, text: str) -> client.ClientEvent:
        if not self.is_beta:
            return client.read_event(text)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError("expected one JSON object in a text frame", "invalid_json") from error
        return client.event_of(beta.to_new(values) if isinstance(values, Mapping) else values)

    async def _update(self, event: client.SessionUpdate) -> None:
        new = self.session.updated(event.session)
        old = self.session
        if new.audio.output.voice != old.audio.output.voice and self.answering.has_spoken:
            raise ProtocolError(
                "session.audio.output.voice: cannot change after the first audio",
                "cannot_update_voice",
                "session.audio.output.voice",
            )
        self.answering.voice(new.audio.output.voice_name)
        if new.speaks and self._desk.engine.token2wav is None:
            raise ProtocolError('output_modalities: this model cannot speak, take ["text"]')
        self.session = new
        self.listener.configure(new.audio.input, new.options)
        self.answering.drop_guess()
        self.emit(server.SessionUpdated(session=new.dump()))

    # --- the user's sound

    async def _append(self, event: client.AudioAppend) -> None:
        try:
            data = base64.b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError("audio: expected base64", param="audio") from error
        self.listener.replying = self.answering.is_sounding
        before = self.listener.received_ms
        async for signal in self.listener.hear(data):
            await self._on(signal)
            self.listener.replying = self.answering.is_sounding
        self.metrics.audio_in.inc((self.listener.received_ms - before) / 1000)
        self._listen_ahead()
        if self.listener.is_full:
            raise ProtocolError(
                f"audio: a question has at most {self.config.limits.question_seconds:g} s; commit it",
                "input_audio_buffer_full",
                "audio",
            )

    @property
    def _detection(self) -> TurnDetection:
        return self.session.audio.input.turn_detection or TurnDetection()

    async def _on(self, signal: Signal) -> None:
        match signal:
            case SpeechSuspected(start):
                if self.session.options.pause:
                    self.emit(server.SpeechSuspectedEvent(audio_start_ms=int(start * 1000)))
            case SpeechDismissed(start, end):
                if self.session.options.pause:
                    self.emit(
                        server.SpeechDismissedEvent(
                            audio_start_ms=int(start * 1000), audio_end_ms=int(end * 1000)
                        )
                    )
            case SpeechStarted(start):
                begin_ms = self.listener.begin_turn(start)
                self.emit(server.SpeechStartedEvent(audio_start_ms=begin_ms, item_id=self._user_item_id))
                if self._detection.interrupt_response:
                    self._interrupt()
            case TurnGuessed(end):
                if self._responds:
                    self.answering.begin_guess(self.session, self._user_entry(self.listener.so_far(end)))
            case GuessDropped():
                self.answering.drop_guess()
            case TurnEnded(end, guessed, _):
                self._end_turn(end, guessed)

    @property
    def _responds(self) -> bool:
        return self.session.type == "realtime" and self._detection.create_response

    def _interrupt(self) -> None:
        """Stop an answer, take back what is not sent, and remember no more of it than was heard."""
        response = self.answering.cancel("turn_detected")
        if response is not None:
            taken_back = self.outbox.take_back(response.id)
            heard = response.heard_ms(time.monotonic())
            sent = response.spoken.audio_ms - taken_back
            response.spoken.heard_ms = max(0, min(heard, sent))
            del response.spoken.pcm[max(0, sent) * keeping.BYTES_PER_MS :]

    def _user_entry(self, samples: np.ndarray) -> Entry:
        part = ContentPart(type="input_audio")
        item = Item(id=self._user_item_id, role="user", status="completed", content=[part])
        return Entry(item, sound=samples)

    def _end_turn(self, end: float, guessed: TurnGuessed | None) -> None:
        self.emit(server.SpeechStoppedEvent(audio_end_ms=int(end * 1000), item_id=self._user_item_id))
        guess = self.answering.take_guess()
        entry = (
            guess.entry if guess else self._user_entry(self.listener.so_far(guessed.end if guessed else end))
        )
        self.listener.end_turn(end)
        self._add_user_turn(entry)
        if not self._responds:
            return
        if guess is not None:
            self.answering.respond(self.answering.plan(self.session), guess.stream)
        else:
            self._respond_in_turn()

    def _respond_in_turn(self) -> None:
        """Answer now, or after the answer that is under way."""

        async def wait_and_respond() -> None:
            await self.answering.finish()
            self._respond(self.answering.plan(self.session))

        if self.answering.is_busy:
            self.answering.in_background(wait_and_respond())
        else:
            self._respond(self.answering.plan(self.session))

    def _add_user_turn(self, entry: Entry) -> None:
        assert entry.item.id is not None
        self._user_item_id = new_id("item")
        before = self.items.add(entry)
        self.emit(server.Committed(item_id=entry.item.id, previous_item_id=before))
        self._tell_item(entry, before)
        wants_words = (
            self.session.audio.input.transcription is not None or self.session.type == "transcription"
        )
        if wants_words:
            self.answering.in_background(self._transcribe(entry))

    def _tell_item(self, entry: Entry, before: str | None) -> None:
        item = entry.item.model_copy(deep=True)
        self.emit(server.ItemAdded(item=item, previous_item_id=before))
        self.emit(server.ItemDone(item=item, previous_item_id=before))

    async def _transcribe(self, entry: Entry) -> None:
        assert entry.item.id is not None and entry.sound is not None and entry.item.content
        item_id = entry.item.id
        try:
            words = await self._desk.transcribe(keeping.recording(entry.sound))
        except Exception as error:
            message = str(error) if isinstance(error, ValueError) else type(error).__name__
            detail = server.ErrorDetail(type="server_error", code="transcription_failed", message=message)
            self.emit(server.TranscriptionFailed(item_id=item_id, error=detail))
            return
        entry.item.content[0].transcript = words
        if words:
            self.emit(server.TranscriptionDelta(item_id=item_id, delta=words))
        seconds = {"type": "duration", "seconds": round(len(entry.sound) / SAMPLE_RATE, 3)}
        self.emit(server.TranscriptionCompleted(item_id=item_id, transcript=words, usage=seconds))

    def _listen_ahead(self) -> None:
        """Of a long question, hear and read every whole window while it is still being asked."""

    async def _commit(self, event: client.AudioCommit) -> None:
        samples = self.listener.commit()
        if self.listener.turns is not None:
            self.listener.turns.reset()
        self.answering.drop_guess()
        if len(samples) < MIN_SAMPLES:
            raise ProtocolError(
                f"input audio buffer: expected at least {MIN_SECONDS * 1000:g} ms of sound, "
                f"found {len(samples) * 1000 / SAMPLE_RATE:.0f} ms",
                "input_audio_buffer_commit_empty",
            )
        self._add_user_turn(self._user_entry(samples))

    async def _clear(self, event: client.AudioClear) -> None:
        self.listener.clear()
        self.answering.drop_guess()
        self.emit(server.Cleared())

    async def _clear_output(self, event: client.OutputAudioClear) -> None:
        raise ProtocolError("output_audio_buffer.clear: only for WebRTC and SIP", "unsupported_event", "type")

    # --- responses

    async def _create_response(self, event: client.ResponseCreate) -> None:
        if self.session.type == "transcription":
            raise ProtocolError("response.create: a transcription session makes no responses")
        asked = event.response or client.ResponseSettings()
        is_default = asked.conversation == "auto"
        if is_default and self.answering.is_busy:
            raise ProtocolError(
                "a response is under way; wait for response.done or cancel it",
                "conversation_already_has_active_response",
            )
        self._respond(self._plan_of(asked, is_default), self._entries_of(asked))

    def _plan_of(self, asked: client.ResponseSettings, is_default: bool) -> Any:
        changes: dict[str, Any] = {"metadata": asked.metadata}
        if asked.output_modalities is not None:
            changes["speaks"] = asked.output_modalities == ["audio"]
        if asked.audio is not None and asked.audio.output is not None:
            given = asked.audio.output.model_dump(exclude_unset=True)
            changes["output"] = self.session.audio.output.model_copy(
                update={name: getattr(asked.audio.output, name) for name in given}
            )
        if asked.max_output_tokens is not None:
            changes["max_output_tokens"] = asked.max_output_tokens
        if asked.echat is not None:
            changes["think"] = asked.echat.think
            changes["show_thought"] = asked.echat.show_thought or self.session.options.show_thought
        if not is_default:
            changes["conversation_id"] = None
        return self.answering.plan(self.session, **changes)

    def _entries_of(self, asked: client.ResponseSettings) -> list[Entry] | None:
        if asked.input is None:
            return None
        return [
            self.items.get(item.id or "") if item.type == "item_reference" else self._entry_of(item)
            for item in asked.input
        ]

    def _respond(self, plan: Any, entries: list[Entry] | None = None) -> None:
        asked = turns(self.items.entries if entries is None else entries)
        if not question_in(asked):
            raise ProtocolError("response.create: expected a message of the user to answer, found none")
        self.answering.drop_guess()
        self.answering.respond(plan, self.answering.ask(self.session, asked, plan))

    async def _cancel_response(self, event: client.ResponseCancel) -> None:
        response = self.answering.response
        is_other = event.response_id is not None and response is not None and event.response_id != response.id
        if is_other or self.answering.cancel("client_cancelled") is None:
            raise ProtocolError(
                "response.cancel: no such response is under way", "response_cancel_not_active"
            )

    # --- items

    async def _create_item(self, event: client.ItemCreate) -> None:
        entry = self._entry_of(event.item)
        self._tell_item(entry, self.items.add(entry, event.previous_item_id))

    def _entry_of(self, item: Item) -> Entry:
        item = item.model_copy(deep=True)
        item.id = item.id or new_id("item")
        item.status = "completed"
        entry = Entry(item)
        if item.type != "message":
            return entry
        if item.role is None:
            raise ProtocolError("item.role: expected user, assistant or system", param="item.role")
        parts = item.content or []
        if item.role == "assistant":
            if any(part.type in ("output_audio", "audio") for part in parts):
                raise ProtocolError(
                    "item.content: what the assistant said cannot be given as audio", param="item.content"
                )
            entry.spoken = Spoken(text=" ".join(part.text or "" for part in parts).strip(), is_whole=True)
        pieces = [self._decoded(part) for part in parts if part.type == "input_audio"]
        if pieces:
            entry.sound = np.concatenate(pieces)
        return entry

    def _decoded(self, part: ContentPart) -> np.ndarray:
        """The sound of a part, which leaves the item."""
        from echat.serve.wire_audio import Decoder

        try:
            data = base64.b64decode(part.audio or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError("item.content.audio: expected base64", param="item.content") from error
        part.audio = None
        samples = Decoder(self.session.audio.input.format.type).push(data, last=True)
        if len(samples) < MIN_SAMPLES or len(samples) > self.config.limits.question_seconds * SAMPLE_RATE:
            raise ProtocolError(
                f"item.content.audio: expected {MIN_SECONDS:g} to {self.config.limits.question_seconds:g} s, "
                f"found {len(samples) / SAMPLE_RATE:.3f} s",
                param="item.content",
            )
        return samples

    async def _retrieve_item(self, event: client.ItemRetrieve) -> None:
        self.emit(server.ItemRetrieved(item=keeping.with_audio(self.items.get(event.item_id))))

    async def _truncate_item(self, event: client.ItemTruncate) -> None:
        keeping.truncate(self.items.get(event.item_id), event.audio_end_ms, event.content_index)
        self.emit(
            server.ItemTruncated(item_id=event.item_id, content_index=0, audio_end_ms=event.audio_end_ms)
        )

    async def _delete_item(self, event: client.ItemDelete) -> None:
        self.items.remove(event.item_id)
        self.emit(server.ItemDeleted(item_id=event.item_id))


_ = (MIN_WINDOW, WINDOW)
