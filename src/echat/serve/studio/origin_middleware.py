"""ASGI middleware of the studio: refuses pages of other origins and foreign host names (DNS rebinding), and
forbids frames."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from echat.serve.origins import SECURITY_HEADERS, Origins, encode_headers, request_headers, with_headers

CONTENT_SECURITY = "frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
HEADERS = encode_headers({**SECURITY_HEADERS, "content-security-policy": CONTENT_SECURITY})


class OriginMiddleware:
    """Answers 403 to whatever is not the studio's own page."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app, self.origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = request_headers(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.origins.allows_host(host) and self.origins.allows_origin(origin, host):
            await self.app(scope, receive, with_headers(send, HEADERS))
        elif scope["type"] == "http":
            body = b"this studio is open to its own page alone; open it under the address that it printed\n"
            plain = [(b"content-type", b"text/plain")]
            start = {"type": "http.response.start", "status": 403, "headers": plain}
            await with_headers(send, HEADERS)(start)
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})
