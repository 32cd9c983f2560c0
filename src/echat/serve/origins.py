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

    def knows_host(self, host: str) -> bool:
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

    def knows_origin(self, origin: str | None, host: str) -> bool:
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
