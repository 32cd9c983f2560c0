"""Server events of the Realtime protocol, one model per event."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.wire import ErrorType, Wire

NULLABLE = ("previous_item_id",)  # fields that are sent even if null


class ServerEvent(Wire):
    """Base of all server events. A subclass declares its `type` by the class keyword `kind`."""

    kind: ClassVar[str]
    event_id: str = ""  # set when it is sent

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind

    def dump(self) -> dict[str, Any]:
        values = {"type": self.kind, **super().dump()}
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


class Error(ServerEvent, kind="error"):
    error: ErrorDetail


# --- session


class SessionCreated(ServerEvent, kind="session.created"):
    session: dict[str, Any]


class SessionUpdated(ServerEvent, kind="session.updated"):
    session: dict[str, Any]


class RecordingAnnounced(ServerEvent, kind="session.recording"):
    """Extension: this server records conversations on disk, or no longer does."""

    recording: bool = True
    message: str


# --- the user's audio


class SpeechStartedEvent(ServerEvent, kind="input_audio_buffer.speech_started"):
    audio_start_ms: int
    item_id: str


class SpeechStoppedEvent(ServerEvent, kind="input_audio_buffer.speech_stopped"):
    audio_end_ms: int
    item_id: str


class SpeechSuspectedEvent(ServerEvent, kind="input_audio_buffer.speech_suspected"):
    """Extension: a possible barge-in; a client may pause its playback."""

    audio_start_ms: int


class SpeechDismissedEvent(ServerEvent, kind="input_audio_buffer.speech_dismissed"):
    """Extension: it was no barge-in; playback may resume."""

    audio_start_ms: int
    audio_end_ms: int


class Committed(ServerEvent, kind="input_audio_buffer.committed"):
    item_id: str
    previous_item_id: str | None = None


class Cleared(ServerEvent, kind="input_audio_buffer.cleared"):
    """The input audio buffer is empty."""


class TimeoutTriggered(ServerEvent, kind="input_audio_buffer.timeout_triggered"):
    audio_start_ms: int
    audio_end_ms: int
    item_id: str


class TranscriptionDelta(ServerEvent, kind="conversation.item.input_audio_transcription.delta"):
    item_id: str
    content_index: int = 0
    delta: str


class TranscriptionCompleted(ServerEvent, kind="conversation.item.input_audio_transcription.completed"):
    item_id: str
    content_index: int = 0
    transcript: str
    usage: dict[str, Any]


class TranscriptionFailed(ServerEvent, kind="conversation.item.input_audio_transcription.failed"):
    item_id: str
    content_index: int = 0
    error: ErrorDetail


# --- items


class ItemAdded(ServerEvent, kind="conversation.item.added"):
    item: Item
    previous_item_id: str | None = None


class ItemDone(ServerEvent, kind="conversation.item.done"):
    item: Item
    previous_item_id: str | None = None


class ItemRetrieved(ServerEvent, kind="conversation.item.retrieved"):
    item: Item


class ItemTruncated(ServerEvent, kind="conversation.item.truncated"):
    item_id: str
    content_index: int
    audio_end_ms: int


class ItemDeleted(ServerEvent, kind="conversation.item.deleted"):
    item_id: str


# --- a response


Status = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]


class ResponseObject(Wire):
    """The response object, as far as it is known."""

    object: Literal["realtime.response"] = "realtime.response"
    id: str
    status: Status = "in_progress"
    status_details: dict[str, Any] | None = None
    output: list[Item]
    conversation_id: str | None = None
    output_modalities: list[str]
    audio: dict[str, Any] | None = None
    max_output_tokens: int | Literal["inf"] = "inf"
    metadata: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    echat: dict[str, Any] | None = None  # extension: seconds by stage, dropped audio


class ResponseCreated(ServerEvent, kind="response.created"):
    response: ResponseObject


class ResponseDone(ServerEvent, kind="response.done"):
    response: ResponseObject


class OfResponse(ServerEvent):
    response_id: str
    output_index: int = 0


class OutputItemAdded(OfResponse, kind="response.output_item.added"):
    item: Item


class OutputItemDone(OfResponse, kind="response.output_item.done"):
    item: Item


class OfItem(OfResponse):
    item_id: str


class ThoughtDelta(OfItem, kind="response.thought.delta"):
    """Extension: the thought while it is generated, as text, and the labels known so far."""

    delta: str
    labels: dict[str, Any] | None = None


class ThoughtDone(OfItem, kind="response.thought.done"):
    """Extension: the complete thought."""

    thought: dict[str, Any]


class OfContent(OfItem):
    content_index: int = 0


class ContentPartAdded(OfContent, kind="response.content_part.added"):
    part: ContentPart


class ContentPartDone(OfContent, kind="response.content_part.done"):
    part: ContentPart


class TextDelta(OfContent, kind="response.output_text.delta"):
    delta: str


class TextDone(OfContent, kind="response.output_text.done"):
    text: str


class TranscriptDelta(OfContent, kind="response.output_audio_transcript.delta"):
    delta: str


class TranscriptDone(OfContent, kind="response.output_audio_transcript.done"):
    transcript: str


class AudioDelta(OfContent, kind="response.output_audio.delta"):
    delta: str


class AudioDone(OfContent, kind="response.output_audio.done"):
    """All audio is sent."""
