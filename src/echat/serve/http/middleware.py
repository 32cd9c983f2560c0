"""Access middleware, the outermost ASGI layer: host names, origins, API keys, rate limits, sizes of bodies,
number of connections. A refusal is an error response like any other, see `errors`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from echat.serve.connection_limiter import ConnectionLimiter
from echat.serve.http.errors import APIError
from echat.serve.http.request_body import ClientLeft, RequestBodies, drain
from echat.serve.keys import Keys, Secret
from echat.serve.metrics import Metrics
from echat.serve.origins import (
    SECURITY_HEADERS,
    Origins,
    cors_headers,
    encode_headers,
    is_preflight,
    preflight_headers,
    request_headers,
    with_headers,
)
from echat.serve.settings import ServeConfig

log = logging.getLogger("echat.serve")
was_refused = ContextVar(
    "was_refused", default=False
)  # this WebSocket handshake, by the middleware; see `server`

KEY_PROTOCOL = "openai-insecure-api-key."
REALTIME = "/v1/realtime"
HEALTH_PATHS = ("/healthz", "/health")  # always answered
OPEN_PATHS = ("/", "/docs", "/openapi.json")  # and "/page/...": without secrets, so without a key
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "media-src 'self' blob:; worker-src 'self'; connect-src 'self' {sockets}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PROTECTION = {
    **SECURITY_HEADERS,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
}


class RateLimiter:
    """Rate limit per name, a leaky bucket each; the least recently seen names are dropped."""

    MAX_NAMES = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """Count a request: 0.0 if it is within the limit, else the seconds to wait."""
        level, before = self._levels.pop(name, (0.0, now))
        level = max(0.0, level - (now - before) * self.per_minute / 60)
        is_full = level + 1 > self.per_minute
        self._levels[name] = (level if is_full else level + 1, now)
        while len(self._levels) > self.MAX_NAMES:
            self._levels.popitem(last=False)
        return (level + 1 - self.per_minute) * 60 / self.per_minute if is_full else 0.0


class AccessMiddleware:
    """Admits or refuses every HTTP request and WebSocket handshake."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        keys: Keys,
        metrics: Metrics,
        connection_limiter: ConnectionLimiter,
    ) -> None:
        self.app, self.config, self.keys = app, config, keys
        self.metrics, self.connection_limiter = metrics, connection_limiter
        self._origins = Origins(config.host, config.hosts, config.origins)
        self._rate_limiter = RateLimiter(config.limits.requests_per_minute)
        self._request_bodies = RequestBodies(config.limits)
        self._sockets: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = request_headers(scope)
        extra = self._headers(scope, headers)
        if scope["type"] == "http":
            send = with_headers(send, extra)
        try:
            if scope["path"] in HEALTH_PATHS:  # from any client, under any load
                await self.app(scope, receive, send)
                return
            self._admit(scope, headers)
            await self._pass(scope, headers, receive, send)
        except APIError as refused:
            self.metrics.refused.labels(str(refused.code)).inc()
            await refuse(scope, receive, send, refused, extra)
        except ClientLeft:
            log.debug("a client left before its body was complete")

    # --- admission

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        if self.connection_limiter.is_over_limit(address_of(scope)):
            raise APIError(503, "too many connections; try again later", "server_busy", retry_after=5)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._origins.allows_host(host):
            message = f"host {host[:80]!r} is not served here; name it with --allow-host (setting hosts)"
            raise APIError(403, message, "unknown_host")
        if not self._origins.allows_origin(origin, host):
            message = "pages of this origin may not connect; name it with --allow-origin (setting origins)"
            raise APIError(403, message, "foreign_origin")
        if scope["type"] == "http" and is_preflight(scope["method"], headers):
            return  # browsers send it without the key
        who = self._check_key(scope, headers)
        scope["echat.client"] = who
        wait = self._rate_limiter.take(who, time.monotonic())
        if wait:
            raise _rate_limited("too many requests; slow down", wait)

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> str:
        """The name under which rates are counted: the key, else the address. A secret counts as its key."""
        address = address_of(scope)
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith("/page/"):
            return address
        given = key_of(scope, headers)
        key = self.keys.find(given) if given else None
        if isinstance(key, Secret) and path != REALTIME:
            message = f"a client secret opens {REALTIME} only; use an API key"
            raise APIError(403, message, "secret_out_of_scope")
        scope["echat.key"] = key
        if not self.keys.are_required:
            return address
        if key is None:
            wait = self._rate_limiter.take(f"wrong {address}", time.monotonic())
            if wait:
                raise _rate_limited("too many wrong keys; slow down", wait)
            message = "no API key was given" if given is None else "this API key is wrong or has expired"
            raise APIError(401, message, "invalid_api_key")
        return key.owner

    # --- handling

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            address = address_of(scope)
            self._sockets[address] += 1
            scope["echat.address_sessions"] = self._sockets[address]
            try:
                await self.app(scope, receive, send)
            finally:
                self._sockets[address] -= 1
                self._sockets += Counter()  # drop zeros
        elif is_preflight(scope["method"], headers):
            await send({"type": "http.response.start", "status": 204, "headers": preflight_headers(headers)})
            await send({"type": "http.response.body", "body": b""})
        else:
            async with self._request_bodies.read(headers, receive) as received:
                await self.app(scope, received, send)

    def _headers(self, scope: Scope, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        """Headers of every response, refusals included."""
        host = headers.get("host", "")
        sockets = f"ws://{host} wss://{host}" if self._origins.allows_host(host) and " " not in host else ""
        values = {
            "content-security-policy": CONTENT_SECURITY.format(sockets=sockets),
            **PROTECTION,
            **cors_headers(headers.get("origin"), self.config.origins),
        }
        if scope["path"].startswith("/v1/"):
            values["cache-control"] = "no-store"
        return encode_headers(values)


def _rate_limited(message: str, wait: float) -> APIError:
    return APIError(429, message, "rate_limit_exceeded", retry_after=int(wait) + 1)


def address_of(scope: Scope) -> str:
    """The network address of the client."""
    return str(scope["client"][0]) if scope.get("client") else "unknown"


def key_of(scope: Scope, headers: dict[str, str]) -> str | None:
    """The key of the `Authorization` header, or of a WebSocket subprotocol, where browsers can put it."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    offered = [name for name in scope.get("subprotocols", ()) if name.startswith(KEY_PROTOCOL)]
    return offered[0].removeprefix(KEY_PROTOCOL) if offered else None


async def refuse(
    scope: Scope, receive: Receive, send: Send, refused: APIError, extra: list[tuple[bytes, bytes]]
) -> None:
    """Send the error response, over HTTP or to a WebSocket handshake, for which `extra` headers are added
    here."""
    response = refused.response()
    body, headers = response.body, response.raw_headers
    if scope["type"] == "http":
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await drain(request_headers(scope), receive)
        await send({"type": "http.response.body", "body": b""})
        return
    log.info("a WebSocket handshake was refused: %d %s", refused.status, refused.code)
    was_refused.set(True)
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        start = {"type": "websocket.http.response.start", "status": refused.status}
        await send({**start, "headers": [*headers, *extra]})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": refused.code})
