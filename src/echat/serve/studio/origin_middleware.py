"""Keeps pages of other origins and foreign names (DNS rebinding) away from a studio, and it out of frames."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from echat.serve.origins import Origins

ASGIMessage = MutableMapping[str, Any]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[ASGIMessage, Callable[[], Awaitable[ASGIMessage]], Send], Awaitable[None]]

HEADERS = [
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'self'; object-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class OriginMiddleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app, self.origins = app, origins

    async def __call__(
        self, scope: ASGIMessage, receive: Callable[[], Awaitable[ASGIMessage]], send: Send
    ) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.origins.allows_host(host) and self.origins.allows_origin(origin, host):
            await self.app(scope, receive, _with_security_headers(send))
        elif scope["type"] == "http":
            body = b"this studio is open to its own page alone; open it under the address that it printed\n"
            start = {
                "type": "http.response.start",
                "status": 403,
                "headers": [(b"content-type", b"text/plain")],
            }
            await _with_security_headers(send)(start)
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})


def _with_security_headers(send: Send) -> Send:
    async def send_guarded(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return send_guarded
