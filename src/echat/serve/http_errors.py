"""Errors over HTTP, in the shape of the public API, and the one place where requests that compute begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

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
        return error_response(400, f"{param}: {first['msg'].removeprefix('Value error, ')}", None, param)

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

    def take(self) -> None:
        """A place, or 429."""
        if self.taken >= self.house.config.limits.requests:
            self.house.metrics.busy.inc()
            raise APIError(429, "the server is busy; try again", "server_busy")
        self.taken += 1

    def leave(self) -> None:
        """Give the place back."""
        self.taken -= 1

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place for as long as the block runs."""
        self.take()
        try:
            yield
        finally:
            self.leave()

    async def held(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Keep the place, already taken, until the last piece is sent or the client leaves."""
        try:
            async for piece in pieces:
                yield piece
        finally:
            self.leave()


def sse(values: Any) -> bytes:
    """One server-sent event."""
    import json

    return (
        f"data: {values if isinstance(values, str) else json.dumps(values, ensure_ascii=False)}\n\n".encode()
    )
