"""A conversation: sound goes into a session, what it says is told and played."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from echat.serve.outbox import Outbox
from echat.serve.protocol.session import PCM_RATE, Think
from echat.serve.session import RealtimeSession
from echat.serve.state import House
from echat.serve.terminal.sounds import SoundPlace

ECHO_SECONDS = 0.3  # that a room goes on after the loudspeaker
Tell = Callable[[Literal["you", "thought", "echat", "note"], str], None]


class Talking:
    """One person and one model."""

    def __init__(
        self,
        house: House,
        sound: SoundPlace,
        tell: Tell,
        think: Think = "label",
        voice: str | None = None,
        listens_while_speaking: bool = True,
    ) -> None:
        """`listens_while_speaking`: False where loudspeaker and microphone hear each other."""
        self.sound, self.tell, self.think, self.voice = sound, tell, think, voice
        self.listens_while_speaking = listens_while_speaking
        self.outbox = Outbox(house.config.limits.unsent_bytes)
        self.session = RealtimeSession(house, self.outbox)
        self._turn = asyncio.Lock()  # a session takes one event after the other
        self.cut: dict[str, int] = {}  # milliseconds that were heard of answers that were interrupted
        self._under_way: str | None = None  # the answer of which more may come
        self._sounding: str | None = None  # the answer of which sound has come
        self._quiet_seconds = 0.0  # since the last sound of an answer

    async def run(self) -> None:
        """Talk until the sound ends, or for ever."""
        self.session.open()
        voice = {"output": {"voice": self.voice}} if self.voice else {}
        options = {"think": self.think, "show_thought": True, "pause": True}
        audio = {"input": {"transcription": {}}, **voice}
        reader = asyncio.create_task(self._read())
        await self._send("session.update", session={"type": "realtime", "audio": audio, "echat": options})
        try:
            with self.sound:
                if self.sound.greeting:
                    self.tell("note", self.sound.greeting)
                async for piece in self.sound.pieces(self._is_idle):
                    await self._hear(piece)
                    if reader.done():
                        await reader
        finally:
            await self.session.close()
            self.outbox.close()
            await reader

    async def _hear(self, piece: np.ndarray) -> None:
        if not self.listens_while_speaking and self._fills_the_room(len(piece) / PCM_RATE):
            piece = np.zeros_like(piece)
        await self._send("input_audio_buffer.append", audio=base64.b64encode(piece.tobytes()).decode())

    def _fills_the_room(self, seconds: float) -> bool:
        """Does an answer sound, or did it a moment ago? `seconds` have passed since the last call."""
        has_more = self._under_way is not None and self._under_way == self._sounding
        is_sounding = has_more or not self.sound.queue.is_empty
        self._quiet_seconds = 0.0 if is_sounding else self._quiet_seconds + seconds
        return self._sounding is not None and self._quiet_seconds < self.sound.delay_seconds + ECHO_SECONDS

    async def _send(self, kind: str, **fields: Any) -> None:
        async with self._turn:
            await self.session.handle(json.dumps({"type": kind, **fields}))

    def _is_idle(self) -> bool:
        busy = self.session.answering.is_busy or self.session.user_turns.listener.is_in_turn
        return not busy and self.sound.queue.is_empty

    async def _read(self) -> None:
        while (letter := await self.outbox.take()) is not None:
            await self._on(json.loads(letter.text))

    async def _on(self, event: dict[str, Any]) -> None:
        queue = self.sound.queue
        match event["type"]:
            case "input_audio_buffer.speech_suspected":
                queue.pause()
            case "input_audio_buffer.speech_dismissed":
                queue.pause(False)
            case "input_audio_buffer.speech_started":
                await self._interrupt()
            case "conversation.item.input_audio_transcription.completed":
                self.tell("you", event["transcript"] or "(no words)")
            case "response.output_item.added":
                self._under_way = event["item"]["id"]
            case "response.thought.done":
                self.tell("thought", thought_line(event["thought"]))
            case "response.output_audio.delta" if event["item_id"] not in self.cut:
                self._sounding = event["item_id"]
                queue.push(event["item_id"], np.frombuffer(base64.b64decode(event["delta"]), "<i2"))
            case "response.done":
                self._done(event["response"])
            case "error":
                self.tell("note", event["error"]["message"])

    def _done(self, response: dict[str, Any]) -> None:
        self._under_way = None
        for item in response["output"]:
            words = "".join(part.get("transcript") or part.get("text") or "" for part in item["content"])
            cut = " (interrupted)" if response["status"] == "cancelled" else ""
            self.tell("echat", (words or "(nothing to say)") + cut)

    async def _interrupt(self) -> None:
        """The user speaks: be silent, and let the model know what was heard."""
        stopped = self.sound.queue.stop(self._under_way, self.sound.delay_seconds)
        if stopped is None:
            return
        item_id, heard_ms = stopped
        self.cut[item_id] = heard_ms
        await self._send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=heard_ms
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
