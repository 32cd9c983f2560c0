"""Session context: the state that the handlers of one realtime session share."""

from __future__ import annotations

import logging

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.serve.app_state import App
from echat.serve.protocol import beta, server
from echat.serve.protocol.json_text import write_json
from echat.serve.protocol.session import PCM_RATE, Session
from echat.serve.protocol.wire import ErrorType, ProtocolError, new_id
from echat.serve.realtime.conversation import ConversationItems, Entry
from echat.serve.realtime.recorder import Recorder
from echat.serve.realtime.send_queue import OutboundMessage, SendQueue

log = logging.getLogger("echat.serve")


class SessionContext:
    """The session object, its conversation, and the queue of events to the client."""

    def __init__(self, app: App, send_queue: SendQueue, session: Session, is_beta: bool = False) -> None:
        self.app, self.config, self.metrics = app, app.config, app.metrics
        self.session, self.send_queue, self.is_beta = session, send_queue, is_beta
        self.items = ConversationItems(self.config.limits, app.speech_in_history)
        self.conversation_id = new_id("conv")
        self._n_events = 0
        self._recorder = Recorder(self.config.recording, session.id) if self.config.recording else None

    def emit(self, event: server.ServerEvent, response_id: str | None = None, audio_ms: int = 0) -> bool:
        """Queue an event for the client; False: there was no room for its audio."""
        self._n_events += 1
        event.event_id = f"event_{self.session.id[5:]}_{self._n_events}"
        values = event.dump()
        payloads = beta.to_old(values) if self.is_beta else [values]
        messages = [OutboundMessage(write_json(one), response_id, audio_ms) for one in payloads]
        return all([self.send_queue.put(message) for message in messages])

    def refuse(self, error: ProtocolError, kind: ErrorType = "invalid_request_error") -> None:
        """Answer a client event with an `error` event."""
        detail = server.ErrorDetail(
            type=kind, message=str(error), code=error.code, param=error.param, event_id=error.event_id
        )
        self.emit(server.Error(error=detail))

    def record(self, entry: Entry) -> None:
        """Write an item to disk, where the operator enabled recording. A failure ends the recording, not the
        session."""
        if self._recorder is None:
            return
        samples, rate = entry.samples, SAMPLE_RATE
        if entry.generated is not None:
            samples, rate = np.frombuffer(bytes(entry.generated.pcm), "<i2"), PCM_RATE
        try:
            self._recorder.write_item(entry.item.dump(), samples, rate)
        except Exception as error:
            self._recorder = None
            self.metrics.errors.labels("recording").inc()
            log.error("session %s is recorded no further: %s", self.session.id, error)
            message = "The recording ended: this server could not write it. The conversation goes on."
            self.emit(server.RecordingAnnounced(message=message, recording=False))
