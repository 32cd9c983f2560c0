"""uvicorn's protocols with patience that ends: for the head of a request, its body, and a reader.

A head has so many seconds; a body as well, and more for what comes at a fair rate; a client that takes none
of its answer is dropped. A connection is registered at the `door` while it waits for a request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from echat.serve.door import Door, Peer
from echat.serve.settings import Limits

FAIR_RATE = 16 * 2**10  # bytes a second that earn a body more time


class HttpConnection(H11Protocol):
    """One connection over which requests come; a subclass knows its `door` and `limits`."""

    door: Door
    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer: Peer = transport.get_extra_info("peername") or ("unknown", 0)
        self._deadline: asyncio.TimerHandle | None = None
        self._n_received = 0
        self._unread: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._n_received += len(data)
        super().data_received(data)
        if self.transport.get_protocol() is self:  # not upgraded to a WebSocket
            self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._settle()
        self.door.work(self._peer)
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_protocol() is self:
            self._settle()
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        self._stop(self._unread)
        super().connection_lost(exc)

    # --- waiting for a request

    def _watch(self) -> None:
        """Set or clear the deadline of what is expected next."""
        if self.transport.is_closing():
            return
        if self._is_answering:
            self._settle()
            self.door.work(self._peer)
            return
        self.door.wait(self._peer, self._give_up)
        if self._deadline is None and not self._is_resting:
            self._n_received = 0
            is_head = self.conn.their_state is h11.IDLE
            seconds = self.limits.header_seconds if is_head else self.limits.body_seconds
            self._deadline = self.loop.call_later(seconds, self._expire, is_head)

    @property
    def _is_answering(self) -> bool:
        """Is a whole request there that is not answered yet?"""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    @property
    def _is_resting(self) -> bool:
        """Between two requests: the time for that is `timeout_keep_alive`."""
        return self.timeout_keep_alive_task is not None

    def _expire(self, was_head: bool) -> None:
        self._deadline = None
        is_head = self.conn.their_state is h11.IDLE
        earned = self._n_received / FAIR_RATE >= self.limits.body_seconds / 2
        if is_head == was_head and (is_head or not earned):
            self._give_up()
        else:  # the body's time begins, or goes on
            self._watch()

    def _give_up(self) -> None:
        """Close; a handler that waits for a body is told that the client is gone."""
        self._settle()
        self.door.leave(self._peer)
        if self.scheme == "https":  # a farewell in TLS would be waited for
            self.transport.abort()
        else:
            self.transport.close()

    def _settle(self) -> None:
        self._stop(self._deadline)
        self._deadline = None

    # --- an answer that nobody takes

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self._unread)
        super().resume_writing()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def http_connections(door: Door, limits: Limits) -> type[HttpConnection]:
    """The protocol class of one server."""
    values: dict[str, Any] = {"door": door, "limits": limits}
    return type("HttpConnection", (HttpConnection,), values)
