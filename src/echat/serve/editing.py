"""What a client does to the conversation itself: make, fetch, shorten and delete items."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import MIN_SECONDS
from echat.serve import items as keeping
from echat.serve.items import Entry, Spoken
from echat.serve.protocol import client, server
from echat.serve.protocol.items import ContentPart, Item
from echat.serve.protocol.session import FormatName
from echat.serve.protocol.wire import ProtocolError, new_id
from echat.serve.state import Talk
from echat.serve.wire_audio import Decoder

MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)


class Editing:
    """Local to one session."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.items = talk, talk.items

    async def create(self, event: client.ItemCreate) -> None:
        entry = self.entry_of(event.item)
        tell_item(self.talk, entry, self.items.add(entry, event.previous_item_id))

    async def retrieve(self, event: client.ItemRetrieve) -> None:
        try:
            item = keeping.with_audio(self.items.get(event.item_id))
        except ProtocolError as error:
            error.code = "item_retrieve_invalid_item_id"  # clients know this case by its code
            raise
        self.talk.emit(server.ItemRetrieved(item=item))

    async def truncate(self, event: client.ItemTruncate) -> None:
        keeping.truncate(self.items.get(event.item_id), event.audio_end_ms, event.content_index)
        self.talk.emit(
            server.ItemTruncated(
                item_id=event.item_id, content_index=event.content_index, audio_end_ms=event.audio_end_ms
            )
        )

    async def delete(self, event: client.ItemDelete) -> None:
        self.items.remove(event.item_id)
        self.talk.emit(server.ItemDeleted(item_id=event.item_id))

    def entries_of(self, given: list[Item]) -> list[Entry]:
        """Items of a request, with references followed."""
        return [
            self.items.get(item.id or "") if item.type == "item_reference" else self.entry_of(item)
            for item in given
        ]

    def entry_of(self, given: Item) -> Entry:
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
            return Entry(item, spoken=Spoken(text=keeping.text_of(item), is_whole=True))
        name = self.talk.session.audio.input.format.type
        sounds = [self._decoded(part, name) for part in parts if part.type == "input_audio"]
        return Entry(item, sound=np.concatenate(sounds) if sounds else None)

    def _decoded(self, part: ContentPart, name: FormatName) -> np.ndarray:
        """The sound of a part, which leaves the item."""
        samples = Decoder(name).push(decoded(part.audio or "", "item.content.audio"), last=True)
        part.audio = None
        most = self.talk.config.limits.question_seconds
        if not MIN_SAMPLES <= len(samples) <= most * SAMPLE_RATE:
            raise ProtocolError(
                f"item.content.audio: expected {MIN_SECONDS:g} to {most:g} s of sound, "
                f"found {len(samples) / SAMPLE_RATE:.3f} s",
                param="item.content.audio",
            )
        return samples


def tell_item(talk: Talk, entry: Entry, before: str | None) -> None:
    """An item that is whole from the start."""
    item = entry.item.model_copy(deep=True)
    talk.emit(server.ItemAdded(item=item, previous_item_id=before))
    talk.emit(server.ItemDone(item=item, previous_item_id=before))


def decoded(audio: str, where: str) -> bytes:
    """The bytes of base64."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{where}: expected base64", param=where) from error
