"""What waits to be sent to one client. Bounded: of a slow reader, sound is dropped and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Letter:
    """One message; `audio_ms` of sound for `response_id` in it."""

    text: str
    response_id: str | None = None
    audio_ms: int = 0


class Outbox:
    """Messages in order. Events without sound always fit; a reader that takes none of them is cut off by the
    server."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.is_closed = False
        self._letters: deque[Letter] = deque()
        self._changed = asyncio.Event()

    def put(self, letter: Letter) -> bool:
        """Is it on its way? Sound for which there is no room is not."""
        if letter.audio_ms and self.n_bytes + len(letter.text) > self.max_bytes:
            return False
        self._letters.append(letter)
        self.n_bytes += len(letter.text)
        self._changed.set()
        return True

    @property
    def is_overfull(self) -> bool:
        """Are even events without sound too many for this reader?"""
        return self.n_bytes > 2 * self.max_bytes

    def take_back(self, response_id: str) -> int:
        """Remove the sound of a response that is not sent yet; how many milliseconds it was."""
        kept = deque(letter for letter in self._letters if not self._is_sound_of(letter, response_id))
        gone = sum(letter.audio_ms for letter in self._letters) - sum(letter.audio_ms for letter in kept)
        self._letters = kept
        self.n_bytes = sum(len(letter.text) for letter in kept)
        return gone

    @staticmethod
    def _is_sound_of(letter: Letter, response_id: str) -> bool:
        return letter.audio_ms > 0 and letter.response_id == response_id

    async def take(self) -> Letter | None:
        """The next message; None when there will be no more."""
        while not self._letters:
            if self.is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        letter = self._letters.popleft()
        self.n_bytes -= len(letter.text)
        return letter

    def close(self) -> None:
        """Nothing more is put in; what waits is still sent."""
        self.is_closed = True
        self._changed.set()
