"""Audio input and output of the terminal: sound devices, or files in real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from echat.audio.waveform import check, read, to_int16, write
from echat.serve.protocol.session import PCM_RATE
from echat.serve.terminal.playback import PlaybackQueue

PIECE = PCM_RATE // 25  # samples: 40 ms
TAIL_SECONDS = 1.5  # of silence after a file, so that its last turn ends
WITHOUT_DEVICES = "or use files: --input question.wav --output answer.wav"


class AudioIO(Protocol):
    """Recording and playback."""

    queue: PlaybackQueue
    delay_seconds: float  # output latency, from the queue to the loudspeaker
    greeting: str  # shown once it is open

    def pieces(self, is_idle: Callable[[], bool]) -> AsyncIterator[np.ndarray]:
        """Recorded pieces (960,) int16 at 24 kHz, in real time; files end once the conversation `is_idle`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class FileAudio:
    """Reads input from a WAV file in real time and writes playback to another."""

    delay_seconds = 0.0
    greeting = ""

    def __init__(self, source: Path, target: Path | None) -> None:
        self.queue, self.target = PlaybackQueue(), target
        waveform, rate = read(source, PCM_RATE, allow_silence=True)
        check(waveform, rate, str(source), allow_silence=True)
        self._input = to_int16(waveform)
        self.played: list[np.ndarray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.target is not None and self.played:
            write(self.target, np.concatenate(self.played).astype(np.float32) / 32768, PCM_RATE)

    async def pieces(self, is_idle: Callable[[], bool]) -> AsyncIterator[np.ndarray]:
        loop = asyncio.get_running_loop()
        due, end = loop.time(), len(self._input) + int(TAIL_SECONDS * PCM_RATE)
        position = 0
        while position < end or not is_idle():
            part = self._input[position : position + PIECE]
            yield np.pad(part, (0, PIECE - len(part)))
            self.played.append(self.queue.take(PIECE))
            position += PIECE
            due += PIECE / PCM_RATE
            await asyncio.sleep(max(0.0, due - loop.time()))


class DeviceAudio:
    """The microphone and loudspeaker of this machine."""

    greeting = "The microphone is on. Just speak; Ctrl-C ends the conversation."

    def __init__(self, name: int | str | None = None) -> None:
        self.queue, self.delay_seconds = PlaybackQueue(), 0.0
        self._sounddevice, self._name = import_sounddevice(), name
        self._stream: Any = None
        self._input: asyncio.Queue[np.ndarray] = asyncio.Queue()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def on_audio(recorded: np.ndarray, played: np.ndarray, *_: Any) -> None:  # in a thread of PortAudio
            played[:, 0] = self.queue.take(len(played))
            loop.call_soon_threadsafe(self._input.put_nowait, recorded[:, 0].copy())

        try:
            self._stream = self._sounddevice.Stream(
                samplerate=PCM_RATE,
                channels=1,
                dtype="int16",
                blocksize=PIECE,
                device=self._name,
                latency="low",
                callback=on_audio,
            )
            self._stream.start()
        except (self._sounddevice.PortAudioError, ValueError) as error:
            raise ValueError(
                f"sound: expected a microphone and a loudspeaker at {PCM_RATE} Hz, found none ({error}); "
                f"connect some, name others with --sound (see python -m sounddevice), {WITHOUT_DEVICES}"
            ) from error
        self.delay_seconds = float(self._stream.latency[1])
        return self

    def __exit__(self, *error: Any) -> None:
        if self._stream is not None:
            self._stream.close()

    async def pieces(self, is_idle: Callable[[], bool]) -> AsyncIterator[np.ndarray]:
        while True:
            yield await self._input.get()


def import_sounddevice() -> Any:
    """Import the sounddevice package; ValueError where PortAudio is missing."""
    try:
        import sounddevice
    except OSError as error:  # the package is there, PortAudio is not
        raise ValueError(
            f"sound: expected the PortAudio library, found none ({error}); "
            f"apt-get install libportaudio2, {WITHOUT_DEVICES}"
        ) from error
    return sounddevice
