"""Handlers of the `conversation.item.*` events of a client: create, retrieve, truncate and delete items."""

from __future__ import annotations

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve.protocol import client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import FormatName
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.protocol.wire_audio import MIN_SAMPLES, AudioDecoder, decode_base64
from echat.serve.realtime import conversation
from echat.serve.realtime.conversation import Entry, GeneratedAnswer
from echat.serve.realtime.session_context import SessionContext


class ItemEventHandler:
    """The handlers of one session."""

    def __init__(self, context: SessionContext) -> None:
        self.context, self.items = context, context.items

    async def create(self, event: client.ItemCreate) -> None:
        entry = self.to_entry(event.item)
        emit_item(self.context, entry, self.items.add(entry, event.previous_item_id))

    async def retrieve(self, event: client.ItemRetrieve) -> None:
        try:
            item = conversation.with_audio(self.items.get(event.item_id))
        except ProtocolError as error:
            error.code = "item_retrieve_invalid_item_id"  # clients know this case by its code
            raise
        self.context.emit(server.ItemRetrieved(item=item))

    async def truncate(self, event: client.ItemTruncate) -> None:
        conversation.truncate(self.items.get(event.item_id), event.audio_end_ms, event.content_index)
        values = event.model_dump(include={"item_id", "content_index", "audio_end_ms"})
        self.context.emit(server.ItemTruncated(**values))

    async def delete(self, event: client.ItemDelete) -> None:
        self.items.remove(event.item_id)
        self.context.emit(server.ItemDeleted(item_id=event.item_id))

    def to_entries(self, given: list[Item]) -> list[Entry]:
        """Items of a `response.create` event, with references resolved."""
        return [
            self.items.get(item.id or "") if item.type == "item_reference" else self.to_entry(item)
            for item in given
        ]

    def to_entry(self, given: Item) -> Entry:
        """A client's item, validated, its audio decoded."""
        item = given.model_copy(deep=True)
        item.id, item.status = item.id or new_id("item"), "completed"
        if item.type != "message":
            return Entry(item)
        if item.role is None:
            raise ProtocolError("item.role: expected user, assistant or system", param="item.role")
        parts = item.content or []
        if item.role == "assistant":
            if any(part.type in ("output_audio", "audio") for part in parts):
                raise ProtocolError("item.content: answers cannot be given as audio", param="item.content")
            return Entry(item, generated=GeneratedAnswer(text=conversation.text_of(item), is_whole=True))
        name = self.context.session.audio.input.format.type
        sounds = [self._decode_part(part, name) for part in parts if part.type == "input_audio"]
        return Entry(item, samples=np.concatenate(sounds) if sounds else None)

    def _decode_part(self, part: ContentPart, name: FormatName) -> np.ndarray:
        """Decode the audio of a content part and remove it from the item."""
        samples = AudioDecoder(name).push(decode_base64(part.audio or "", "item.content.audio"), last=True)
        part.audio = None
        most = self.context.config.limits.question_seconds
        if not MIN_SAMPLES <= len(samples) <= most * SAMPLE_RATE:
            raise ProtocolError(
                f"item.content.audio: expected {MIN_SECONDS:g} to {most:g} s of sound, "
                f"found {len(samples) / SAMPLE_RATE:.3f} s",
                param="item.content.audio",
            )
        return samples


def emit_item(context: SessionContext, entry: Entry, before: str | None) -> None:
    """Emit the events of a new item that is already complete."""
    item = entry.item.model_copy(deep=True)
    context.emit(server.ItemAdded(item=item, previous_item_id=before))
    context.emit(server.ItemDone(item=item, previous_item_id=before))
