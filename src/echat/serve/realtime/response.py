"""One response: events of the engine in, events of the protocol out, up to `response.done`."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from echat.dialogue import thinking
from echat.infer import events
from echat.infer.events import Reply
from echat.serve.async_engine import AsyncReplyStream
from echat.serve.protocol import server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import AudioOutput
from echat.serve.protocol.usage import label_values, thought_values, usage
from echat.serve.protocol.wire import new_id
from echat.serve.protocol.wire_audio import AudioEncoder, milliseconds
from echat.serve.realtime.conversation import Entry, GeneratedAnswer

log = logging.getLogger("echat.serve")

DELTA_SECONDS = 0.4  # of audio in one event: small enough to be taken back, large enough to be cheap

Emit = Callable[..., bool]
CancelReason = Literal["turn_detected", "client_cancelled", "slow_reader", "closing"]


@dataclass(frozen=True)
class ResponseParams:
    """Settings of one response."""

    speaks: bool
    output: AudioOutput
    show_thought: bool = False
    max_output_tokens: int | Literal["inf"] = "inf"
    metadata: dict[str, Any] | None = None
    conversation_id: str | None = None  # None: out of band, in no conversation
    think: str | None = None  # None: as set in the session
    instructions: str = ""
    opening: str = ""  # typed turn to answer where there is no new turn of the user


@dataclass
class Timing:
    """Times of a response, in seconds of the monotonic clock."""

    began: float = field(default_factory=time.monotonic)
    first_audio: float | None = None
    ended: float | None = None


class Response:
    """Sends a reply to the client. `entry` is its item in the conversation."""

    def __init__(
        self, params: ResponseParams, stream: AsyncReplyStream, emit: Emit, previous_item_id: str | None
    ) -> None:
        self.id, self.params, self.stream = new_id("resp"), params, stream
        self.previous_item_id = previous_item_id
        self.generated = GeneratedAnswer(speed=params.output.speed)
        self.entry = Entry(Item(id=new_id("item"), role="assistant", status="in_progress", content=[]))
        self.entry.generated = self.generated
        self.timing = Timing()
        self.reply: Reply | None = None  # once it is finished
        self.cancelled: CancelReason | None = None
        self.ended = asyncio.Event()
        self.dropped_ms = 0
        self._emit = emit
        self._speech_ids: list[int] = []
        self._thinking = ""
        self._error: dict[str, Any] | None = None
        self._encoder: AudioEncoder | None = None  # to the client
        self._history_encoder: AudioEncoder | None = (
            None  # to PCM for the history, where the client has another format
        )

    @property
    def is_running(self) -> bool:
        return self.timing.ended is None

    @property
    def plays_until(self) -> float:
        """Estimated end of playback: as if the client plays audio as it arrives; monotonic seconds."""
        if self.timing.first_audio is None:
            return 0.0
        return self.timing.first_audio + self.generated.audio_ms / 1000

    def cancel(self, reason: CancelReason) -> None:
        """Stop the reply; the closing events follow."""
        if self.is_running and self.cancelled is None:
            self.cancelled = reason
            self.stream.cancel()

    def played_ms(self, now: float) -> int:
        """Estimate of the played audio: as if the client plays audio as it arrives."""
        if self.timing.first_audio is None:
            return 0
        return min(self.generated.audio_ms, int((now - self.timing.first_audio) * 1000))

    async def run(self) -> None:
        """Emit all events up to `response.done`, however the reply ends."""
        try:
            self._open()
            async for event in self.stream:
                self._handle(event)
        except asyncio.CancelledError:
            self.cancelled = self.cancelled or "closing"
            self.stream.cancel()
        except ValueError as error:  # the model cannot answer this, for the reason in the message
            self._error = {"type": "invalid_request_error", "code": "cannot_answer", "message": str(error)}
        except Exception as error:
            self._error = {"type": "server_error", "code": "reply_failed", "message": type(error).__name__}
        finally:
            self._finish()
            self.ended.set()

    # --- events of the engine

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.ThoughtPiece(text):
                self._emit_thought(text)
            case events.Thought(thought, _):
                self.generated.thought = thought
                if self.params.show_thought:
                    self.entry.item.thought = thought_values(thought)
                    self._emit_for_response(
                        server.ThoughtDone, item_id=self._item_id, thought=self.entry.item.thought
                    )
            case events.TextPiece(text):
                self.generated.text += text
                kind = server.TranscriptDelta if self.params.speaks else server.TextDelta
                self._emit_for_response(kind, item_id=self._item_id, delta=text)
            case events.Text(text, _):
                self.generated.text = text
            case events.SpeechIds(ids):
                self._speech_ids += ids
            case events.Audio(waveform, rate):
                if self._encoder is None:
                    speed = self.params.output.speed
                    self._encoder = AudioEncoder(self.params.output.format.type, rate, speed)
                    self._history_encoder = AudioEncoder("audio/pcm", rate, speed)
                self._send_audio(waveform.numpy(), rate)
            case events.Done(reply):
                self.reply = reply
                if reply.is_mute:
                    message = f"the model came to an end with {reply.defect}; ask again"
                    self._error = {"type": "server_error", "code": "no_answer", "message": message}
                if self._encoder is not None:
                    self._send_audio(np.zeros(0, np.float32), reply.rate or 1, last=True)

    def _emit_thought(self, text: str) -> None:
        self._thinking += text
        if self.params.show_thought:
            known = thinking.unfinished_labels(self._thinking)
            labels = None if known is None else label_values(known)
            self._emit_for_response(server.ThoughtDelta, item_id=self._item_id, delta=text, labels=labels)

    def _send_audio(self, waveform: np.ndarray, rate: int, last: bool = False) -> None:
        """Encode and send in deltas; once the queue of a slow reader is full, the rest of the audio is
        dropped."""
        assert self._encoder is not None and self._history_encoder is not None
        step = max(1, int(rate * DELTA_SECONDS))
        pieces = [waveform[start : start + step] for start in range(0, len(waveform), step)] or [waveform]
        name = self.params.output.format.type
        for number, piece in enumerate(pieces):
            is_last = last and number == len(pieces) - 1
            data = self._encoder.push(piece, is_last)
            kept = data if name == "audio/pcm" else self._history_encoder.push(piece, is_last)
            if not data:
                continue
            length = milliseconds(len(data), name)
            delta = server.AudioDelta(
                response_id=self.id, item_id=self._item_id, delta=base64.b64encode(data).decode()
            )
            if self.generated.is_truncated:
                return
            if self.dropped_ms or not self._emit(delta, response_id=self.id, audio_ms=length):
                self.dropped_ms += length
                continue
            self.timing.first_audio = self.timing.first_audio or time.monotonic()
            self.generated.pcm += kept

    # --- opening and closing events

    @property
    def _item_id(self) -> str:
        assert self.entry.item.id is not None
        return self.entry.item.id

    def _emit_for_response(self, kind: type[server.OfResponse], **values: Any) -> None:
        self._emit(kind(response_id=self.id, **values))

    def _open(self) -> None:
        self._emit(server.ResponseCreated(response=self.described()))
        self._emit_for_response(server.OutputItemAdded, item=self.entry.item.model_copy(deep=True))
        if self.params.conversation_id:
            item = self.entry.item.model_copy(deep=True)
            self._emit(server.ItemAdded(item=item, previous_item_id=self.previous_item_id))
        speaks = self.params.speaks
        empty = ContentPart(type="audio", transcript="") if speaks else ContentPart(type="text", text="")
        self._emit_for_response(server.ContentPartAdded, item_id=self._item_id, part=empty)

    def _finish(self) -> None:
        """Emit the closing events. Clients wait for `response.done`, so it is sent even if the others
        fail."""
        try:
            self._record_outcome()
            self._close()
        except Exception as error:
            log.exception("the closing events of response %s failed", self.id)
            details = {"type": "server_error", "code": "reply_failed", "message": type(error).__name__}
            failed = server.ResponseObject(
                id=self.id,
                status="failed",
                status_details={"type": "failed", "error": details},
                output=[],
                output_modalities=self._modalities,
            )
            self._emit(server.ResponseDone(response=failed))

    def _close(self) -> None:
        text = self.generated.text
        if self.params.speaks:
            self._emit_for_response(server.AudioDone, item_id=self._item_id)
            self._emit_for_response(server.TranscriptDone, item_id=self._item_id, transcript=text)
            part = ContentPart(type="output_audio", transcript=text)
        else:
            self._emit_for_response(server.TextDone, item_id=self._item_id, text=text)
            part = ContentPart(type="output_text", text=text)
        # In this event a part has the older, shorter name of its type.
        short_part = part.model_copy(update={"type": "audio" if self.params.speaks else "text"})
        self._emit_for_response(server.ContentPartDone, item_id=self._item_id, part=short_part)
        if not self.generated.is_truncated:
            self.entry.item.content = [part]
        self.entry.item.status = "completed" if self.status == "completed" else "incomplete"
        done = self.entry.item.model_copy(deep=True)
        if self.params.conversation_id:
            self._emit(server.ItemDone(item=done, previous_item_id=self.previous_item_id))
        self._emit_for_response(server.OutputItemDone, item=done)
        self._emit(server.ResponseDone(response=self.described()))

    def _record_outcome(self) -> None:
        """Store the final state of the answer in `generated`."""
        self.timing.ended = time.monotonic()
        reply = self.reply
        self.generated.speech_ids = reply.speech_ids if reply else tuple(self._speech_ids)
        self.generated.is_whole = reply is not None and reply.finish_reason == "end"
        if reply is not None:
            self.generated.text_ids = reply.own_text_ids
        if self.dropped_ms:
            self.generated.played_ms = self.generated.audio_ms

    @property
    def status(self) -> server.Status:
        if self.is_running:
            return "in_progress"
        if self.cancelled:
            return "cancelled"
        if self._error:
            return "failed"
        is_cut = self.dropped_ms or self.reply is None or self.reply.finish_reason not in ("end", "loop")
        return "incomplete" if is_cut else "completed"

    @property
    def _status_details(self) -> dict[str, Any] | None:
        if self.cancelled:
            return {"type": "cancelled", "reason": self.cancelled}
        if self._error:
            return {"type": "failed", "error": self._error}
        if self.status == "incomplete":
            return {"type": "incomplete", "reason": "max_output_tokens"}
        return None

    def described(self) -> server.ResponseObject:
        """The response object."""
        params, is_done = self.params, not self.is_running
        voice = {"voice": params.output.voice} if params.output.voice else {}
        return server.ResponseObject(
            id=self.id,
            status=self.status,
            status_details=self._status_details if is_done else None,
            output=[self.entry.item.model_copy(deep=True)] if is_done else [],
            conversation_id=params.conversation_id,
            output_modalities=self._modalities,
            audio={"output": {"format": params.output.format.dump(), **voice}},
            max_output_tokens=params.max_output_tokens,
            metadata=params.metadata,
            usage=usage(self.reply) if is_done else None,
            echat=self._echat_fields(),
        )

    @property
    def _modalities(self) -> list[str]:
        return ["audio"] if self.params.speaks else ["text"]

    def _echat_fields(self) -> dict[str, Any] | None:
        if self.is_running or not (self.params.show_thought or self.dropped_ms):
            return None
        measured, counts = (self.reply.seconds, self.reply.counts) if self.reply else ({}, {})
        return {
            "seconds": {name: round(value, 4) for name, value in measured.items()},
            "dropped_audio_ms": self.dropped_ms,
            "turns_left_out": counts.get("turns_left_out", 0),
        }
