"""Send queue of one client, with back-pressure: for a slow reader, audio is dropped and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class OutboundMessage:
    """One JSON message; `audio_ms` is the duration of the audio in it, of the response `response_id`."""

    text: str
    response_id: str | None = None
    audio_ms: int = 0


class SendQueue:
    """Messages in order. Events without audio are always accepted; the server disconnects a client that reads
    none of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.is_closed = False
        self._messages: deque[OutboundMessage] = deque()
        self._changed = asyncio.Event()

    def put(self, message: OutboundMessage) -> bool:
        """Append a message; False: it has audio for which there is no room, and is dropped."""
        if message.audio_ms and self.n_bytes + len(message.text) > self.max_bytes:
            return False
        self._messages.append(message)
        self.n_bytes += len(message.text)
        self._changed.set()
        return True

    @property
    def is_overfull(self) -> bool:
        """Is the queue far over its limit by events without audio?"""
        return self.n_bytes > 2 * self.max_bytes

    def take_back(self, response_id: str) -> int:
        """Remove the unsent audio of a response; returns its milliseconds."""
        kept = deque(
            message
            for message in self._messages
            if not message.audio_ms or message.response_id != response_id
        )
        gone = sum(message.audio_ms for message in self._messages) - sum(message.audio_ms for message in kept)
        self._messages = kept
        self.n_bytes = sum(len(message.text) for message in kept)
        return gone

    async def take(self) -> OutboundMessage | None:
        """The next message; None once the queue is closed and empty."""
        while not self._messages:
            if self.is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self.n_bytes -= len(message.text)
        return message

    def close(self) -> None:
        """End the queue; messages in it are still sent."""
        self.is_closed = True
        self._changed.set()
