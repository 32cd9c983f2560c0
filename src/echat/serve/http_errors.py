"""Errors over HTTP, in the shape of the public API, and the one place where requests that compute begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from echat.serve.protocol.json_text import write_json
from echat.serve.protocol.wire import ProtocolError
from echat.serve.state import House


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


def add_handlers(app: FastAPI) -> None:
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

    app.add_exception_handler(APIError, on_api)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ProtocolError, on_protocol)
    app.add_exception_handler(ValueError, on_value)


class Places:
    """So many requests compute at once; more are told to come back."""

    def __init__(self, house: House) -> None:
        self.house, self.taken = house, 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Place]:
        """A place, or 429; given back at the end of the block, or of the stream that was made of it."""
        if self.taken >= self.house.config.limits.requests:
            self.house.metrics.busy.inc()
            raise APIError(429, "the server is busy; try again", "server_busy")
        self.taken += 1
        place = Place(self)
        try:
            yield place
        finally:
            if not place.is_streaming:
                self.taken -= 1


class Place:
    """One of the places."""

    def __init__(self, places: Places) -> None:
        self.places, self.is_streaming = places, False

    def streaming(self, pieces: AsyncIterator[bytes], media_type: str) -> Response:
        """A response that keeps the place until its last piece is sent, or the client has left."""
        self.is_streaming = True
        return _Held(self.places, pieces, media_type)


class _Held(StreamingResponse):
    def __init__(self, places: Places, pieces: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._places.taken -= 1


def sse(values: Any) -> bytes:
    """One server-sent event."""
    text = values if isinstance(values, str) else write_json(values)
    return f"data: {text}\n\n".encode()
