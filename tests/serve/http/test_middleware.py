"""Access middleware: keys, origins, hosts, sizes, rates, numbers, and the form of a refusal."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from echat.serve.http.middleware import RateLimiter
from echat.serve.keys import Keys, digest
from echat.serve.settings import ServeConfig


@pytest.fixture(scope="module")
def keyed(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that asks for keys; `good` and `old` are two of them."""
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    good, _ = Keys(path).add(days=1, note="good")
    old, _ = Keys(path).add(days=-1, note="old")
    with serving(keys=str(path), limits={"requests_per_minute": 50}) as live:
        live.good, live.old, live.key_file = good, old, path
        yield live


def status_of(live: Any, **headers: str) -> int:
    """Of a WebSocket handshake; 101 where it is let in."""

    async def handshake() -> int:
        url = live.url.replace("http", "ws") + "/realtime"
        try:
            async with connect(url, additional_headers=headers) as opened:
                assert json.loads(await opened.recv())["type"] == "session.created"
                return 101
        except InvalidStatus as refused:
            assert json.loads(refused.response.body)["error"]["code"]
            return refused.response.status_code

    return asyncio.run(handshake())


def test_keys(keyed):
    assert status_of(keyed) == 401
    assert status_of(keyed, Authorization="Bearer wrong") == 401
    assert status_of(keyed, Authorization=f"Bearer {keyed.old}") == 401
    assert status_of(keyed, Authorization=f"Bearer {keyed.good}") == 101
    models = f"{keyed.url}/models"
    assert httpx.get(models).json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(models, headers={"Authorization": f"Bearer {keyed.good}"}).status_code == 200
    assert httpx.get(keyed.url.replace("/v1", "/healthz")).status_code == 200


def test_a_refused_handshake_is_one_quiet_line(keyed, caplog):
    with caplog.at_level(logging.INFO):
        assert status_of(keyed, Authorization="Bearer wrong") == 401
        assert status_of(keyed, Origin="https://evil.example") == 403
        # On a connection of its own: the server has left the others behind when this one is answered.
        assert httpx.get(keyed.url.replace("/v1", "/healthz")).status_code == 200
    ours = [record.getMessage() for record in caplog.records if record.name == "echat.serve"]
    assert [line.rpartition(": ")[2] for line in ours] == ["401 invalid_api_key", "403 foreign_origin"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_browser_gives_its_key_as_a_subprotocol(keyed):
    async def selected() -> str | None:
        url = keyed.url.replace("http", "ws") + "/realtime"
        offered = ["realtime", f"openai-insecure-api-key.{keyed.good}"]
        async with connect(url, subprotocols=offered) as opened:  # type: ignore[arg-type]
            return opened.subprotocol

    assert asyncio.run(selected()) == "realtime"


def test_wrong_keys_are_rate_limited(keyed):
    with httpx.Client(headers={"Authorization": "Bearer x"}) as guessing:
        answers = [guessing.get(f"{keyed.url}/models") for _ in range(60)]
    assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) >= 1


def test_only_hashes_are_on_disk(keyed):
    stored = keyed.key_file.read_text()
    assert keyed.good not in stored and digest(keyed.good) in stored
    assert keyed.key_file.stat().st_mode & 0o077 == 0


def test_keys_can_be_removed(tmp_path):
    keys = Keys(tmp_path / "keys")
    secret, key = keys.add()
    assert keys.find(secret) == key
    Keys(tmp_path / "keys").remove(key.id)  # in another process
    assert keys.find(secret) is None
    with pytest.raises(ValueError, match="expected the id of a key"):
        keys.remove("key_none")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
def test_foreign_pages_and_names(live, headers, status):
    answer = httpx.get(f"{live.url}/models", headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] in ("foreign_origin", "unknown_host")


def test_a_foreign_page_opens_no_socket_but_our_own_does(live):
    assert status_of(live, Origin="https://evil.example") == 403
    assert status_of(live, Origin=f"http://127.0.0.1:{live.port}") == 101


@pytest.mark.slow
def test_an_upload_of_a_gigabyte(live):
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2**30}\r\n\r\n"
        raw.sendall(head.encode())  # and not a byte of the body is waited for
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] == b"413" and b"request_too_large" in answer


@pytest.mark.parametrize("has_length", [True, False])
def test_a_client_that_still_sends_can_read_the_refusal_of_its_upload(serving, has_length):
    def pieces() -> Any:
        for _ in range(64):
            yield b"x" * 2**16

    with serving(limits={"upload_bytes": 2**20}) as live:
        headers = {"Content-Length": str(2**22)} if has_length else {}
        answer = httpx.post(f"{live.url}/audio/transcriptions", content=pieces(), headers=headers)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
        assert "limits.upload_bytes" in answer.json()["error"]["message"]
        assert httpx.get(f"{live.url}/models").status_code == 200


def test_a_client_that_still_sends_can_read_the_refusal_of_its_key(keyed):
    headers = {"Authorization": "Bearer wrong", "Content-Type": "audio/wav"}
    answer = httpx.post(f"{keyed.url}/audio/transcriptions", content=bytes(2**22), headers=headers)
    assert answer.status_code == 401 and answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../../keys.py",
        "/page/%2e%2e/%2e%2e/keys.py",
        "/page//etc/passwd",
        "/v1/..%2f",
    ],
)
def test_path_tricks(live, path):
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400", b"405"), answer[:200]
    assert b"root:" not in answer and b"import" not in answer


def test_security_headers(live):
    headers = httpx.get(live.url.replace("/v1", "/healthz")).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert f"ws://127.0.0.1:{live.port}" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and "server" not in headers


def test_sessions_over_the_limit_are_refused(serving):
    async def many(url: str) -> tuple[list[str], int]:
        opened = [await connect(url) for _ in range(4)]
        first = [json.loads(await one.recv()) for one in opened]
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await opened[-1].recv()
        for one in opened[:3]:
            await one.close()
        async with connect(url) as later:
            first.append(json.loads(await later.recv()))
        return [one["type"] for one in first], closed.value.rcvd.code  # type: ignore[union-attr]

    with serving(limits={"sessions": 3}) as live:
        kinds, code = asyncio.run(many(live.url.replace("http", "ws") + "/realtime"))
    assert kinds == ["session.created"] * 3 + ["error", "session.created"]
    assert code == 1013


@pytest.mark.slow
def test_a_thousand_connections(serving):
    with serving(limits={"connections": 50, "requests_per_minute": 100_000}) as live:
        raws = []
        for _ in range(1000):
            raw = socket.create_connection(("127.0.0.1", live.port), timeout=10)
            raws.append(raw)
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answers = [raw.recv(4096).split()[1] for raw in raws]
        assert set(answers) <= {b"200", b"503"} and b"200" in answers
        for raw in raws:
            raw.close()
        assert httpx.get(f"{live.url}/models").status_code == 200


@pytest.mark.slow
def test_idle_and_long_sessions_end(serving):
    async def end(url: str) -> tuple[str, int]:
        async with connect(url) as opened:
            received = []
            try:
                while True:
                    received.append(json.loads(await opened.recv()))
            except ConnectionClosed as closed:
                return received[-1]["error"]["code"], closed.rcvd.code  # type: ignore[union-attr]

    for limits, code in (({"idle_seconds": 0.3}, "idle"), ({"session_seconds": 0.3}, "session_expired")):
        with serving(limits=limits) as live:
            assert asyncio.run(end(live.url.replace("http", "ws") + "/realtime")) == (code, 1001)


def test_a_shutdown_is_announced(serving):
    async def until_closed(url: str, stop: Any) -> tuple[str, int]:
        async with connect(url) as opened:
            await opened.recv()
            asyncio.get_running_loop().run_in_executor(None, stop)
            received = json.loads(await opened.recv())
            with pytest.raises(ConnectionClosed) as closed:
                await opened.recv()
            return received["error"]["code"], closed.value.rcvd.code  # type: ignore[union-attr]

    with serving() as live:
        answer = asyncio.run(until_closed(live.url.replace("http", "ws") + "/realtime", live.stop))
    assert answer == ("leaving", 1001)


def test_a_shutdown_waits_for_running_answers(serving):
    async def until_closed(url: str, stop: Any) -> tuple[list[str], int]:
        async with connect(url) as opened:
            part = {"type": "input_text", "text": "i passed my exam today"}
            item = {"type": "message", "role": "user", "content": [part]}
            await opened.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await opened.send(json.dumps({"type": "response.create"}))
            received = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    event = json.loads(await opened.recv())
                    received.append(event["response"]["status"] if "response" in event else event["type"])
                    if event["type"] == "response.created":
                        asyncio.get_running_loop().run_in_executor(None, stop)
            return received, closed.value.rcvd.code  # type: ignore[union-attr]

    with serving(limits={"shutdown_seconds": 60.0}) as live:
        received, code = asyncio.run(until_closed(live.url.replace("http", "ws") + "/realtime", live.stop))
    assert received[-2:] == ["completed", "error"] and "response.output_audio.delta" in received
    assert code == 1001


def test_one_address_leaves_sessions_to_others(serving):
    async def last(url: str) -> str:
        opened = [await connect(url) for _ in range(3)]
        await opened[0].recv()
        received = [json.loads(await one.recv()) for one in opened[1:]]
        for one in opened:
            await one.close()
        assert received[0]["type"] == "session.created"
        return received[1]["error"]["message"]

    with serving(limits={"sessions": 3, "sessions_per_address": 2}) as live:
        message = asyncio.run(last(live.url.replace("http", "ws") + "/realtime"))
    assert "limits.sessions_per_address" in message
    defaults = ServeConfig().limits
    assert defaults.sessions_per_address < defaults.sessions


def test_the_rate_limiter_is_a_leaky_bucket():
    buckets = RateLimiter(per_minute=60)
    assert not any(buckets.take("a", 0.0) for _ in range(60))
    assert buckets.take("a", 0.0) == pytest.approx(1.0)
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 1.01) == 0.0
    for number in range(20_000):
        buckets.take(str(number), 2.0)
    assert len(buckets._levels) == RateLimiter.MAX_NAMES


def test_invalid_settings_are_named(tmp_path: Path):
    from echat.config import ConfigError
    from echat.serve.server import load_config

    with pytest.raises(ConfigError, match="certificate and key"):
        load_config(None, ["tls_certificate=a.pem"])
    with pytest.raises(ConfigError, match="did you mean 'limits'"):
        load_config(None, ["limit.sessions=3"])
    with pytest.raises(ValueError, match="--keys: expected a file of API keys .*found none"):
        load_config(None, [f"keys={tmp_path / 'nokeys'}"])
    file = tmp_path / "serve.yaml"
    file.write_text("limits:\n  sessions: 3\n")
    assert load_config(file, ["port=0"]).limits.sessions == 3
