"""Pages of allowed origins can use the REST endpoints; odd names and origins are refused, never an error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from echat.serve.origins import Origins

APP = "http://localhost:3000"
ASKING = {"Origin": APP, "Access-Control-Request-Method": "POST"}
ODD = ["[", "[::1", "a[b]", "http://[", "http://[x]", "//", "http://a:b", "http://a:99999", "\u00e4", "]:80"]


@pytest.fixture(scope="module")
def open_to(serving: Any) -> Any:
    with serving(origins=[APP], hosts=["voice.example.org"], limits={"requests_per_minute": 100_000}) as live:
        yield live


def test_a_preflight_request_is_answered(open_to: Any) -> None:
    wanted = {"Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"}
    for path in ("chat/completions", "audio/transcriptions", "audio/speech", "realtime/client_secrets"):
        answer = httpx.options(f"{open_to.url}/{path}", headers={**ASKING, **wanted})
        assert answer.status_code == 204 and answer.content == b""
        assert answer.headers["access-control-allow-origin"] == APP
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == wanted["Access-Control-Request-Headers"]


def test_every_response_has_cors_headers_for_an_allowed_origin(open_to: Any) -> None:
    good = httpx.get(f"{open_to.url}/models", headers={"Origin": APP})
    bad = httpx.post(f"{open_to.url}/chat/completions", json={}, headers={"Origin": APP})
    assert (good.status_code, bad.status_code) == (200, 400)
    for answer in (good, bad):
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "origin" in answer.headers["vary"].lower()


def test_a_preflight_needs_no_key_and_a_refusal_can_be_read(serving: Any, tmp_path: Any) -> None:
    from echat.serve.keys import Keys

    Keys(tmp_path / "keys").add()
    with serving(keys=str(tmp_path / "keys"), origins=[APP]) as live:
        assert httpx.options(f"{live.url}/chat/completions", headers=ASKING).status_code == 204
        refused = httpx.get(f"{live.url}/models", headers={"Origin": APP})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", *ODD])
def test_other_pages_stay_out(open_to: Any, origin: str) -> None:
    headers = [(b"origin", origin.encode("latin-1")), (b"access-control-request-method", b"POST")]
    for method in ("OPTIONS", "GET"):
        answer = httpx.request(method, f"{open_to.url}/models", headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"
        assert "--allow-origin" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "voice.example.org.evil", *ODD])
def test_other_names_are_refused(open_to: Any, host: str) -> None:
    answer = httpx.get(f"{open_to.url}/models", headers=[(b"host", host.encode("latin-1"))])
    assert answer.status_code in (400, 403)  # some of them are no header at all
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "unknown_host"
        assert "--allow-host" in answer.json()["error"]["message"]
    assert httpx.get(f"{open_to.url}/models", headers={"Host": "voice.example.org:81"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://[", "https://evil.example"])
def test_a_socket_is_refused_with_the_same_headers(open_to: Any, origin: str) -> None:
    async def refusal() -> Any:
        with pytest.raises(InvalidStatus) as refused:
            await connect(
                open_to.url.replace("http", "ws") + "/realtime", additional_headers={"Origin": origin}
            )
        return refused.value.response

    response = asyncio.run(refusal())
    assert response.status_code == 403 and json.loads(response.body)["error"]["code"] == "foreign_origin"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("bound_to", "hosts", "host", "is_known"),
    [
        ("127.0.0.1", (), "localhost:80", True),
        ("127.0.0.1", (), "[::1]:80", True),
        ("127.0.0.1", (), "0.0.0.0", False),
        ("::1", (), "127.0.0.1", True),
        ("0.0.0.0", (), "any.example", True),
        ("0.0.0.0", ("a.example",), "any.example", False),
        ("0.0.0.0", ("a.example",), "a.example:8080", True),
        ("0.0.0.0", (), "[", False),
        ("0.0.0.0", (), "", False),
        ("10.1.1.1", (), "localhost", False),
        ("10.1.1.1", (), "10.1.1.1", True),
    ],
)
def test_names(bound_to: str, hosts: tuple[str, ...], host: str, is_known: bool) -> None:
    assert Origins(bound_to, hosts).allows_host(host) is is_known
