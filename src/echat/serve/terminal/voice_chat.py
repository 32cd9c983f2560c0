"""Voice chat: sends audio input to a session, plays and shows its answers."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from echat.audio.vad import VoiceActivityDetector
from echat.infer.engine import Engine
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncEngine
from echat.serve.metrics import Metrics
from echat.serve.protocol.session import PCM_RATE, Think
from echat.serve.realtime.send_queue import SendQueue
from echat.serve.realtime.session import RealtimeSession
from echat.serve.settings import SWITCH_SECONDS, ServeConfig
from echat.serve.terminal.audio_io import AudioIO, DeviceAudio, FileAudio

ECHO_SECONDS = 0.3  # reverberation after the loudspeaker stops
Show = Callable[[Literal["you", "thought", "echat", "note"], str], None]


class VoiceChat:
    """One user and one model."""

    def __init__(
        self,
        app: App,
        audio: AudioIO,
        show: Show,
        think: Think = "label",
        voice: str | None = None,
        is_full_duplex: bool = True,
    ) -> None:
        """`is_full_duplex`: False where the microphone records the loudspeaker (no echo cancellation)."""
        self.audio, self.show, self.think, self.voice = audio, show, think, voice
        self.is_full_duplex = is_full_duplex
        self.send_queue = SendQueue(app.config.limits.unsent_bytes)
        self.session = RealtimeSession(app, self.send_queue)
        self._turn = asyncio.Lock()  # a session handles one event after the other
        self.cut: dict[str, int] = {}  # played milliseconds of interrupted answers
        self._active_item_id: str | None = None  # the answer that is not complete yet
        self._playing_item_id: str | None = None  # the answer of which audio has arrived
        self._quiet_seconds = 0.0  # since the last audio of an answer

    async def run(self) -> None:
        """Run until the audio input ends."""
        self.session.open()
        voice = {"output": {"voice": self.voice}} if self.voice else {}
        options = {"think": self.think, "show_thought": True, "pause": True}
        audio = {"input": {"transcription": {}}, **voice}
        reader = asyncio.create_task(self._read())
        await self._send("session.update", session={"type": "realtime", "audio": audio, "echat": options})
        try:
            with self.audio:
                if self.audio.greeting:
                    self.show("note", self.audio.greeting)
                async for piece in self.audio.pieces(self._is_idle):
                    await self._send_audio(piece)
                    if reader.done():
                        await reader
        finally:
            await self.session.close()
            self.send_queue.close()
            await reader

    async def _send_audio(self, piece: np.ndarray) -> None:
        if not self.is_full_duplex and self._is_echo_expected(len(piece) / PCM_RATE):
            piece = np.zeros_like(piece)
        await self._send("input_audio_buffer.append", audio=base64.b64encode(piece.tobytes()).decode())

    def _is_echo_expected(self, seconds: float) -> bool:
        """Is an answer being played, or was it shortly before? `seconds` have passed since the last call."""
        has_more = self._active_item_id is not None and self._active_item_id == self._playing_item_id
        is_playing = has_more or not self.audio.queue.is_empty
        self._quiet_seconds = 0.0 if is_playing else self._quiet_seconds + seconds
        is_recent = self._quiet_seconds < self.audio.delay_seconds + ECHO_SECONDS
        return self._playing_item_id is not None and is_recent

    async def _send(self, kind: str, **fields: Any) -> None:
        async with self._turn:
            await self.session.handle(json.dumps({"type": kind, **fields}))

    def _is_idle(self) -> bool:
        busy = self.session.response_manager.is_busy or self.session.input_manager.input_buffer.is_in_turn
        return not busy and self.audio.queue.is_empty

    async def _read(self) -> None:
        while (message := await self.send_queue.take()) is not None:
            await self._on(json.loads(message.text))

    async def _on(self, event: dict[str, Any]) -> None:
        queue = self.audio.queue
        match event["type"]:
            case "input_audio_buffer.speech_suspected":
                queue.pause()
            case "input_audio_buffer.speech_dismissed":
                queue.pause(False)
            case "input_audio_buffer.speech_started":
                await self._interrupt()
            case "conversation.item.input_audio_transcription.completed":
                self.show("you", event["transcript"] or "(no words)")
            case "response.output_item.added":
                self._active_item_id = event["item"]["id"]
            case "response.thought.done":
                self.show("thought", thought_line(event["thought"]))
            case "response.output_audio.delta" if event["item_id"] not in self.cut:
                self._playing_item_id = event["item_id"]
                queue.push(event["item_id"], np.frombuffer(base64.b64decode(event["delta"]), "<i2"))
            case "response.done":
                self._done(event["response"])
            case "error":
                self.show("note", event["error"]["message"])

    def _done(self, response: dict[str, Any]) -> None:
        self._active_item_id = None
        for item in response["output"]:
            text = "".join(part.get("transcript") or part.get("text") or "" for part in item["content"])
            cut = " (interrupted)" if response["status"] == "cancelled" else ""
            self.show("echat", (text or "(no answer)") + cut)

    async def _interrupt(self) -> None:
        """Barge-in: stop playback, and truncate the answer in the session to what was played."""
        stopped = self.audio.queue.stop(self._active_item_id, self.audio.delay_seconds)
        if stopped is None:
            return
        item_id, played_ms = stopped
        self.cut[item_id] = played_ms
        await self._send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=played_ms
        )


def thought_line(thought: dict[str, Any]) -> str:
    """A thought on one line."""
    if thought["form"] == "language":
        return str(thought.get("text", ""))
    labels = [
        f"{kind.replace('_', ' ')}: {value}"
        for kind, value in thought.items()
        if kind not in ("form", "transcript", "reply_emotion")
    ]
    return ", ".join(labels)


# --- `echat talk`: one conversation on this machine

THREADS = 4  # for one session


def run(
    engine: Engine,
    show: Show,
    think: Think,
    voice: str | None,
    source: Path | None,
    target: Path | None,
    device: int | str | None,
    is_full_duplex: bool,
) -> None:
    """Run until the input file ends, or Ctrl-C."""
    audio: AudioIO = FileAudio(source, target) if source is not None else DeviceAudio(device)
    sys.setswitchinterval(SWITCH_SECONDS)
    async_engine = AsyncEngine(engine, threads=THREADS)
    app = App(async_engine, ServeConfig(), VoiceActivityDetector(), Metrics())
    try:
        asyncio.run(VoiceChat(app, audio, show, think, voice, is_full_duplex).run())
    finally:
        async_engine.close()
