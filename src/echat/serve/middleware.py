"""Who may come in, and how much of whom: hosts, origins, keys, rates, sizes, numbers. The outermost layer.

Every refusal has the shape of the public API: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from contextvars import ContextVar

from echat.serve.connection_limiter import ConnectionLimiter
from echat.serve.http.request_body import (
    ASGIApp,
    ASGIMessage,
    ClientLeft,
    Receive,
    RequestBodies,
    RequestRejected,
    Scope,
    Send,
    drain,
)
from echat.serve.keys import Keys, Secret
from echat.serve.metrics import Metrics
from echat.serve.origins import Origins, cors_headers, is_preflight, preflight_headers
from echat.serve.settings import ServeConfig

log = logging.getLogger("echat.serve")
was_refused = ContextVar("was_refused", default=False)  # this connection, by us; see `server`

KEY_PROTOCOL = "openai-insecure-api-key."
REALTIME = "/v1/realtime"
HEALTH_PATHS = ("/healthz", "/health")  # always answered
OPEN_PATHS = ("/", "/docs", "/openapi.json")  # and "/page/...": no secrets in them, no key is asked for
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "media-src 'self' blob:; worker-src 'self'; connect-src 'self' {sockets}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PROTECTION = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
}


class RateLimiter:
    """So many requests a minute for each name; the longest unseen names are forgotten."""

    MAX_NAMES = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """0.0: go on; else the seconds to wait."""
        level, before = self._levels.pop(name, (0.0, now))
        level = max(0.0, level - (now - before) * self.per_minute / 60)
        is_full = level + 1 > self.per_minute
        self._levels[name] = (level if is_full else level + 1, now)
        while len(self._levels) > self.MAX_NAMES:
            self._levels.popitem(last=False)
        return (level + 1 - self.per_minute) * 60 / self.per_minute if is_full else 0.0


class AccessMiddleware:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        keys: Keys,
        metrics: Metrics,
        connection_limiter: ConnectionLimiter,
    ) -> None:
        self.app, self.config, self.keys, self.metrics, self.connection_limiter = (
            app,
            config,
            keys,
            metrics,
            connection_limiter,
        )
        self._origins = Origins(config.host, config.hosts, config.origins)
        self._rate_limiter = RateLimiter(config.limits.requests_per_minute)
        self._request_bodies = RequestBodies(config.limits)
        self._sockets: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        extra = self._headers(scope, headers)
        if scope["type"] == "http":
            send = _with_headers(send, extra)
        try:
            if scope["path"] in HEALTH_PATHS:  # whoever asks, however much is going on
                await self.app(scope, receive, send)
                return
            self._admit(scope, headers)
            await self._pass(scope, headers, receive, send)
        except RequestRejected as refused:
            self.metrics.refused.labels(refused.code).inc()
            await refuse(scope, receive, send, refused, extra)
        except ClientLeft:
            log.debug("a client left before its body had come")

    # --- may it come in?

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        if self.connection_limiter.is_over_limit(address_of(scope)):
            raise RequestRejected(503, "too many connections; try again later", "server_busy", 5)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._origins.allows_host(host):
            message = f"host {host[:80]!r} is not served here; name it with --allow-host (setting hosts)"
            raise RequestRejected(403, message, "unknown_host")
        if not self._origins.allows_origin(origin, host):
            message = "pages of this origin may not connect; name it with --allow-origin (setting origins)"
            raise RequestRejected(403, message, "foreign_origin")
        if scope["type"] == "http" and is_preflight(scope["method"], headers):
            return  # browsers ask without the key
        who = self._check_key(scope, headers)
        scope["echat.client"] = who
        wait = self._rate_limiter.take(who, time.monotonic())
        if wait:
            raise RequestRejected(429, "too many requests; slow down", "rate_limit_exceeded", int(wait) + 1)

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> str:
        """By what name rates are counted: the key, else the address. A secret counts as its key."""
        address = address_of(scope)
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith("/page/"):
            return address
        given = key_from_headers(headers)
        key = self.keys.find(given) if given else None
        if isinstance(key, Secret) and path != REALTIME:
            raise RequestRejected(
                403, f"a client secret opens {REALTIME} only; use an API key", "secret_out_of_scope"
            )
        scope["echat.key"] = key
        if not self.keys.are_required:
            return address
        if key is None:
            wait = self._rate_limiter.take(f"wrong {address}", time.monotonic())
            if wait:
                raise RequestRejected(
                    429, "too many wrong keys; slow down", "rate_limit_exceeded", int(wait) + 1
                )
            message = "no API key was given" if given is None else "this API key is wrong or has expired"
            raise RequestRejected(401, message, "invalid_api_key")
        return key.owner

    # --- and then

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            address = address_of(scope)
            self._sockets[address] += 1
            scope["echat.address_sessions"] = self._sockets[address]
            try:
                await self.app(scope, receive, send)
            finally:
                self._sockets[address] -= 1
                self._sockets += Counter()  # forget zeros
        elif is_preflight(scope["method"], headers):
            await send({"type": "http.response.start", "status": 204, "headers": preflight_headers(headers)})
            await send({"type": "http.response.body", "body": b""})
        else:
            async with self._request_bodies.read(headers, receive) as received:
                await self.app(scope, received, send)

    def _headers(self, scope: Scope, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        """Of every answer, refusals too."""
        host = headers.get("host", "")
        sockets = f"ws://{host} wss://{host}" if self._origins.allows_host(host) and " " not in host else ""
        values = {
            "content-security-policy": CONTENT_SECURITY.format(sockets=sockets),
            **PROTECTION,
            **cors_headers(headers.get("origin"), self.config.origins),
        }
        if scope["path"].startswith("/v1/"):
            values["cache-control"] = "no-store"
        return [(name.encode(), value.encode("latin-1")) for name, value in values.items()]


def _with_headers(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    async def send_with(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return send_with


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of a repeated one the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def address_of(scope: Scope) -> str:
    """The network address of the client."""
    return scope["client"][0] if scope.get("client") else "unknown"


def protocols_of(headers: dict[str, str]) -> list[str]:
    """Subprotocols that a WebSocket client offers."""
    return [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",") if name.strip()]


def key_from_headers(headers: dict[str, str]) -> str | None:
    """The key in a header, or where browsers can put it: in a subprotocol."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    offered = [name for name in protocols_of(headers) if name.startswith(KEY_PROTOCOL)]
    return offered[0].removeprefix(KEY_PROTOCOL) if offered else None


async def refuse(
    scope: Scope, receive: Receive, send: Send, refused: RequestRejected, extra: list[tuple[bytes, bytes]]
) -> None:
    """Answer with the error, for either kind of connection; `extra` are headers that `send` does not add."""
    body = refused.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if scope["type"] == "http":
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await drain(headers_of(scope), receive)
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
