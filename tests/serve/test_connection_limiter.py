"""Connections that send nothing lock nobody out, and every wait has a time-out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from echat.serve.connection_limiter import RESERVE, ConnectionLimiter, listen

PEERS = [("10.0.0.1", port) for port in range(1000)]
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_new_connection_replaces_the_one_that_waited_longest() -> None:
    connection_limiter, closed = ConnectionLimiter(3, 100), []
    for peer in PEERS[:3]:
        assert connection_limiter.admit(peer)
        connection_limiter.mark_waiting(peer, lambda peer=peer: closed.append(peer))
    connection_limiter.mark_active(PEERS[0])
    assert connection_limiter.admit(PEERS[3]) and closed == [PEERS[1]]
    assert len(connection_limiter) == 3 and not connection_limiter.is_over_limit("10.0.0.1")


def test_active_connections_stay_and_a_reserve_is_kept_for_health_checks() -> None:
    connection_limiter = ConnectionLimiter(2, 1000)
    entered = [connection_limiter.admit(peer) for peer in PEERS[: 2 + RESERVE + 5]]
    assert entered == [True] * (2 + RESERVE) + [False] * 5
    assert connection_limiter.is_over_limit("10.0.0.2")
    for peer in PEERS[: 2 + RESERVE]:
        connection_limiter.release(peer)
        connection_limiter.release(peer)  # to leave twice is to leave once
    assert len(connection_limiter) == 0 and not connection_limiter.is_over_limit("10.0.0.1")


def test_an_address_makes_room_among_its_own() -> None:
    connection_limiter, closed = ConnectionLimiter(100, 2), []
    other = ("10.0.0.9", 1)
    for peer in (other, *PEERS[:3]):
        connection_limiter.admit(peer)
        connection_limiter.mark_waiting(peer, lambda peer=peer: closed.append(peer))
    assert closed == [PEERS[0]]
    full, gone = ConnectionLimiter(4, 4), []
    for peer in (other, *PEERS[:3], ("10.0.0.8", 1)):
        full.admit(peer)
        full.mark_waiting(peer, lambda peer=peer: gone.append(peer))
    assert gone == [PEERS[0]]  # of the address that has most of those that wait


def test_a_port_in_use_is_an_error_of_one_line() -> None:
    (first,) = listen("127.0.0.1", 0)
    with contextlib.closing(first):
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"--port {port}: expected .* free port, found none .*in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="expected an address of this machine"):
        listen("192.0.2.1", 0)  # a documentation address is nobody's
    with pytest.raises(ValueError, match="expected an address of this machine"):
        listen("no.such.host.invalid", 0)


# --- a real server


@pytest.fixture(scope="module")
def impatient(serving: Any) -> Iterator[Any]:
    limits = {"connections": 20, "connections_per_address": 20, "header_seconds": 0.3, "body_seconds": 0.3}
    with serving(limits=limits) as live:
        yield live


def opened(live: Any, sent: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    one.sendall(sent)
    return one


def rest_of(one: socket.socket) -> bytes:
    """Everything received until the server closes; fails by the socket's time-out if it does not."""
    with one, contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: one.recv(65536), b""))
    return b""


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", POST + b"Content-Length: 10\r\n\r\n{"],
)
def test_incomplete_requests_time_out(impatient: Any, sent: bytes) -> None:
    assert rest_of(opened(impatient, sent)) == b""


def test_an_incomplete_second_request_times_out(impatient: Any) -> None:
    one = opened(impatient, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += one.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    one.sendall(b"GET /heal")
    assert rest_of(one) == b""


@pytest.mark.parametrize("sent", [b"GET / HTT", POST + b"Content-Length: 10\r\n\r\n{"])
def test_others_are_served_beside_many_incomplete_requests(serving: Any, sent: bytes) -> None:
    with (
        serving(limits={"connections": 20, "connections_per_address": 20}) as live,
        contextlib.ExitStack() as all_,
    ):
        for _ in range(120):
            all_.enter_context(opened(live, sent))
        with httpx.Client(timeout=30) as client:
            for path in ("/healthz", "/health", "/v1/models"):
                assert client.get(f"http://127.0.0.1:{live.port}{path}").status_code == 200


def test_health_checks_are_answered_over_the_limit(serving: Any) -> None:
    with serving(limits={"connections": 1, "requests_per_minute": 1}) as live:
        root = f"http://127.0.0.1:{live.port}"
        statuses = [httpx.get(f"{root}/healthz", headers={"Host": "elsewhere"}).status_code for _ in range(5)]
        assert statuses == [200] * 5
        assert {httpx.get(f"{root}/v1/models").status_code for _ in range(3)} == {200, 429}
