"""A user of the voice server: speaks recordings in real time, and notes when what comes back."""

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection

RATE = 24_000
CHUNK_SECONDS = 0.02  # of sound in one event: what a browser sends
ROOM = np.round(np.random.default_rng(0).normal(0, 3, RATE)).astype("<i2").tobytes()  # a quiet room, 1 s


@dataclass
class Turn:
    """Moments of one exchange, seconds of the client's clock."""

    speech_end: float = 0.0  # the last sample of speech was sent
    stopped: float = 0.0  # `speech_stopped` came
    first_text: float = 0.0
    arrivals: list[tuple[float, float]] = field(default_factory=list)  # sound: when it came, its seconds
    status: str = ""

    @property
    def first_audio(self) -> float:
        return self.arrivals[0][0] if self.arrivals else float("nan")

    @property
    def gap(self) -> float:
        """Seconds in which playback that began with the first sample stood still."""
        missing, until = 0.0, 0.0
        for came, seconds in self.arrivals:
            if until and came > until:
                missing += came - until
            until = max(until, came) + seconds
        return missing


class User:
    """Speaks recordings in real time, and listens."""

    def __init__(self, talk: ClientConnection) -> None:
        self.talk = talk
        self.events: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())
        self._microphone: asyncio.Queue[bytes] = asyncio.Queue()
        self._speaker = asyncio.create_task(self._speak())
        self.spoken = asyncio.Event()

    async def _read(self) -> None:
        async for text in self.talk:
            await self.events.put((time.perf_counter(), json.loads(text)))
        await self.events.put((time.perf_counter(), {"type": "closed"}))

    async def _speak(self) -> None:
        """20 ms of sound every 20 ms, of a quiet room where there is no speech."""
        step, due, rest = int(RATE * CHUNK_SECONDS) * 2, time.perf_counter(), b""
        while True:
            if not rest and not self._microphone.empty():
                rest = self._microphone.get_nowait()
                self.began = time.perf_counter()
            chunk, rest = rest[:step], rest[step:]
            data = (chunk + ROOM)[:step]
            event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}
            await self.talk.send(json.dumps(event))
            if chunk and not rest:
                self.ended = time.perf_counter()
                self.spoken.set()
            due += CHUNK_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    def say(self, sound: bytes) -> None:
        self.spoken.clear()
        self._microphone.put_nowait(sound)

    async def until(self, kind: str, timeout: float = 60.0) -> tuple[float, dict[str, Any]]:
        async with asyncio.timeout(timeout):
            while True:
                came, event = await self.events.get()
                if event["type"] == kind:
                    return came, event
                if event["type"] in ("error", "closed"):
                    raise RuntimeError(f"expected {kind}, found {event}")

    async def turn(self, sound: bytes) -> Turn:
        """Ask, and hear the whole answer."""
        turn = Turn()
        self.say(sound)
        await self.spoken.wait()
        turn.speech_end = self.ended
        turn.stopped, _ = await self.until("input_audio_buffer.speech_stopped")
        async with asyncio.timeout(120):
            while True:
                came, event = await self.events.get()
                if event["type"] == "response.output_audio.delta":
                    turn.arrivals.append((came, len(base64.b64decode(event["delta"])) / 2 / RATE))
                elif event["type"] == "response.output_audio_transcript.delta":
                    turn.first_text = turn.first_text or came
                elif event["type"] == "response.done":
                    turn.status = event["response"]["status"]
                    return turn
                elif event["type"] == "error":
                    raise RuntimeError(str(event))

    async def interrupt(self, sound: bytes) -> float:
        """Speak into an answer that is being played; seconds from the first sample to `speech_started`."""
        while not self.events.empty():
            self.events.get_nowait()
        self.say(sound)
        came, _ = await self.until("input_audio_buffer.speech_started")
        return came - self.began

    async def close(self) -> None:
        self._speaker.cancel()
        self._reader.cancel()
        await self.talk.close()
