"""Error responses over HTTP, all in the shape of the public API: `{"error": {"message", "type", "param",
"code"}}`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from echat.serve.protocol.size_limits import check_values
from echat.serve.protocol.wire import ProtocolError


class APIError(Exception):
    """An error response, raised by the middleware or by an endpoint."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after = 1 if status == 429 and retry_after is None else retry_after  # seconds

    @property
    def values(self) -> dict[str, Any]:
        """The body as JSON values."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = None if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return JSONResponse(self.values, self.status, headers)


def to_api_error(error: Exception) -> APIError:
    """Any exception of an endpoint as an error response. The input is not repeated in the message: it may be
    a user's words."""
    match error:
        case APIError():
            return error
        case HTTPException():
            return APIError(error.status_code, str(error.detail))
        case RequestValidationError():
            first = error.errors()[0]
            param = ".".join(str(part) for part in first["loc"][1:]) or None
            message = first["msg"].removeprefix("Value error, ")
            return APIError(400, f"{param}: {message}" if param else message, param=param)
        case ProtocolError():
            return APIError(400, str(error), error.code, error.param)
        case _:
            return APIError(400, str(error))


def add_exception_handlers(api: FastAPI) -> None:
    """Answer every exception that is the client's fault with an error response."""

    async def handle(request: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    for kind in (APIError, HTTPException, RequestValidationError, ProtocolError, ValueError):
        api.add_exception_handler(kind, handle)


class BoundedRoute(APIRoute):
    """A route that checks the size of a JSON body before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            if self.body_field is not None:
                check_values(await request.body(), request.app.state.limits)
            return await handle(request)

        return handle_bounded
