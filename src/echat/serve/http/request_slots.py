"""Concurrency limit of HTTP requests that compute, and the streaming responses that hold a slot of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from fastapi import Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from echat.serve.app_state import App
from echat.serve.async_engine import request_lane
from echat.serve.http.errors import APIError
from echat.serve.protocol.json_text import write_json
from echat.serve.work_queue import Lane

LANE_WIDTH = 4  # jobs of one client that run at once

log = logging.getLogger("echat.serve")


def client_name(request: Request) -> str:
    """The key or address under which the middleware counts this client."""
    return str(request.scope.get("echat.client", ""))


class RequestSlots:
    """The slots of a server: limits of concurrent requests in total and per client. The jobs of one client
    share a lane of the work queue."""

    def __init__(self, app: App) -> None:
        self.app, self.in_use = app, 0
        self._per_client: Counter[str] = Counter()
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, client: str) -> AsyncIterator[RequestSlot]:
        """A slot for a client, or 429. It is released at the end of the block, or of the stream made from
        it."""
        limits = self.app.config.limits
        is_full = self.in_use >= limits.requests
        if is_full or self._per_client[client] >= limits.requests_per_client:
            self.app.metrics.busy.inc()
            most = f"{limits.requests} requests compute" if is_full else "these are this client's requests"
            name = "limits.requests" if is_full else "limits.requests_per_client"
            raise APIError(429, f"the server is busy: {most} already ({name}); try again", "server_busy")
        self.in_use += 1
        self._per_client[client] += 1
        slot = RequestSlot(self, client)
        try:
            yield slot
        finally:
            if not slot.is_streaming:
                self.release(slot)

    def lane(self, client: str) -> Lane:
        """The client's lane of the work queue; the same one as long as any of its requests holds it."""
        lane = self._lanes.get(client)
        if lane is None:
            lane = self._lanes[client] = self.app.async_engine.lane(LANE_WIDTH)
        return lane

    def release(self, slot: RequestSlot) -> None:
        self.in_use -= 1
        self._per_client[slot.client] -= 1
        self._per_client += Counter()  # drop zeros


class RequestSlot:
    """One request that computes."""

    def __init__(self, slots: RequestSlots, client: str) -> None:
        self.slots, self.client, self.is_streaming = slots, client, False
        self.lane = slots.lane(client)  # a reference, so that all requests of the client find the same lane
        request_lane.set(self.lane)

    def streaming(self, pieces: AsyncIterator[bytes], media_type: str) -> Response:
        """A response that holds the slot until its last piece is sent, or the client has left."""
        self.is_streaming = True
        return _SlotStreamingResponse(self, pieces, media_type)


class _SlotStreamingResponse(StreamingResponse):
    def __init__(self, slot: RequestSlot, pieces: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._slot, self._pieces = slot, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A failure before the first piece becomes an error response, not half a stream.
            self.body_iterator = _chain(await anext(self._pieces, b""), self._pieces)
            await super().__call__(scope, receive, send)
        finally:
            self._slot.slots.release(self._slot)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def with_error_event(pieces: AsyncIterator[bytes], *last: bytes) -> AsyncIterator[bytes]:
    """Server-sent events, where a failure after the first one ends with an error event, followed by
    `last`."""
    is_started = False
    try:
        async for piece in pieces:
            yield piece
            is_started = True
    except Exception as error:
        if not is_started:
            raise
        if isinstance(error, ValueError):
            failure = APIError(400, str(error), "stream_failed")
        else:
            log.error("a stream failed", exc_info=error)
            message = "the answer failed by an error of the server; ask again"
            failure = APIError(500, message, "stream_failed")
        yield sse(failure.values)
        for piece in last:
            yield piece


def sse(values: Any) -> bytes:
    """One server-sent event."""
    text = values if isinstance(values, str) else write_json(values)
    return f"data: {text}\n\n".encode()
