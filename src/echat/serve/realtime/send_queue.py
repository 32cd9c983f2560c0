"""What waits to be sent to one client. Bounded: of a slow reader, sound is dropped and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class OutboundMessage:
    """One message; `audio_ms` of sound for `response_id` in it."""

    text: str
    response_id: str | None = None
    audio_ms: int = 0


class SendQueue:
    """Messages in order. Events without sound always fit; a reader that takes none of them is cut off by the
    server."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.is_closed = False
        self._messages: deque[OutboundMessage] = deque()
        self._changed = asyncio.Event()

    def put(self, message: OutboundMessage) -> bool:
        """Is it on its way? Sound for which there is no room is not."""
        if message.audio_ms and self.n_bytes + len(message.text) > self.max_bytes:
            return False
        self._messages.append(message)
        self.n_bytes += len(message.text)
        self._changed.set()
        return True

    @property
    def is_overfull(self) -> bool:
        """Are even events without sound too many for this reader?"""
        return self.n_bytes > 2 * self.max_bytes

    def take_back(self, response_id: str) -> int:
        """Remove the sound of a response that is not sent yet; how many milliseconds it was."""
        kept = deque(message for message in self._messages if not self._is_sound_of(message, response_id))
        gone = sum(message.audio_ms for message in self._messages) - sum(message.audio_ms for message in kept)
        self._messages = kept
        self.n_bytes = sum(len(message.text) for message in kept)
        return gone

    @staticmethod
    def _is_sound_of(message: OutboundMessage, response_id: str) -> bool:
        return message.audio_ms > 0 and message.response_id == response_id

    async def take(self) -> OutboundMessage | None:
        """The next message; None when there will be no more."""
        while not self._messages:
            if self.is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self.n_bytes -= len(message.text)
        return message

    def close(self) -> None:
        """Nothing more is put in; what waits is still sent."""
        self.is_closed = True
        self._changed.set()
