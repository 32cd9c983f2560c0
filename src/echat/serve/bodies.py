"""Bodies of HTTP requests: read whole before anything is done with them, bounded in size, one and all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from echat.serve.settings import Limits, MiB

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

AT_ONCE = 8  # largest bodies that all requests together may hold in memory
MOST_DRAINED = 128 * MiB  # of a body that is thrown away
DRAIN_SECONDS = 2.0  # in which some of it must come


class Refused(Exception):
    """An answer other than the one that was hoped for."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> bytes:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


class Bodies:
    """The bodies that are being read, or worked on."""

    def __init__(self, limits: Limits) -> None:
        self.most = limits.upload_bytes
        self.n_bytes = 0

    @asynccontextmanager
    async def whole(self, headers: dict[str, str], receive: Receive) -> AsyncIterator[Receive]:
        """Read the body; `receive` for the application, which gives it in one piece. ClientLeft where the
        connection ends before the body."""
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > self.most:
            raise self._too_large()
        pieces, size = [], 0
        try:
            async for piece in pieces_of(receive):
                pieces.append(piece)
                size += len(piece)
                self.n_bytes += len(piece)
                if size > self.most:
                    raise self._too_large()
                if self.n_bytes > AT_ONCE * self.most:
                    raise Refused(503, "too many bodies at once; try again", "server_busy", 5)
            yield _giving(pieces, receive)
        finally:
            self.n_bytes -= size

    def _too_large(self) -> Refused:
        message = f"expected a body of at most {self.most} bytes (limits.upload_bytes), found more; send less"
        return Refused(413, message, "request_too_large")


class ClientLeft(Exception):
    """The connection ended before the body did."""


async def pieces_of(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a body as they come."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _giving(pieces: list[bytes], receive: Receive) -> Receive:
    async def give() -> Message:
        if not pieces:
            return await receive()
        body = b"".join(pieces)
        pieces.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    return give


async def drain(headers: dict[str, str], receive: Receive) -> None:
    """Throw away a bounded part of a body that is not wanted. A connection that is closed while its client
    still sends is reset, and the client never reads why."""
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return
    left = MOST_DRAINED
    pieces = pieces_of(receive)
    try:
        while left > 0:
            left -= len(await asyncio.wait_for(anext(pieces), DRAIN_SECONDS))
    except (TimeoutError, StopAsyncIteration, ClientLeft):
        return
