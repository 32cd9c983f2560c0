"""Who may come in, and how much of whom: hosts, origins, keys, rates, sizes, numbers. The outermost layer.

Every refusal has the shape of the public API: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from echat.serve.keys import Keys
from echat.serve.metrics import Metrics
from echat.serve.settings import LOOPBACK, ServeConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("echat.serve")
was_refused = ContextVar("was_refused", default=False)  # this connection, by us; see `running`

KEY_PROTOCOL = "openai-insecure-api-key."
OPEN_PATHS = ("/healthz",)  # may be asked without a key
PAGE_PATHS = ("/",)  # and "/page/...": files, no secrets in them
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "media-src 'self' blob:; worker-src 'self'; connect-src 'self' {sockets}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """An answer other than the one that was hoped for."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> bytes:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


class Buckets:
    """So many requests a minute for each name; the longest unseen names are forgotten."""

    MOST = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """0.0: go on; else the seconds to wait."""
        level, before = self._levels.pop(name, (0.0, now))
        level = max(0.0, level - (now - before) * self.per_minute / 60)
        is_full = level + 1 > self.per_minute
        self._levels[name] = (level if is_full else level + 1, now)
        while len(self._levels) > self.MOST:
            self._levels.popitem(last=False)
        return (level + 1 - self.per_minute) * 60 / self.per_minute if is_full else 0.0


class Gate:
    """ASGI middleware."""

    def __init__(self, app: App, config: ServeConfig, keys: Keys, metrics: Metrics) -> None:
        self.app, self.config, self.keys, self.metrics = app, config, keys, metrics
        self._buckets = Buckets(config.limits.requests_per_minute)
        self._connections = 0
        self._sockets: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        self._connections += 1
        try:
            self._admit(scope)
            await self._pass(scope, receive, send)
        except Refused as refused:
            self.metrics.refused.labels(refused.code).inc()
            await refuse(scope, receive, send, refused)
        finally:
            self._connections -= 1

    # --- may it come in?

    def _admit(self, scope: Scope) -> None:
        headers = headers_of(scope)
        if self._connections > self.config.limits.connections:
            raise Refused(503, "too many connections; try again later", "server_busy", 5)
        self._check_host(headers.get("host", ""))
        self._check_origin(scope, headers)
        who = self._check_key(scope, headers)
        wait = self._buckets.take(who, time.monotonic())
        if wait:
            raise Refused(429, "too many requests; slow down", "rate_limit_exceeded", int(wait) + 1)

    def _check_host(self, host: str) -> None:
        """A page elsewhere may point its own name at this machine; it cannot take ours."""
        name = urlsplit(f"//{host}").hostname or ""
        known = {*self.config.hosts, self.config.host, *(LOOPBACK if self.config.is_local else ())}
        if name not in known and not (self.config.host in ("0.0.0.0", "::") and not self.config.hosts):
            raise Refused(403, f"host {name[:80]!r} is not served here; see --allow-host", "unknown_host")

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """A browser says which page asks; programs say nothing."""
        origin = headers.get("origin")
        if origin is None or origin in self.config.origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, "this origin may not connect; see --allow-origin", "foreign_origin")

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> str:
        """By what name rates are counted: the key, else the address."""
        address = address_of(scope)
        path = scope["path"]
        if path in (*OPEN_PATHS, *PAGE_PATHS) or path.startswith("/page/"):
            return address
        given = key_given(headers)
        key = self.keys.find(given) if given else None
        if not self.keys.are_asked_for:
            scope["echat.key"] = key
            return address
        if key is None:
            wait = self._buckets.take(f"wrong {address}", time.monotonic())
            if wait:
                raise Refused(429, "too many wrong keys; slow down", "rate_limit_exceeded", int(wait) + 1)
            message = "no API key was given" if given is None else "this API key is wrong or has expired"
            raise Refused(401, message, "invalid_api_key")
        scope["echat.key"] = key
        return key.id

    # --- and then

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            address = address_of(scope)
            self._sockets[address] += 1
            scope["echat.address_sessions"] = self._sockets[address]
            try:
                await self.app(scope, receive, send)
            finally:
                self._sockets[address] -= 1
                self._sockets += Counter()  # forget zeros
            return
        length = headers_of(scope).get("content-length", "0")
        most = self.config.limits.upload_bytes
        if not length.isdigit() or int(length) > most:
            raise Refused(413, f"expected a body of at most {most} bytes", "request_too_large")
        await self.app(scope, _counted(receive, most), self._with_headers(scope, send))

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        host = headers_of(scope).get("host", "")
        sockets = f"ws://{host} wss://{host}" if host.isprintable() and " " not in host else ""
        extra = {
            "content-security-policy": CONTENT_SECURITY.format(sockets=sockets),
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "permissions-policy": "microphone=(self), camera=(), geolocation=()",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        if scope["path"].startswith("/v1/"):
            extra["cache-control"] = "no-store"

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
                message["headers"] = [*message.get("headers", []), *known]
            await send(message)

        return send_with


def _counted(receive: Receive, most: int) -> Receive:
    """A body that does not say its length, or lies about it, is cut off where it is too long."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > most:
                raise Refused(413, f"expected a body of at most {most} bytes", "request_too_large")
        return message

    return counted


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of a repeated one the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def address_of(scope: Scope) -> str:
    """The network address of the client."""
    return scope["client"][0] if scope.get("client") else "unknown"


def protocols_of(headers: dict[str, str]) -> list[str]:
    """Subprotocols that a WebSocket client offers."""
    return [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",") if name.strip()]


def key_given(headers: dict[str, str]) -> str | None:
    """The key in a header, or where browsers can put it: in a subprotocol."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    offered = [name for name in protocols_of(headers) if name.startswith(KEY_PROTOCOL)]
    return offered[0].removeprefix(KEY_PROTOCOL) if offered else None


async def refuse(scope: Scope, receive: Receive, send: Send, refused: Refused) -> None:
    """Answer with the error, for either kind of connection."""
    headers = [(b"content-type", b"application/json")]
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if scope["type"] == "http":
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": refused.body()})
        return
    log.info("a WebSocket handshake was refused: %d %s", refused.status, refused.code)
    was_refused.set(True)
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": refused.body()})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": refused.code})
