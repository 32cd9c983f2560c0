"""One realtime session: client events in, server events out, no socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from echat.serve.answering import Answering
from echat.serve.editing import Editing
from echat.serve.message_size import check_sizes, check_values
from echat.serve.outbox import Outbox
from echat.serve.protocol import client, server
from echat.serve.protocol.json_text import read_json
from echat.serve.protocol.session import Session
from echat.serve.protocol.updating import update
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.response import ResponsePlan
from echat.serve.state import House, Talk
from echat.serve.user_turns import UserTurns

log = logging.getLogger("echat.serve")


def new_session(house: House) -> Session:
    """A session of a server before anybody changed it."""
    return Session(
        id=new_id("sess"),
        model=house.model,
        expires_at=int(time.time() + house.config.limits.session_seconds),
        output_modalities=["text"] if house.desk.engine.token2wav is None else ["audio"],
    )


class RealtimeSession:
    """Talks with one client. All methods are called in one event loop; what goes out waits in `outbox`."""

    def __init__(
        self, house: House, outbox: Outbox, is_beta: bool = False, wanted: dict[str, Any] | None = None
    ) -> None:
        self.talk = Talk(house, outbox, update(new_session(house), wanted or {})[0], is_beta)
        self.answering = Answering(self.talk)
        self.user_turns = UserTurns(self.talk, self.answering)
        editing = Editing(self.talk)
        self._editing = editing
        self._handlers: dict[type, Callable[[Any], Awaitable[None]]] = {
            client.SessionUpdate: self._update,
            client.AudioAppend: self.user_turns.append,
            client.AudioCommit: self.user_turns.commit,
            client.AudioClear: self.user_turns.clear,
            client.OutputAudioClear: self._clear_output,
            client.ResponseCreate: self._create_response,
            client.ResponseCancel: self._cancel_response,
            client.ItemCreate: editing.create,
            client.ItemRetrieve: editing.retrieve,
            client.ItemTruncate: editing.truncate,
            client.ItemDelete: editing.delete,
        }

    @property
    def id(self) -> str:
        return self.talk.session.id

    def open(self) -> None:
        """The first words of the server."""
        self.talk.emit(server.SessionCreated(session=self.talk.session.dump()))
        if self.talk.config.recording is not None:
            self.talk.emit(server.RecordingAnnounced(message="This server keeps conversations on disk."))

    async def close(self) -> None:
        """Give up everything that is under way."""
        await self.answering.close()

    async def handle(self, text: str) -> None:
        """One text frame; what is wrong with it is answered, not raised."""
        event_id = None
        try:
            check_values(text, self.talk.config.limits)
            event = client.event_of(read_json(text))
            event_id = event.event_id
            check_sizes(event, len(text), self.talk.config.limits)
            await self._handlers[type(event)](event)
        except ProtocolError as error:
            error.event_id = error.event_id or event_id
            self.talk.refuse(error)
        except Exception:
            self.talk.metrics.errors.labels("event").inc()
            log.exception("session %s: an event failed by an error of the server", self.id)
            message = "this event failed by an error of the server; the session goes on"
            self.talk.refuse(ProtocolError(message, "internal_error", event_id=event_id), "server_error")

    async def _update(self, event: client.SessionUpdate) -> None:
        self.talk.session, refused = update(self.talk.session, event.session, self._check)
        for wrong in refused:
            wrong.event_id = event.event_id
            self.talk.refuse(wrong)
        self.user_turns.configure()
        self.talk.emit(server.SessionUpdated(session=self.talk.session.dump()))

    def _check(self, new: Session) -> None:
        """Can this server do what the session would be?"""
        voice = self.answering.voice(new.audio.output.voice, "audio.output.voice")
        if self.answering.has_spoken and voice != self.answering.voice(self.talk.session.audio.output.voice):
            where = "audio.output.voice"
            raise ProtocolError("cannot change after the first audio", "cannot_update_voice", where)
        self._check_speech(new.speaks, "output_modalities")

    def _check_speech(self, speaks: bool, where: str) -> None:
        if speaks and self.talk.house.desk.engine.token2wav is None:
            raise ProtocolError(f'{where}: this model cannot speak, take ["text"]', param=where)

    async def _clear_output(self, event: client.OutputAudioClear) -> None:
        raise ProtocolError("output_audio_buffer.clear: only for WebRTC and SIP", "unsupported_event", "type")

    async def _create_response(self, event: client.ResponseCreate) -> None:
        if self.talk.session.type == "transcription":
            raise ProtocolError("response.create: a transcription session makes no responses")
        asked = event.response or client.ResponseSettings()
        if asked.conversation == "auto" and self.answering.is_busy:
            raise ProtocolError(
                "a response is under way; wait for response.done or cancel it",
                "conversation_already_has_active_response",
            )
        entries = None if asked.input is None else self._editing.entries_of(asked.input)
        self.answering.create(self._plan(asked), entries)

    def _plan(self, asked: client.ResponseSettings) -> ResponsePlan:
        """The session's way of answering, with what this response wants otherwise."""
        changes: dict[str, Any] = {"metadata": asked.metadata}
        if asked.output_modalities is not None:
            changes["speaks"] = asked.output_modalities == ["audio"]
            self._check_speech(changes["speaks"], "response.output_modalities")
        if asked.audio is not None and asked.audio.output is not None:
            given = {name: getattr(asked.audio.output, name) for name in asked.audio.output.model_fields_set}
            changes["output"] = self.talk.session.audio.output.model_copy(update=given)
            self.answering.voice(changes["output"].voice, "response.audio.output.voice")
        if asked.max_output_tokens is not None:
            changes["max_output_tokens"] = asked.max_output_tokens
        if asked.instructions is not None:
            changes["instructions"] = asked.instructions
            # Some clients put the session's own before them.
            changes["opening"] = asked.instructions.removeprefix(self.talk.session.instructions).strip()
        if asked.echat is not None:
            changes["think"] = asked.echat.think
            changes["show_thought"] = asked.echat.show_thought or self.talk.session.options.show_thought
        if asked.conversation == "none":
            changes["conversation_id"] = None
        return self.answering.plan(**changes)

    async def _cancel_response(self, event: client.ResponseCancel) -> None:
        if event.response_id is None:
            was_running = self.answering.cancel("client_cancelled")
        else:
            was_running = self.answering.cancel_by_id(event.response_id)
        if not was_running:
            # Clients know this case by the first words of the message.
            raise ProtocolError("Cancellation failed: no such response runs", "response_cancel_not_active")
