"""Size limits of client messages, besides their audio.

The number of values is checked before a message is parsed, because parsing millions of them blocks the
server; the sizes of texts before it is handled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from echat.serve.protocol import client
from echat.serve.protocol.items import Item
from echat.serve.protocol.wire import ProtocolError
from echat.serve.settings import Limits

UNCHECKED_CHARACTERS = 2**16  # characters of JSON that are parsed quickly in any case


def check_values(text: str | bytes, limits: Limits) -> None:
    """Refuse JSON with too many values: each but the first needs a comma or an opening bracket. Those in
    strings count as well."""
    if len(text) <= UNCHECKED_CHARACTERS:
        return
    marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    found = sum(text.count(mark) for mark in marks)
    if found > limits.message_values:
        raise ProtocolError(
            f"message: expected JSON of at most {limits.message_values} values (limits.message_values), "
            f"found about {found}; send less at once",
            "message_too_large",
        )


def check_sizes(event: client.ClientEvent, n_characters: int, limits: Limits) -> None:
    """Refuse an event (of `n_characters` as JSON) with a text that is too long, or with too much besides
    audio."""
    for where, text in _texts(event):
        check_text(where, text, limits)
    besides = n_characters - sum(_audio_sizes(event))
    if besides > limits.fields_bytes:
        raise ProtocolError(
            f"{event.kind}: expected at most {limits.fields_bytes} bytes besides sound "
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
    """Characters of base64 in an event."""
    if isinstance(event, client.AudioAppend):
        yield len(event.audio)
    for _, item in _items(event):
        yield from (len(part.audio or "") for part in item.content or [])
