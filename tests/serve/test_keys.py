"""Keys and the secrets made with them: what opens what, and for how long."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from echat.serve.keys import Keys, Secret


def secret_of(
    keys: Keys, parent: Any, seconds: int = 60, most: int = 100, maker: str = "m"
) -> tuple[str, Secret]:
    return keys.new_secret(seconds, '{"instructions": "be kind"}', parent, maker, most)


def test_a_secret_is_revoked_with_its_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    _, parent = keys.add(days=1)
    _, other = keys.add()
    words, secret = secret_of(keys, parent)
    assert keys.find(words) == secret and secret.owner == parent.id
    assert keys.session_of(secret) == {"instructions": "be kind"}
    Keys(tmp_path / "keys").remove(other.id)
    assert keys.find(words) == secret
    Keys(tmp_path / "keys").remove(parent.id)  # in another process
    assert keys.find(words) is None


def test_a_secret_expires_no_later_than_its_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    _, parent = keys.add(days=100 / 86_400)
    _, secret = secret_of(keys, parent, seconds=7200)
    assert secret.expires == parent.expires


def test_secrets_of_one_maker_are_bounded(tmp_path: Path) -> None:
    keys = Keys(None)
    made = [secret_of(keys, None, most=3)[0] for _ in range(5)]
    others = secret_of(keys, None, most=3, maker="another")[0]
    assert [keys.find(words) is not None for words in [*made, others]] == [False] * 2 + [True] * 4


@pytest.mark.parametrize(
    "line",
    [
        "no key at all",
        "[]",
        "[" * 10_000,
        '{"id": "key_1", "hash": "00", "created": 1}',
        '{"id": 5, "hash": "' + 64 * "0" + '", "created": 1}',
        '{"id": "key_1", "hash": "' + 64 * "0" + '", "created": "now"}',
        '{"id": "key_1", "hash": "' + 64 * "0" + '", "created": 1, "expires": 1e30}',
        '{"id": "key_1", "hash": "' + 64 * "0" + '", "created": 1, "expires": 86400000000000000000000}',
        '{"id": "key_1", "hash": "' + 64 * "\u00e4" + '", "created": 1}',
        "\ufffd\x00",
    ],
)
def test_an_invalid_line_is_logged_and_other_keys_stay_valid(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    first, _ = Keys(path).add()
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    keys = Keys(path)
    second, added = keys.add(note="after")  # and the line stays: it may be somebody's
    assert keys.find(first) is not None and keys.find(second) == added
    assert len(keys.all()) == 2
    assert any("line 2: expected a key" in record.getMessage() for record in caplog.records)
    keys.remove(added.id)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2 and keys.find(first) is not None


@pytest.mark.parametrize("days", [float("inf"), float("nan"), 1e30, -1e30, 36_501])
def test_expiry_beyond_the_calendar_is_refused(tmp_path: Path, days: float) -> None:
    with pytest.raises(ValueError, match="--days: expected at most 36500"):
        Keys(tmp_path / "keys").add(days)
    assert not (tmp_path / "keys").exists()


# --- at a server


@pytest.fixture(scope="module")
def keyed(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys"
    good, key = Keys(path).add()
    with serving(keys=str(path), limits={"requests_per_minute": 40}) as live:
        live.good, live.key, live.key_file = good, key, path
        yield live


def made(live: Any, key: str, **session: Any) -> httpx.Response:
    body = {"session": {"type": "realtime", **session}}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{live.url}/realtime/client_secrets", json=body, headers=headers)


def opened(live: Any, key: str) -> dict[str, Any] | int:
    async def session() -> dict[str, Any] | int:
        url = live.url.replace("http", "ws") + "/realtime"
        try:
            async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as connection:
                return json.loads(await connection.recv())["session"]
        except InvalidStatus as refused:
            return refused.response.status_code

    return asyncio.run(session())


def test_a_secret_opens_a_session_and_nothing_else(keyed: Any) -> None:
    made_one = made(keyed, keyed.good, instructions="be kind").json()
    session = opened(keyed, made_one["value"])
    assert isinstance(session, dict) and session["instructions"] == "be kind"
    again = made(keyed, made_one["value"])  # it cannot make itself a successor
    assert again.status_code == 403 and again.json()["error"]["code"] == "secret_out_of_scope"
    headers = {"Authorization": f"Bearer {made_one['value']}"}
    for path in ("models", "audio/voices", "audio/speech"):
        assert httpx.get(f"{keyed.url}/{path}", headers=headers).status_code == 403
    long = made(keyed, keyed.good, instructions="a" * 40_000)
    assert long.status_code == 400 and "limits.text_characters" in long.json()["error"]["message"]
    much = made(keyed, keyed.good, tools=[{"a": "b" * 100_000}])
    assert much.status_code == 400 and much.json()["error"]["code"] == "session_too_large"


def test_a_secret_shares_the_rate_of_its_key_and_its_end(serving: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    good, key = Keys(path).add()
    with serving(keys=str(path), limits={"requests_per_minute": 4}) as live:
        secrets = [made(live, good).json()["value"] for _ in range(2)]
        assert isinstance(opened(live, secrets[0]), dict)
        statuses = [opened(live, secret) for secret in secrets]
        assert statuses[-1] == 429  # a second secret brings no second allowance
        Keys(path).remove(key.id)
        assert opened(live, secrets[0]) == 401
