"""What a client may send, one model per event."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from echat.serve.protocol import beta
from echat.serve.protocol.items import Given, Item
from echat.serve.protocol.session import AudioOutput, EchatOptions, MaxTokens, Modalities
from echat.serve.protocol.wire import ProtocolError, to_protocol_error

MAX_AUDIO_CHARACTERS = 20 * 2**20  # base64 of 15 MiB


class ClientEvent(Given):
    """Base of all events from a client."""

    type: str
    event_id: str | None = Field(None, max_length=512)


class SessionUpdate(ClientEvent):
    type: Literal["session.update"]
    session: dict[str, Any]


class AudioAppend(ClientEvent):
    type: Literal["input_audio_buffer.append"]
    audio: str = Field(max_length=MAX_AUDIO_CHARACTERS)


class AudioCommit(ClientEvent):
    type: Literal["input_audio_buffer.commit"]


class AudioClear(ClientEvent):
    type: Literal["input_audio_buffer.clear"]


class OutputAudioClear(ClientEvent):
    type: Literal["output_audio_buffer.clear"]


class ResponseAudio(Given):
    output: AudioOutput | None = None


class ResponseSettings(Given):
    """What of one response differs from the session."""

    output_modalities: Modalities | None = None
    instructions: str | None = None
    audio: ResponseAudio | None = None
    max_output_tokens: MaxTokens | None = None
    conversation: Literal["auto", "none"] = "auto"
    input: list[Item] | None = None
    metadata: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    echat: EchatOptions | None = None


class ResponseCreate(ClientEvent):
    type: Literal["response.create"]
    response: ResponseSettings | None = None


class ResponseCancel(ClientEvent):
    type: Literal["response.cancel"]
    response_id: str | None = None


class ItemCreate(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent):
    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemTruncate(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int = 0
    audio_end_ms: int = Field(ge=0)


class ItemDelete(ClientEvent):
    type: Literal["conversation.item.delete"]
    item_id: str


_EVENTS: dict[str, type[ClientEvent]] = {
    kind.model_fields["type"].annotation.__args__[0]: kind  # type: ignore[union-attr]
    for kind in (
        SessionUpdate,
        AudioAppend,
        AudioCommit,
        AudioClear,
        OutputAudioClear,
        ResponseCreate,
        ResponseCancel,
        ItemCreate,
        ItemRetrieve,
        ItemTruncate,
        ItemDelete,
    )
}


def parse_event(values: dict[str, Any]) -> ClientEvent:
    """The event that an object is; anything else is a ProtocolError that names the event where it can."""
    event_id = values.get("event_id")
    event_id = event_id if isinstance(event_id, str) and len(event_id) <= 512 else None
    present = beta.to_new(values)
    kind = present.get("type")
    if not isinstance(kind, str) or kind not in _EVENTS:
        name = kind[:80] if isinstance(kind, str) else type(kind).__name__
        raise ProtocolError(f"type: unknown event {name!r}", "unknown_event", "type", event_id)
    try:
        return _EVENTS[kind].model_validate(present)
    except ValidationError as error:
        wrong = to_protocol_error(error, present)
        wrong.event_id = event_id
        raise wrong from error
