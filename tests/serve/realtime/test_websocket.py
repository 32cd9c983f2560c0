"""One connection: what ends it and what does not."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections import deque
from typing import Any

import httpx
import pytest
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri


def address(live: Any, query: str = "") -> str:
    return live.url.replace("http", "ws") + "/realtime" + query


def numbers(live: Any) -> str:
    return httpx.get(live.url.replace("/v1", "/metrics")).text


def test_a_session_that_cannot_send_is_ended_and_counted(serving, monkeypatch):
    send = WebSocket.send_text

    async def broken(self: WebSocket, text: str) -> None:
        if "session.updated" in text:
            raise UnicodeEncodeError("utf-8", text, 0, 1, "cannot be sent")
        await send(self, text)

    monkeypatch.setattr(WebSocket, "send_text", broken)

    async def dialogue(url: str) -> int:
        async with connect(url) as connection:
            await connection.send(json.dumps({"type": "session.update", "session": {"type": "realtime"}}))
            with pytest.raises(ConnectionClosedError) as closed:
                while True:
                    await connection.recv()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code

    with serving() as live:
        assert asyncio.run(dialogue(address(live))) == 1011
        assert 'echat_errors_total{where="session"} 1.0' in numbers(live)


def test_a_transcription_session_is_requested_in_the_url(live):
    async def dialogue() -> dict[str, Any]:
        async with connect(address(live, "?model=gpt-4o-transcribe&intent=transcription")) as connection:
            created = json.loads(await connection.recv())
            return created["session"]

    session = asyncio.run(dialogue())
    assert (session["type"], session["model"]) == ("transcription", "echat-tiny")


class Mute:
    """A client that answers no ping."""

    def __init__(self, url: str) -> None:
        uri = parse_uri(url)
        self.protocol = ClientProtocol(uri)
        self.socket = socket.create_connection((uri.host, uri.port), timeout=60)
        self.events: deque[Any] = deque()
        self.protocol.send_request(self.protocol.connect())
        self._flush()

    def _flush(self) -> None:
        self.socket.sendall(b"".join(self.protocol.data_to_send()))

    def send(self, **event: Any) -> None:
        self.protocol.send_text(json.dumps(event).encode())
        self._flush()

    def next(self, *opcodes: Opcode) -> Frame:
        """The next frame of a kind."""
        for _ in range(10_000):
            while self.events:
                event = self.events.popleft()
                if isinstance(event, Frame) and event.opcode in opcodes:
                    return event
            data = self.socket.recv(65536)
            assert data, "the server hung up"
            self.protocol.receive_data(data)
            self.events += self.protocol.events_received()
            self.protocol.data_to_send()  # pongs, which stay here
        raise AssertionError(f"no {opcodes} came")

    def until_text(self, kind: str) -> dict[str, Any]:
        while (event := json.loads(self.next(Opcode.TEXT).data))["type"] != kind:
            pass
        return dict(event)


@pytest.fixture
def impatient(serving):
    """A server that pings often and soon has enough."""
    with serving() as live:
        live.server.config.ws_ping_interval, live.server.config.ws_ping_timeout = 0.05, 1.0
        yield live


@pytest.mark.slow
def test_any_data_keeps_a_connection_alive_and_silence_does_not(impatient):
    client = Mute(address(impatient))
    client.until_text("session.created")
    for _ in range(3):
        client.next(Opcode.PING)
        client.send(type="input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode())
    client.send(type="input_audio_buffer.clear")
    client.until_text("input_audio_buffer.cleared")
    closing = client.next(Opcode.CLOSE)
    assert int.from_bytes(closing.data[:2], "big") == 1011


@pytest.mark.slow
def test_a_client_is_kept_while_reading_is_paused(impatient, monkeypatch):
    from echat.serve.realtime.input_manager import InputManager

    clear, may_continue = InputManager.clear, asyncio.Event()
    loops = []

    async def slow(self: InputManager, event: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await may_continue.wait()
        await clear(self, event)

    monkeypatch.setattr(InputManager, "clear", slow)
    client = Mute(address(impatient))
    client.until_text("session.created")
    for _ in range(2):  # the second stays unread
        client.send(type="input_audio_buffer.clear")
    for _ in range(3):
        client.next(Opcode.PING)
    loops[0].call_soon_threadsafe(may_continue.set)
    client.until_text("input_audio_buffer.cleared")
    client.until_text("input_audio_buffer.cleared")
