"""A user of the voice server: speaks recordings in real time, and notes when what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from benchmarks.serving.questions import Question

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


@dataclass(frozen=True)
class Interruption:
    """Seconds from the onset of speech until an answer that is being played falls silent."""

    paused: float  # `speech_suspected` came: clients that ask for `pause` are silent from here on
    stopped: float  # `speech_started` came: all are


class User:
    """A client that sends recordings in real time and receives the answers."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.events: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())
        self._microphone: asyncio.Queue[bytes] = asyncio.Queue()
        self._speaker = asyncio.create_task(self._speak())
        self.spoken = asyncio.Event()

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self.websocket:
                await self.events.put((time.perf_counter(), json.loads(text)))
        await self.events.put((time.perf_counter(), {"type": "closed"}))

    async def _speak(self) -> None:
        """20 ms of sound every 20 ms, of a quiet room where there is no speech; until the line is cut."""
        with suppress(ConnectionClosed):
            await self._speak_on()

    async def _speak_on(self) -> None:
        step, due, rest = int(RATE * CHUNK_SECONDS) * 2, time.perf_counter(), b""
        while True:
            if not rest and not self._microphone.empty():
                rest = self._microphone.get_nowait()
                self.began = time.perf_counter() - CHUNK_SECONDS  # sent when it was recorded to its end
            chunk, rest = rest[:step], rest[step:]
            data = (chunk + ROOM)[:step]
            event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}
            await self.websocket.send(json.dumps(event))
            if chunk and not rest:
                self.ended = time.perf_counter()
                self.spoken.set()
            due += CHUNK_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    def say(self, question: Question) -> None:
        self.spoken.clear()
        self._microphone.put_nowait(question.pcm)

    async def until(self, kind: str, timeout: float = 60.0) -> tuple[float, dict[str, Any]]:
        async with asyncio.timeout(timeout):
            while True:
                came, event = await self.events.get()
                if event["type"] == kind:
                    return came, event
                if event["type"] in ("error", "closed"):
                    raise RuntimeError(f"expected {kind}, found {event}")

    async def turn(self, question: Question) -> Turn:
        """Ask, and receive the whole answer."""
        turn = Turn()
        self.say(question)
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

    async def interrupt(self, question: Question) -> Interruption | None:
        """Speak into an answer that is being played; None: it was over already."""
        while not self.events.empty():
            self.events.get_nowait()
        self.say(question)
        suspected = None
        async with asyncio.timeout(60):
            while True:
                came, event = await self.events.get()
                if event["type"] == "input_audio_buffer.speech_suspected":
                    suspected = came  # if it is dismissed, another one follows
                elif event["type"] == "input_audio_buffer.speech_started":
                    break
                elif event["type"] in ("error", "closed"):
                    raise RuntimeError(f"expected speech_started, found {event}")
        onset = self.began + question.onset
        return None if suspected is None else Interruption(suspected - onset, came - onset)

    def hang_up(self) -> None:
        """Without a word of goodbye."""
        self.websocket.transport.abort()

    async def close(self) -> None:
        self._speaker.cancel()
        self._reader.cancel()
        await self.websocket.close()


@asynccontextmanager
async def session(
    url: str, think: str, silence_ms: int = 500, transcribes: bool = False
) -> AsyncIterator[User]:
    """A session that is ready: server VAD, with events of speculative interruptions."""
    async with connect(url, max_size=None, compression=None) as websocket:
        one = User(websocket)
        try:
            await one.until("session.created")
            detection = {"type": "server_vad", "silence_duration_ms": silence_ms}
            transcription = {"transcription": {"model": "echat-tiny"}} if transcribes else {}
            wanted = {
                "type": "realtime",
                "echat": {"think": think, "seed": 0, "pause": True},
                "audio": {"input": {"turn_detection": detection} | transcription},
            }
            await websocket.send(json.dumps({"type": "session.update", "session": wanted}))
            await one.until("session.updated")
            yield one
        finally:
            await one.close()
