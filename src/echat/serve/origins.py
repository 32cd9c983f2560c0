"""Under which names a server is reached, and pages of which origins may use it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from echat.serve.settings import LOOPBACK

EVERYWHERE = ("0.0.0.0", "::")  # addresses to listen on that are nobody's name


@dataclass(frozen=True)
class Origins:
    """The names and origins of one server."""

    listens_at: str
    hosts: Collection[str] = ()  # names besides its own
    origins: Collection[str] = ()  # of pages from elsewhere that may use it

    def allows_host(self, host: str) -> bool:
        """Is this `Host` header one of the server's names? A page elsewhere may point its own name at this
        machine (DNS rebinding); it cannot take ours. A server that listens everywhere and was told no names
        has to take any."""
        name = host_name(host)
        if name is None:
            return False
        if self.listens_at in EVERYWHERE and not self.hosts:
            return True
        own = LOOPBACK if self.listens_at in LOOPBACK else (self.listens_at,)
        return name in own or name in self.hosts

    def allows_origin(self, origin: str | None, host: str) -> bool:
        """May a page of this `Origin` ask? Browsers name it; programs name none."""
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


# --- What browsers must be told so that pages of allowed origins can use the REST endpoints (CORS).

METHODS = "GET, POST, OPTIONS"
USUAL_HEADERS = "authorization, content-type"
PREFLIGHT_SECONDS = 600  # for which a browser need not ask again


def is_preflight(method: str, headers: dict[str, str]) -> bool:
    """Does a browser ask whether its page may ask?"""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def cors_headers(origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """Headers of every answer: the page of an allowed origin may read it, other origins may not."""
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
    """Headers of the answer to a preflight request. Keys travel in a header that the page sets itself, so any
    header may be sent."""
    wanted = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in wanted.split(",")]
    listed = ", ".join(name for name in names if name.replace("-", "").isalnum() and name.isascii())
    values = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": listed or USUAL_HEADERS,
        "access-control-max-age": str(PREFLIGHT_SECONDS),
    }
    return [(name.encode(), value.encode()) for name, value in values.items()]
