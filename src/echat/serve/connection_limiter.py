"""Connection limiter: the number of sockets of a server and of one address, counted from `accept` to `close`.

At the limit, a connection that waits for its request (nothing sent yet, half a header, half a body) is closed
for a new one; a connection whose request is handled is not. So clients that open connections and send nothing
(slow loris) cannot lock others out.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

RESERVE = 64  # sockets above the limit, for health checks
OTHER_FILES = 128  # that a process needs besides its connections
QUEUE = 2048  # backlog of the operating system
ACCEPTS_AT_ONCE = 4  # connections accepted before data of earlier ones are processed

Peer = tuple[Any, ...]  # address and port of the other side
log = logging.getLogger("echat.serve")


class ConnectionLimiter:
    """The sockets of one server. All methods are called in one event loop."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self.most, self.most_per_address = most, most_per_address
        self._open: set[Peer] = set()
        self._per_address: Counter[str] = Counter()
        self._waiting: OrderedDict[Peer, Callable[[], None]] = (
            OrderedDict()
        )  # functions that close; oldest first

    def admit(self, peer: Peer) -> bool:
        """Count a new connection; False: too many, close it."""
        address = str(peer[0])
        if self._per_address[address] >= self.most_per_address:
            self._close_oldest_waiting(address)
        elif len(self._open) >= self.most:
            self._close_oldest_waiting(None)
        if len(self._open) >= self.most + RESERVE:
            return False
        self._open.add(peer)
        self._per_address[address] += 1
        return True

    def release(self, peer: Peer) -> None:
        """The connection is closed, or about to be."""
        self._waiting.pop(peer, None)
        if peer in self._open:
            self._open.remove(peer)
            self._per_address[str(peer[0])] -= 1
            self._per_address += Counter()  # drop zeros

    def mark_waiting(self, peer: Peer, close: Callable[[], None]) -> None:
        """The connection waits for (the rest of) a request, and may be closed by `close`."""
        if peer in self._open:
            self._waiting.setdefault(peer, close)

    def mark_active(self, peer: Peer) -> None:
        """The request of the connection is complete and handled."""
        self._waiting.pop(peer, None)

    def is_over_limit(self, address: str) -> bool:
        """Are there too many connections with requests? Then only health checks are answered."""
        return len(self._open) > self.most or self._per_address[address] > self.most_per_address

    def __len__(self) -> int:
        return len(self._open)

    def _close_oldest_waiting(self, address: str | None) -> None:
        """Close the one that has waited longest, of an address or of the address with most waiting ones."""
        if address is None:
            waiting = Counter(str(peer[0]) for peer in self._waiting)
            if not waiting:
                return
            address = waiting.most_common(1)[0][0]
        peer = next((peer for peer in self._waiting if str(peer[0]) == address), None)
        if peer is not None:
            close = self._waiting[peer]
            self.release(peer)
            close()


class ListeningSocket(socket.socket):
    """A server socket that reports accepted connections to its `connection_limiter`."""

    connection_limiter: ConnectionLimiter

    def listen(self, unused: int = 0) -> None:
        """Start with a long backlog, independent of ACCEPTS_AT_ONCE."""
        super().listen(QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection within the limits; others are closed at once."""
        for _ in range(ACCEPTS_AT_ONCE):
            fd, peer = self._accept()  # type: ignore[attr-defined]
            accepted = _AcceptedSocket(self.family, self.type, self.proto, fileno=fd)
            if self.connection_limiter.admit(peer):
                accepted.on_close = partial(self.connection_limiter.release, peer)
                return accepted, peer
            accepted.close()
        raise BlockingIOError  # yield to other tasks of the event loop


class _AcceptedSocket(socket.socket):
    """A connection with a callback for its close."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()


def listen(host: str, port: int) -> list[ListeningSocket]:
    """Server sockets at every address of a host, all at one port; port 0 takes a free one.

    Their `connection_limiter` is set later. ValueError, with the reason, where one cannot be bound.
    """
    bound: list[ListeningSocket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, proto, _, address in dict.fromkeys(found):
            one = ListeningSocket(family, kind, proto)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = bound[0].getsockname()[1] if len(bound) > 1 else port
            one.bind((address[0], taken, *address[2:]))
            one.listen()
            one.setblocking(False)
    except OSError as error:
        for one in bound:
            one.close()
        raise ValueError(
            f"--host {host} --port {port}: expected an address of this machine and a free port, found none "
            f"({error.strerror or error}); give another port (0 takes a free one) or address"
        ) from error
    return bound


def allowed_connections(connections: int) -> int:
    """The number of connections, at most `connections`, that the limit of open files allows. That limit is
    raised as far as possible, because a server without free file descriptors cannot accept."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVE + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    left = max(1, soft - RESERVE - OTHER_FILES)
    log.warning(
        f"limits.connections: expected {wanted} open files, found {soft} allowed; {left} connections are "
        f"served, raise the limit (ulimit -n {wanted})"
    )
    return left
