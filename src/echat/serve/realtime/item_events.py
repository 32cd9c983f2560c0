"""What a client does to the conversation itself: make, fetch, shorten and delete items."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve.app_state import SessionContext
from echat.serve.protocol import client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import FormatName
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.protocol.wire_audio import Decoder
from echat.serve.realtime import conversation
from echat.serve.realtime.conversation import Entry, GeneratedAnswer

MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)


class ItemEventHandler:
    """Local to one session."""

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
        self.context.emit(
            server.ItemTruncated(
                item_id=event.item_id, content_index=event.content_index, audio_end_ms=event.audio_end_ms
            )
        )

    async def delete(self, event: client.ItemDelete) -> None:
        self.items.remove(event.item_id)
        self.context.emit(server.ItemDeleted(item_id=event.item_id))

    def to_entries(self, given: list[Item]) -> list[Entry]:
        """Items of a request, with references followed."""
        return [
            self.items.get(item.id or "") if item.type == "item_reference" else self.to_entry(item)
            for item in given
        ]

    def to_entry(self, given: Item) -> Entry:
        """A client's item, checked, its sound decoded."""
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
        """The sound of a part, which leaves the item."""
        samples = Decoder(name).push(decode_base64(part.audio or "", "item.content.audio"), last=True)
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
    """An item that is whole from the start."""
    item = entry.item.model_copy(deep=True)
    context.emit(server.ItemAdded(item=item, previous_item_id=before))
    context.emit(server.ItemDone(item=item, previous_item_id=before))


def decode_base64(audio: str, where: str) -> bytes:
    """The bytes of base64."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{where}: expected base64", param=where) from error
