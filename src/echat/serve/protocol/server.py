"""What the server says, one model per event, in the order of a conversation."""

from __future__ import annotations

from typing import Any, Literal

from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.wire import ErrorType, Wire

NULLABLE = ("previous_item_id",)  # said even where they are null


class ServerEvent(Wire):
    """Base of all events to a client; the id is given when it is sent."""

    type: str
    event_id: str = ""

    def dump(self) -> dict[str, Any]:
        values = super().dump()
        for name in NULLABLE:
            if name in type(self).model_fields:
                values.setdefault(name, None)
        return values


class ErrorDetail(Wire):
    type: ErrorType = "invalid_request_error"
    code: str | None = None
    message: str
    param: str | None = None
    event_id: str | None = None


class Error(ServerEvent):
    type: Literal["error"] = "error"
    error: ErrorDetail


# --- session


class SessionCreated(ServerEvent):
    type: Literal["session.created"] = "session.created"
    session: dict[str, Any]


class SessionUpdated(ServerEvent):
    type: Literal["session.updated"] = "session.updated"
    session: dict[str, Any]


class RecordingAnnounced(ServerEvent):
    """echat's own: this server keeps what is said on disk, or no longer does."""

    type: Literal["session.recording"] = "session.recording"
    recording: bool = True
    message: str


# --- the user's sound


class SpeechStartedEvent(ServerEvent):
    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


class SpeechStoppedEvent(ServerEvent):
    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


class SpeechSuspectedEvent(ServerEvent):
    """echat's own: perhaps an interruption begins; a client may pause its playback."""

    type: Literal["input_audio_buffer.speech_suspected"] = "input_audio_buffer.speech_suspected"
    audio_start_ms: int


class SpeechDismissedEvent(ServerEvent):
    """echat's own: it was none; go on playing."""

    type: Literal["input_audio_buffer.speech_dismissed"] = "input_audio_buffer.speech_dismissed"
    audio_start_ms: int
    audio_end_ms: int


class Committed(ServerEvent):
    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    item_id: str
    previous_item_id: str | None = None


class Cleared(ServerEvent):
    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class TimeoutTriggered(ServerEvent):
    type: Literal["input_audio_buffer.timeout_triggered"] = "input_audio_buffer.timeout_triggered"
    audio_start_ms: int
    audio_end_ms: int
    item_id: str


class TranscriptionDelta(ServerEvent):
    type: Literal["conversation.item.input_audio_transcription.delta"] = (
        "conversation.item.input_audio_transcription.delta"
    )
    item_id: str
    content_index: int = 0
    delta: str


class TranscriptionCompleted(ServerEvent):
    type: Literal["conversation.item.input_audio_transcription.completed"] = (
        "conversation.item.input_audio_transcription.completed"
    )
    item_id: str
    content_index: int = 0
    transcript: str
    usage: dict[str, Any]


class TranscriptionFailed(ServerEvent):
    type: Literal["conversation.item.input_audio_transcription.failed"] = (
        "conversation.item.input_audio_transcription.failed"
    )
    item_id: str
    content_index: int = 0
    error: ErrorDetail


# --- items


class ItemAdded(ServerEvent):
    type: Literal["conversation.item.added"] = "conversation.item.added"
    item: Item
    previous_item_id: str | None = None


class ItemDone(ServerEvent):
    type: Literal["conversation.item.done"] = "conversation.item.done"
    item: Item
    previous_item_id: str | None = None


class ItemRetrieved(ServerEvent):
    type: Literal["conversation.item.retrieved"] = "conversation.item.retrieved"
    item: Item


class ItemTruncated(ServerEvent):
    type: Literal["conversation.item.truncated"] = "conversation.item.truncated"
    item_id: str
    content_index: int
    audio_end_ms: int


class ItemDeleted(ServerEvent):
    type: Literal["conversation.item.deleted"] = "conversation.item.deleted"
    item_id: str


# --- a response


class ResponseObject(Wire):
    """A response as far as it is known."""

    object: Literal["realtime.response"] = "realtime.response"
    id: str
    status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"] = "in_progress"
    status_details: dict[str, Any] | None = None
    output: list[Item]
    conversation_id: str | None = None
    output_modalities: list[str]
    audio: dict[str, Any] | None = None
    max_output_tokens: int | Literal["inf"] = "inf"
    metadata: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    echat: dict[str, Any] | None = None  # echat's own: seconds by stage, sound that a slow reader missed


class ResponseCreated(ServerEvent):
    type: Literal["response.created"] = "response.created"
    response: ResponseObject


class ResponseDone(ServerEvent):
    type: Literal["response.done"] = "response.done"
    response: ResponseObject


class OfResponse(ServerEvent):
    response_id: str
    output_index: int = 0


class OutputItemAdded(OfResponse):
    type: Literal["response.output_item.added"] = "response.output_item.added"
    item: Item


class OutputItemDone(OfResponse):
    type: Literal["response.output_item.done"] = "response.output_item.done"
    item: Item


class OfItem(OfResponse):
    item_id: str


class ThoughtDelta(OfItem):
    """echat's own: the thought while it forms, as text, and the labels known so far."""

    type: Literal["response.thought.delta"] = "response.thought.delta"
    delta: str
    labels: dict[str, Any] | None = None


class ThoughtDone(OfItem):
    """echat's own: the whole thought."""

    type: Literal["response.thought.done"] = "response.thought.done"
    thought: dict[str, Any]


class OfContent(OfItem):
    content_index: int = 0


class ContentPartAdded(OfContent):
    type: Literal["response.content_part.added"] = "response.content_part.added"
    part: ContentPart


class ContentPartDone(OfContent):
    type: Literal["response.content_part.done"] = "response.content_part.done"
    part: ContentPart


class TextDelta(OfContent):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str


class TextDone(OfContent):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str


class TranscriptDelta(OfContent):
    type: Literal["response.output_audio_transcript.delta"] = "response.output_audio_transcript.delta"
    delta: str


class TranscriptDone(OfContent):
    type: Literal["response.output_audio_transcript.done"] = "response.output_audio_transcript.done"
    transcript: str


class AudioDelta(OfContent):
    type: Literal["response.output_audio.delta"] = "response.output_audio.delta"
    delta: str


class AudioDone(OfContent):
    type: Literal["response.output_audio.done"] = "response.output_audio.done"
