"""Items of a conversation, as they travel. Sound stays out of events, except where an item is retrieved."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from echat.serve.protocol.wire import Wire

Role = Literal["user", "assistant", "system"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
PartType = Literal["input_text", "input_audio", "output_text", "output_audio", "text", "audio", "input_image"]


class ContentPart(Wire):
    """A piece of a message: text, or sound and its words."""

    type: PartType
    text: str | None = None
    audio: str | None = None  # base64
    transcript: str | None = None

    @model_serializer(mode="wrap")
    def _says_that_words_are_unknown(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Clients expect the transcript of what the user said even where it is null."""
        told: dict[str, Any] = values(self)
        if self.type == "input_audio":
            told.setdefault("transcript", None)
        return told


class Item(Wire):
    """A message, a call of a function, or the result of one."""

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
    thought: dict[str, Any] | None = None  # echat's own: what the model thought before it answered
