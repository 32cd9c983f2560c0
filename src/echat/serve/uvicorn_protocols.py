"""uvicorn's HTTP and WebSocket protocols with time-outs for request headers, request bodies and slow readers.

A body that arrives at a minimum rate has more time; a client that reads none of its response is disconnected.
While a connection waits for a request, it is registered at the `connection_limiter`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from echat.serve.connection_limiter import ConnectionLimiter, Peer
from echat.serve.settings import Limits

FAIR_RATE = 16 * 2**10  # bytes a second at which a body has more time


class HttpConnection(H11Protocol):
    """One HTTP connection; `make_http_protocol` sets `connection_limiter` and `limits` in a subclass."""

    connection_limiter: ConnectionLimiter
    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer: Peer = transport.get_extra_info("peername") or ("unknown", 0)
        self._deadline: asyncio.TimerHandle | None = None
        self._n_received = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._update_deadline()

    def data_received(self, data: bytes) -> None:
        self._n_received += len(data)
        super().data_received(data)
        if self.transport.get_protocol() is self:  # not upgraded to a WebSocket
            self._update_deadline()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._cancel_deadline()
        self.connection_limiter.mark_active(self._peer)
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_protocol() is self:
            self._cancel_deadline()
            self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._cancel(self._write_timer)
        super().connection_lost(exc)

    # --- waiting for a request

    def _update_deadline(self) -> None:
        """Set or clear the deadline of the next part of a request."""
        if self.transport.is_closing():
            return
        if self._is_answering:
            self._cancel_deadline()
            self.connection_limiter.mark_active(self._peer)
            return
        self.connection_limiter.mark_waiting(self._peer, self._drop)
        if self._deadline is None and not self._is_idle:
            self._n_received = 0
            is_head = self.conn.their_state is h11.IDLE
            seconds = self.limits.header_seconds if is_head else self.limits.body_seconds
            self._deadline = self.loop.call_later(seconds, self._expire, is_head)

    @property
    def _is_answering(self) -> bool:
        """Is there a complete request without a complete response?"""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    @property
    def _is_idle(self) -> bool:
        """Is it between two requests? uvicorn's `timeout_keep_alive` limits that."""
        return self.timeout_keep_alive_task is not None

    def _expire(self, was_head: bool) -> None:
        self._deadline = None
        is_head = self.conn.their_state is h11.IDLE
        earned = self._n_received / FAIR_RATE >= self.limits.body_seconds / 2
        if is_head == was_head and (is_head or not earned):
            self._drop()
        else:  # the time of the body starts, or is extended
            self._update_deadline()

    def _drop(self) -> None:
        """Close; a handler that waits for a body receives a disconnect."""
        self._cancel_deadline()
        self.connection_limiter.release(self._peer)
        if self.scheme == "https":  # a TLS shutdown would wait for the client
            self.transport.abort()
        else:
            self.transport.close()

    def _cancel_deadline(self) -> None:
        self._cancel(self._deadline)
        self._deadline = None

    # --- waiting for a reader (back-pressure)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel(self._write_timer)
        super().resume_writing()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def make_http_protocol(connection_limiter: ConnectionLimiter, limits: Limits) -> type[HttpConnection]:
    """The HTTP protocol class of one server."""
    values: dict[str, Any] = {"connection_limiter": connection_limiter, "limits": limits}
    return type("HttpConnection", (HttpConnection,), values)


# --- WebSocket keep-alive


def make_websocket_protocol() -> type[asyncio.Protocol]:
    """uvicorn's WebSocket protocol, where any byte of the client keeps the connection alive.

    A pong arrives after the audio that was sent before it. From a client that sends faster than the server
    processes, that is later than the time-out; and while reading is paused, nothing arrives.
    """
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class KeepaliveProtocol(WebSocketsSansIOProtocol):
        received_since_ping = False

        def data_received(self, data: bytes) -> None:
            self.received_since_ping = True
            super().data_received(data)

        def send_keepalive_ping(self) -> None:
            self.received_since_ping = False
            super().send_keepalive_ping()

        def keepalive_timeout(self) -> None:
            if self.received_since_ping or self.read_paused:
                self.pong_timer = None
                self.schedule_ping()
            else:
                super().keepalive_timeout()

    return KeepaliveProtocol
