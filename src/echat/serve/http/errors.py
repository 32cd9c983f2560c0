"""Errors over HTTP, in the shape of the public API, and the one place where requests that compute begin."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from echat.serve.app_state import App
from echat.serve.async_engine import request_lane
from echat.serve.protocol.json_text import write_json
from echat.serve.protocol.size_limits import check_values
from echat.serve.protocol.wire import ProtocolError
from echat.serve.work_queue import Lane

AT_ONCE = 4  # pieces of work that are done for one client

log = logging.getLogger("echat.serve")


class APIError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def error_response(status: int, message: str, code: str | None = None, param: str | None = None) -> Response:
    """`{"error": {...}}`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers={"retry-after": "1"} if status == 429 else None)


def add_handlers(api: FastAPI) -> None:
    """Every refusal in one shape. What was sent is not repeated: it may be somebody's words."""

    async def on_api(request: Request, error: Exception) -> Response:
        assert isinstance(error, APIError)
        return error_response(error.status, str(error), error.code, error.param)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        return error_response(400, f"{param}: {message}" if param else message, None, param or None)

    async def on_protocol(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProtocolError)
        return error_response(400, str(error), error.code, error.param)

    async def on_value(request: Request, error: Exception) -> Response:
        return error_response(400, str(error))

    api.add_exception_handler(APIError, on_api)
    api.add_exception_handler(HTTPException, on_http)
    api.add_exception_handler(RequestValidationError, on_validation)
    api.add_exception_handler(ProtocolError, on_protocol)
    api.add_exception_handler(ValueError, on_value)


class BoundedRoute(APIRoute):
    """Looks at a JSON body before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            if self.body_field is not None:
                check_values(await request.body(), request.app.state.limits)
            return await handle(request)

        return handle_bounded


class RequestSlots:
    """So many requests compute at once, of all clients and of one; more are told to come back. What a client
    asks for is done in a lane of its own."""

    def __init__(self, app: App) -> None:
        self.app, self.in_use = app, 0
        self._of_client: Counter[str] = Counter()
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, client: str) -> AsyncIterator[RequestSlot]:
        """A place for a client, or 429; given back at the end of the block, or of the stream that was made of
        it."""
        limits = self.app.config.limits
        is_full = self.in_use >= limits.requests
        if is_full or self._of_client[client] >= limits.requests_per_client:
            self.app.metrics.busy.inc()
            most = f"{limits.requests} requests compute" if is_full else "these are this client's requests"
            name = "limits.requests" if is_full else "limits.requests_per_client"
            raise APIError(429, f"the server is busy: {most} already ({name}); try again", "server_busy")
        self.in_use += 1
        self._of_client[client] += 1
        slot = RequestSlot(self, client)
        try:
            yield slot
        finally:
            if not slot.is_streaming:
                self.release(slot)

    def lane(self, client: str) -> Lane:
        """Where the work of a client is done, some of it at once."""
        lane = self._lanes.get(client)
        if lane is None:
            lane = self._lanes[client] = self.app.async_engine.lane(AT_ONCE)
        return lane

    def release(self, slot: RequestSlot) -> None:
        """The request of a place is over."""
        self.in_use -= 1
        self._of_client[slot.client] -= 1
        self._of_client += Counter()  # forget zeros


class RequestSlot:
    """One of the places."""

    def __init__(self, slots: RequestSlots, client: str) -> None:
        self.slots, self.client, self.is_streaming = slots, client, False
        self.lane = slots.lane(client)  # held, so that it is the same for all that the client asks now
        request_lane.set(self.lane)

    def streaming(self, pieces: AsyncIterator[bytes], media_type: str) -> Response:
        """A response that keeps the place until its last piece is sent, or the client has left."""
        self.is_streaming = True
        return _SlotStreamingResponse(self, pieces, media_type)


class _SlotStreamingResponse(StreamingResponse):
    def __init__(self, slot: RequestSlot, pieces: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._slot, self._pieces = slot, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # What fails before its first piece is answered with an error, not with half a stream.
            first = [piece async for piece in _first(self._pieces)]
            self.body_iterator = _joined(first, self._pieces)
            await super().__call__(scope, receive, send)
        finally:
            self._slot.slots.release(self._slot)


async def _first(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield piece
        return


async def _joined(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece


async def with_error_event(pieces: AsyncIterator[bytes], *last: bytes) -> AsyncIterator[bytes]:
    """Server-sent events that end with an error event where something fails after the first; `last` is sent
    behind it."""
    async for piece in _first(pieces):
        yield piece
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        is_theirs = isinstance(error, ValueError)
        if not is_theirs:
            log.error("a stream failed", exc_info=error)
        kind = "invalid_request_error" if is_theirs else "server_error"
        message = str(error) if is_theirs else "the answer failed by an error of the server; ask again"
        yield sse({"error": {"message": message, "type": kind, "param": None, "code": "stream_failed"}})
        for piece in last:
            yield piece


def sse(values: Any) -> bytes:
    """One server-sent event."""
    text = values if isinstance(values, str) else write_json(values)
    return f"data: {text}\n\n".encode()
