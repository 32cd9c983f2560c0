"""A telephone bridge: G.711 in both directions in frames of 20 ms, the session object sent back."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from echat.serve.protocol.wire_audio import AudioDecoder, AudioEncoder

FRAME = 160  # bytes, 20 ms of G.711
OLD_NAMES = {"audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}


def as_created(session: dict[str, Any], name: str) -> dict[str, Any]:
    """The server's session with the formats of the line."""
    audio = {side: {**session["audio"][side], "format": {"type": name}} for side in ("input", "output")}
    return {**session, "audio": audio}


def as_documented(session: dict[str, Any], name: str) -> dict[str, Any]:
    sides: dict[str, Any] = {
        "input": {"format": {"type": name}, "turn_detection": {"type": "server_vad"}},
        "output": {"format": {"type": name}, "voice": "alloy"},
    }
    return {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["audio"], "audio": sides}


def as_of_old(session: dict[str, Any], name: str) -> dict[str, Any]:
    formats = {"input_audio_format": OLD_NAMES[name], "output_audio_format": OLD_NAMES[name]}
    detection = {"turn_detection": {"type": "server_vad"}}
    return {**formats, **detection, "voice": "alloy", "modalities": ["text", "audio"], "temperature": 0.8}


class Call:
    """One call over a bridge."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.sound, self.words = b"", ""

    async def send(self, kind: str, **values: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **values}))

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of a kind; sound and words on the way are kept."""
        self.sound, self.words = b"", ""
        async with asyncio.timeout(120):
            while True:
                event = json.loads(await self.socket.recv())
                assert event["type"] != "error", event
                if event["type"] == "response.output_audio.delta":
                    self.sound += base64.b64decode(event["delta"])
                elif event["type"] == "response.output_audio_transcript.done":
                    self.words = event["transcript"]
                if event["type"] == kind:
                    return dict(event)

    def check_spoken(self, name: Any) -> None:
        """Was something said that is louder than noise?"""
        assert self.words and len(self.sound) > 4000
        assert abs(AudioDecoder(name).push(self.sound, last=True)).max() > 1000


@pytest.mark.parametrize("shape", [as_created, as_documented, as_of_old])
@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
@pytest.mark.slow
def test_a_call(live, question, quiet, name, shape):
    waveform = AudioDecoder("audio/pcm").push(quiet(0.5) + question + quiet(1.0), last=True) / 32768
    sound = AudioEncoder(name, 16_000).push(waveform, last=True)

    async def call() -> None:
        url = live.url.replace("http", "ws") + "/realtime?model=gpt-realtime"
        async with connect(url, additional_headers={"Authorization": "Bearer any"}) as socket:
            call = Call(socket)
            created = await call.until("session.created")
            await call.send("session.update", session=shape(created["session"], name))
            updated = (await call.until("session.updated"))["session"]
            assert updated["model"] == "echat-tiny"
            for side in ("input", "output"):
                assert updated["audio"][side]["format"] == {"type": name}
            await call.send("response.create", response={"instructions": "Greet the caller"})
            await call.until("response.done")
            call.check_spoken(name)
            for start in range(0, len(sound), FRAME):
                frame = base64.b64encode(sound[start : start + FRAME]).decode()
                await call.send("input_audio_buffer.append", audio=frame)
            done = await call.until("response.done")
            assert done["response"]["status"] == "completed"
            call.check_spoken(name)

    asyncio.run(call())
