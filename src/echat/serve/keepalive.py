"""Pings that tell a dead connection from a busy one."""

from __future__ import annotations

import asyncio


def patient_protocol() -> type[asyncio.Protocol]:
    """uvicorn's WebSocket protocol, for which any byte of the client is a sign of life.

    The answer to a ping arrives behind the sound that was sent before it. From a client that sends faster
    than it is heard, that is later than the time-out; and while reading is paused, nothing arrives.
    """
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class PatientProtocol(WebSocketsSansIOProtocol):
        heard_since_ping = False

        def data_received(self, data: bytes) -> None:
            self.heard_since_ping = True
            super().data_received(data)

        def send_keepalive_ping(self) -> None:
            self.heard_since_ping = False
            super().send_keepalive_ping()

        def keepalive_timeout(self) -> None:
            if self.heard_since_ping or self.read_paused:
                self.pong_timer = None
                self.schedule_ping()
            else:
                super().keepalive_timeout()

    return PatientProtocol
