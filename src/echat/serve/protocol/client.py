"""Client events of the Realtime protocol, one model per event."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from echat.serve.protocol import beta
from echat.serve.protocol.items import Given, Item
from echat.serve.protocol.session import AudioOutput, EchatOptions, MaxTokens, Modalities
from echat.serve.protocol.wire import ProtocolError, to_protocol_error

MAX_AUDIO_CHARACTERS = 20 * 2**20  # base64 of 15 MiB

_EVENTS: dict[str, type[ClientEvent]] = {}  # by `type`


class ClientEvent(Given):
    """Base of all client events. A subclass declares its `type` by the class keyword `kind`."""

    kind: ClassVar[str]
    event_id: str | None = Field(None, max_length=512)

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind
        _EVENTS[kind] = cls


class SessionUpdate(ClientEvent, kind="session.update"):
    session: dict[str, Any]


class AudioAppend(ClientEvent, kind="input_audio_buffer.append"):
    audio: str = Field(max_length=MAX_AUDIO_CHARACTERS)


class AudioCommit(ClientEvent, kind="input_audio_buffer.commit"):
    """The client ends a turn."""


class AudioClear(ClientEvent, kind="input_audio_buffer.clear"):
    """Drop audio that is not committed."""


class OutputAudioClear(ClientEvent, kind="output_audio_buffer.clear"):
    """Only for WebRTC and SIP."""


class ResponseAudio(Given):
    output: AudioOutput | None = None


class ResponseSettings(Given):
    """Settings of one response that differ from the session."""

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


class ResponseCreate(ClientEvent, kind="response.create"):
    response: ResponseSettings | None = None


class ResponseCancel(ClientEvent, kind="response.cancel"):
    response_id: str | None = None


class ItemCreate(ClientEvent, kind="conversation.item.create"):
    item: Item
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent, kind="conversation.item.retrieve"):
    item_id: str


class ItemTruncate(ClientEvent, kind="conversation.item.truncate"):
    item_id: str
    content_index: int = 0
    audio_end_ms: int = Field(ge=0)


class ItemDelete(ClientEvent, kind="conversation.item.delete"):
    item_id: str


def parse_event(values: dict[str, Any]) -> ClientEvent:
    """Parse an event; anything else is a ProtocolError, with the id of the event where it has one."""
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
