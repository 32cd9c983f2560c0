"""Conversation items of the protocol. They have no audio in events, except where an item is retrieved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from echat.serve.protocol.wire import Wire

Role = Literal["user", "assistant", "system", "developer"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
PartType = Literal["input_text", "input_audio", "output_text", "output_audio", "text", "audio", "input_image"]


class Given(Wire):
    """Part of a client event. A null where the protocol has none counts as missing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kept = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {name: value for name, value in values.items() if value is not None or name in kept}


class ContentPart(Given):
    """A content part of a message: text, or audio with its transcript."""

    type: PartType
    text: str | None = None
    audio: str | None = None  # base64
    transcript: str | None = None

    @model_serializer(mode="wrap")
    def _with_null_transcript(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Clients expect the transcript of input audio even if it is null."""
        dumped: dict[str, Any] = values(self)
        if self.type == "input_audio":
            dumped.setdefault("transcript", None)
        return dumped


class Item(Given):
    """A message, a function call, or its output."""

    id: str | None = Field(None, max_length=64)
    object: Literal["realtime.item"] = "realtime.item"
    type: Literal["message", "function_call", "function_call_output", "item_reference"] = "message"
    role: Role | None = None
    status: ItemStatus | None = None
    content: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    thought: dict[str, Any] | None = None  # extension: the thought before the answer
