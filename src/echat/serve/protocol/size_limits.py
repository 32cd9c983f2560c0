"""What a message of a client may hold besides its sound.

The number of its values is looked at before it is parsed, because parsing millions of them stops the server
for everybody; the sizes before anything is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from echat.serve.protocol import client
from echat.serve.protocol.items import Item
from echat.serve.protocol.wire import ProtocolError
from echat.serve.settings import Limits

UNCHECKED_CHARACTERS = 2**16  # characters of JSON that are parsed in no time, whatever they are


def check_values(text: str | bytes, limits: Limits) -> None:
    """Refuse JSON text of too many values. Each but the first needs a comma or an opening bracket; those in
    strings count as well."""
    if len(text) <= UNCHECKED_CHARACTERS:
        return
    if isinstance(text, bytes):
        found = text.count(b",") + text.count(b"[") + text.count(b"{")
    else:
        found = text.count(",") + text.count("[") + text.count("{")
    if found > limits.message_values:
        raise ProtocolError(
            f"message: expected JSON of at most {limits.message_values} values (limits.message_values), "
            f"found about {found}; send less at once",
            "message_too_large",
        )


def check_sizes(event: client.ClientEvent, n_characters: int, limits: Limits) -> None:
    """Refuse an event of so many characters whose texts are too long, or all that is not sound together."""
    for where, text in _texts(event):
        check_text(where, text, limits)
    besides = n_characters - sum(_audio_sizes(event))
    if besides > limits.fields_bytes:
        raise ProtocolError(
            f"{event.type}: expected at most {limits.fields_bytes} bytes besides sound "
            f"(limits.fields_bytes), found {besides}; send less at once",
            "message_too_large",
        )


def check_text(where: str, text: object, limits: Limits) -> None:
    """Refuse a typed text that is too long."""
    if isinstance(text, str) and len(text) > limits.text_characters:
        raise ProtocolError(
            f"{where}: expected at most {limits.text_characters} characters (limits.text_characters), found "
            f"{len(text)}; shorten it, or send it as several messages",
            "text_too_long",
            where,
        )


def _items(event: client.ClientEvent) -> Iterator[tuple[str, Item]]:
    if isinstance(event, client.ItemCreate):
        yield "item", event.item
    elif isinstance(event, client.ResponseCreate) and event.response is not None:
        for index, item in enumerate(event.response.input or []):
            yield f"response.input.{index}", item


def _texts(event: client.ClientEvent) -> Iterator[tuple[str, object]]:
    if isinstance(event, client.SessionUpdate):
        yield "session.instructions", event.session.get("instructions")
    if isinstance(event, client.ResponseCreate) and event.response is not None:
        yield "response.instructions", event.response.instructions
    for where, item in _items(event):
        for index, part in enumerate(item.content or []):
            yield f"{where}.content.{index}.text", part.text


def _audio_sizes(event: client.ClientEvent) -> Iterator[int]:
    """Characters of base64."""
    if isinstance(event, client.AudioAppend):
        yield len(event.audio)
    for _, item in _items(event):
        yield from (len(part.audio or "") for part in item.content or [])
