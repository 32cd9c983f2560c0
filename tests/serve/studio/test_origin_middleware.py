"""The studio accepts its own page only."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from echat.serve.origins import Origins
from echat.serve.studio.origin_middleware import OriginMiddleware


def asked(bound_to: str, kind: str = "http", **headers: str) -> list[dict[str, Any]]:
    """What comes back for one request."""
    received: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ours"})

    async def send(message: Any) -> None:
        received.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(OriginMiddleware(app, Origins(bound_to))(scope, None, send))  # type: ignore[arg-type]
    return received


@pytest.mark.parametrize(
    ("bound_to", "headers", "status"),
    [
        ("127.0.0.1", {"host": "localhost:7860"}, 200),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        ("127.0.0.1", {"host": "evil.example"}, 403),
        ("127.0.0.1", {"host": "["}, 403),
        ("127.0.0.1", {}, 403),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ("0.0.0.0", {"host": "studio.example"}, 200),
        ("0.0.0.0", {"host": "studio.example", "origin": "https://evil.example"}, 403),
    ],
)
def test_names_and_origins(bound_to: str, headers: dict[str, str], status: int) -> None:
    start, body = asked(bound_to, **headers)
    assert start["status"] == status and (body["body"] == b"ours") is (status == 200)
    names = dict(start["headers"])
    assert names[b"x-frame-options"] == b"DENY"
    assert b"frame-ancestors 'none'" in names[b"content-security-policy"]


def test_a_foreign_socket_is_closed() -> None:
    assert asked("127.0.0.1", "websocket", host="evil.example") == [{"type": "websocket.close", "code": 1008}]
