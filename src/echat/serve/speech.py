"""A text read aloud for one request: pieces of the engine in, bytes of a sound file out."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np

from echat.dialogue.turns import ask
from echat.infer.events import Reply
from echat.serve.sound_files import FileFormat, file_stream
from echat.serve.wire_audio import Encoder

if TYPE_CHECKING:
    from echat.infer.reading_aloud import Spoken
    from echat.serve.replies import Desk

log = logging.getLogger("echat.serve")


class Speech:
    """Local to one request. `begin` first: what cannot be read aloud is refused there, before any answer."""

    def __init__(self, desk: Desk, text: str, voice: str | None) -> None:
        self.doubtful: list[str] = []  # pieces whose length does not fit their words
        self._desk, self._stop = desk, threading.Event()
        self._under_way: threading.Event | None = None  # ends the reply that is being written
        self._pieces = desk.engine.read_aloud(text, voice, cancel=self._stop, write=self._write)
        self._first: Spoken | None = None

    async def begin(self) -> None:
        """Speak the first piece. Raises ValueError where there is nothing to say."""
        self._first = await self._next()

    async def file(self, name: FileFormat, speed: float) -> AsyncIterator[bytes]:
        """Bytes of the file while it is spoken."""
        file, encoder = file_stream(name), None
        piece = self._first
        try:
            while piece is not None:
                encoder = encoder or Encoder("audio/pcm", piece.rate, speed)
                if data := file.push(encoder.push(piece.waveform.numpy())):
                    yield data
                piece = await self._next()
        finally:
            self.cancel()
        rest = encoder.push(np.zeros(0, np.float32), last=True) if encoder else b""
        if data := file.push(rest) + file.finish():
            yield data

    def cancel(self) -> None:
        """Speak no further."""
        self._stop.set()
        if self._under_way is not None:
            self._under_way.set()

    async def _next(self) -> Spoken | None:
        piece = await self._desk.call(lambda: next(self._pieces, None))
        if piece is not None and piece.is_doubtful:
            self.doubtful.append(piece.text)
            log.warning("speech: the length of a piece of %d characters does not fit it", len(piece.text))
        return piece

    def _write(self, text: str, seed: int | None) -> Reply:
        """The ids of a piece, beside other replies."""
        self._under_way = cancel = threading.Event()
        if self._stop.is_set():
            cancel.set()
        answer = self._desk.scheduler.submit(ask(text=text), "tts", seed=seed, speak=False, cancel=cancel)
        return answer.reply()
