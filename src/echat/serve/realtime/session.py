"""One realtime session without a socket: dispatches client events to handlers, which emit server events."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from echat.serve.app_state import App
from echat.serve.protocol import client, server
from echat.serve.protocol.json_text import read_json
from echat.serve.protocol.session import Session
from echat.serve.protocol.session_update import update
from echat.serve.protocol.size_limits import check_sizes, check_values
from echat.serve.protocol.wire import ProtocolError
from echat.serve.realtime.input_manager import InputManager
from echat.serve.realtime.item_events import ItemEventHandler
from echat.serve.realtime.response import ResponseParams
from echat.serve.realtime.response_manager import ResponseManager
from echat.serve.realtime.send_queue import SendQueue
from echat.serve.realtime.session_context import SessionContext

log = logging.getLogger("echat.serve")


class RealtimeSession:
    """The session of one client. All methods run in one event loop; server events go to `send_queue`."""

    def __init__(
        self, app: App, send_queue: SendQueue, is_beta: bool = False, wanted: dict[str, Any] | None = None
    ) -> None:
        self.context = SessionContext(app, send_queue, update(app.new_session(), wanted or {})[0], is_beta)
        self.response_manager = ResponseManager(self.context)
        self.input_manager = InputManager(self.context, self.response_manager)
        self._item_events = item_events = ItemEventHandler(self.context)
        self._handlers: dict[type, Callable[[Any], Awaitable[None]]] = {
            client.SessionUpdate: self._update,
            client.AudioAppend: self.input_manager.append,
            client.AudioCommit: self.input_manager.commit,
            client.AudioClear: self.input_manager.clear,
            client.OutputAudioClear: self._clear_output,
            client.ResponseCreate: self._create_response,
            client.ResponseCancel: self._cancel_response,
            client.ItemCreate: item_events.create,
            client.ItemRetrieve: item_events.retrieve,
            client.ItemTruncate: item_events.truncate,
            client.ItemDelete: item_events.delete,
        }

    @property
    def id(self) -> str:
        return self.context.session.id

    def open(self) -> None:
        """Emit the first events."""
        self.context.emit(server.SessionCreated(session=self.context.session.dump()))
        if self.context.config.recording is not None:
            self.context.emit(server.RecordingAnnounced(message="This server keeps conversations on disk."))

    async def close(self) -> None:
        """Cancel everything that is running."""
        await self.response_manager.close()

    async def handle(self, text: str) -> None:
        """Handle one text frame; an error in it becomes an `error` event."""
        event_id = None
        try:
            check_values(text, self.context.config.limits)
            event = client.parse_event(read_json(text))
            event_id = event.event_id
            check_sizes(event, len(text), self.context.config.limits)
            await self._handlers[type(event)](event)
        except ProtocolError as error:
            error.event_id = error.event_id or event_id
            self.context.refuse(error)
        except Exception:
            self.context.metrics.errors.labels("event").inc()
            log.exception("session %s: an event failed by an error of the server", self.id)
            message = "this event failed by an error of the server; the session goes on"
            self.context.refuse(ProtocolError(message, "internal_error", event_id=event_id), "server_error")

    async def _update(self, event: client.SessionUpdate) -> None:
        self.context.session, refused = update(self.context.session, event.session, self._check)
        for wrong in refused:
            wrong.event_id = event.event_id
            self.context.refuse(wrong)
        self.input_manager.configure()
        self.context.emit(server.SessionUpdated(session=self.context.session.dump()))

    def _check(self, new: Session) -> None:
        """Refuse settings that this server cannot provide."""
        app, where = self.context.app, "audio.output.voice"
        voice, present = new.audio.output.voice, self.context.session.audio.output.voice
        is_changed = app.voice_for(voice, where) != app.voice_for(present)
        if self.response_manager.has_spoken and is_changed:
            raise ProtocolError("cannot change after the first audio", "cannot_update_voice", where)
        self._check_speech(new.speaks, "output_modalities")

    def _check_speech(self, speaks: bool, where: str) -> None:
        if speaks and not self.context.app.can_speak:
            raise ProtocolError(f'{where}: this model cannot speak, take ["text"]', param=where)

    async def _clear_output(self, event: client.OutputAudioClear) -> None:
        raise ProtocolError("output_audio_buffer.clear: only for WebRTC and SIP", "unsupported_event", "type")

    async def _create_response(self, event: client.ResponseCreate) -> None:
        if self.context.session.type == "transcription":
            raise ProtocolError("response.create: a transcription session makes no responses")
        requested = event.response or client.ResponseSettings()
        if requested.conversation == "auto" and self.response_manager.is_busy:
            raise ProtocolError(
                "a response is under way; wait for response.done or cancel it",
                "conversation_already_has_active_response",
            )
        entries = None if requested.input is None else self._item_events.to_entries(requested.input)
        self.response_manager.create(self._params(requested), entries)

    def _params(self, requested: client.ResponseSettings) -> ResponseParams:
        """Settings of a response: the session's, with those of the event."""
        session = self.context.session
        changes: dict[str, Any] = {"metadata": requested.metadata}
        if requested.output_modalities is not None:
            changes["speaks"] = requested.output_modalities == ["audio"]
            self._check_speech(changes["speaks"], "response.output_modalities")
        if requested.audio is not None and requested.audio.output is not None:
            output = requested.audio.output
            given = {name: getattr(output, name) for name in output.model_fields_set}
            changes["output"] = session.audio.output.model_copy(update=given)
            self.context.app.voice_for(changes["output"].voice, "response.audio.output.voice")
        if requested.max_output_tokens is not None:
            changes["max_output_tokens"] = requested.max_output_tokens
        if requested.instructions is not None:
            changes["instructions"] = requested.instructions
            # Some clients prepend the instructions of the session.
            changes["opening"] = requested.instructions.removeprefix(session.instructions).strip()
        if requested.echat is not None:
            changes["think"] = requested.echat.think
            changes["show_thought"] = requested.echat.show_thought or session.options.show_thought
        if requested.conversation == "none":
            changes["conversation_id"] = None
        return self.response_manager.params(**changes)

    async def _cancel_response(self, event: client.ResponseCancel) -> None:
        if not self.response_manager.cancel("client_cancelled", event.response_id):
            # Clients recognize this case by the start of the message.
            raise ProtocolError("Cancellation failed: no such response runs", "response_cancel_not_active")
