"""How many sockets a server holds, counted from `accept` to `close`, whatever comes over them.

A connection that waits for its request (nothing sent yet, half a header, half a body) makes room for a
newcomer when there are too many; one that is being answered does not. So clients that open connections and
send nothing cannot keep others out.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

RESERVE = 64  # sockets above the limit, on which health checks are still answered
OTHER_FILES = 128  # that a process needs besides its connections
QUEUE = 2048  # connections that the system holds for a server that is busy
ACCEPTS_AT_ONCE = 4  # are accepted, before those that came before are heard

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
        )  # how to close each; oldest first

    def admit(self, peer: Peer) -> bool:
        """Count a new connection; False: there is no room, close it."""
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
        """It is closed, or about to be."""
        self._waiting.pop(peer, None)
        if peer in self._open:
            self._open.remove(peer)
            self._per_address[str(peer[0])] -= 1
            self._per_address += Counter()  # forget zeros

    def mark_waiting(self, peer: Peer, close: Callable[[], None]) -> None:
        """It waits for (the rest of) a request, and can be closed."""
        if peer in self._open:
            self._waiting.setdefault(peer, close)

    def mark_active(self, peer: Peer) -> None:
        """Its request is there, and being answered."""
        self._waiting.pop(peer, None)

    def is_over_limit(self, address: str) -> bool:
        """Are there more than there may be, all of them at work? Then only health checks are answered."""
        return len(self._open) > self.most or self._per_address[address] > self.most_per_address

    def __len__(self) -> int:
        return len(self._open)

    def _close_oldest_waiting(self, address: str | None) -> None:
        """Close the one that has waited longest, of an address or of that which has most of those."""
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
    """A listening socket that counts at its `connection_limiter` what it accepts."""

    connection_limiter: ConnectionLimiter

    def listen(self, unused: int = 0) -> None:
        """The queue of the system is long, however few are accepted in one go."""
        super().listen(QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection for which there is room; the others are closed at once."""
        for _ in range(ACCEPTS_AT_ONCE):
            fd, peer = self._accept()  # type: ignore[attr-defined]
            accepted = _AcceptedSocket(self.family, self.type, self.proto, fileno=fd)
            if self.connection_limiter.admit(peer):
                accepted.on_close = partial(self.connection_limiter.release, peer)
                return accepted, peer
            accepted.close()
        raise BlockingIOError  # let others have their turn


class _AcceptedSocket(socket.socket):
    """A connection that says when it is closed."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()


def listen(host: str, port: int) -> list[ListeningSocket]:
    """Sockets that listen at every address of a host, all at one port; with port 0 a free one.

    They have no connection_limiter yet. What cannot be bound is a ValueError that says why.
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
    """How many connections this process may have open files for, at most `connections`. The limit of the
    process is raised where it may be: a server that runs out of files can accept nothing any more."""
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
        "limits.connections: expected %d open files, found %d allowed; %d connections are served, "
        "raise the limit (ulimit -n %d)",
        wanted,
        soft,
        left,
        wanted,
    )
    return left
