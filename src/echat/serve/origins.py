"""Host names and origins that a server accepts (DNS rebinding, CORS), and security headers of its
responses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import Message, Scope, Send

from echat.serve.settings import LOOPBACK

WILDCARDS = ("0.0.0.0", "::")  # bind to every address, and are no host name


@dataclass(frozen=True)
class Origins:
    """The host names and origins that one server accepts."""

    bound_to: str  # address
    hosts: Collection[str] = ()  # names besides its own
    origins: Collection[str] = ()  # of other pages that may use the server

    def allows_host(self, host: str) -> bool:
        """Is this `Host` header one of the server's names? Against DNS rebinding: a foreign page can point
        its own name at this machine, but cannot take one of ours. A server on all addresses without
        configured names accepts any."""
        name = host_name(host)
        if name is None:
            return False
        if self.bound_to in WILDCARDS and not self.hosts:
            return True
        own = LOOPBACK if self.bound_to in LOOPBACK else (self.bound_to,)
        return name in own or name in self.hosts

    def allows_origin(self, origin: str | None, host: str) -> bool:
        """May a page of this `Origin` send requests? Browsers always name it, programs usually do not."""
        return origin is None or origin in self.origins or _netloc(origin) == host


def host_name(host: str) -> str | None:
    """The name in a `Host` header, without the port; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname or None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


# --- response headers: CORS, for pages of allowed origins, and security headers

METHODS = "GET, POST, OPTIONS"
USUAL_HEADERS = "authorization, content-type"
PREFLIGHT_SECONDS = 600  # for which a browser caches the answer
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}  # of server and studio


def request_headers(scope: Scope) -> dict[str, str]:
    """Headers of an ASGI request, names in lower case; of a repeated one the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def with_headers(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    """An ASGI `send` that adds headers to the response."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return send_with


def encode_headers(values: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them."""
    return [(name.encode(), value.encode("latin-1")) for name, value in values.items()]


def is_preflight(method: str, headers: dict[str, str]) -> bool:
    """Is this a CORS preflight request?"""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def cors_headers(origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """Headers of every response: pages of an allowed origin may read it, other origins may not."""
    if not allowed:
        return {"cross-origin-resource-policy": "same-origin"}
    if origin not in allowed or origin is None:
        return {"cross-origin-resource-policy": "same-origin", "vary": "origin"}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "retry-after",
        "cross-origin-resource-policy": "cross-origin",
        "vary": "origin",
    }


def preflight_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers of the response to a preflight request. Any request header is allowed, as pages send their key
    in one."""
    wanted = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in wanted.split(",")]
    listed = ", ".join(name for name in names if name.replace("-", "").isalnum() and name.isascii())
    return encode_headers(
        {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": listed or USUAL_HEADERS,
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        }
    )
