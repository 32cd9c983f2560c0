"""A client of a session without a socket between them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from echat.serve.realtime.session import RealtimeSession


class SessionClient:
    """Sends events to a session and keeps those that it receives."""

    def __init__(self, session: RealtimeSession) -> None:
        self.session, self.received = session, []  # type: ignore[var-annotated]

    async def send(self, kind: str, **values: Any) -> None:
        await self.session.handle(json.dumps({"type": kind, **values}))

    async def say(self, sound: bytes, piece: int = 48_000) -> None:
        for start in range(0, len(sound), piece):
            chunk = base64.b64encode(sound[start : start + piece]).decode()
            await self.send("input_audio_buffer.append", audio=chunk)

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(600):
            while True:
                message = await self.session.context.send_queue.take()
                assert message is not None
                self.received.append(json.loads(message.text))
                if self.received[-1]["type"] == kind:
                    return self.received[-1]

    def waiting(self) -> list[str]:
        """Kinds of events that wait to be sent."""
        return [json.loads(message.text)["type"] for message in self.session.context.send_queue._messages]

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.received]
