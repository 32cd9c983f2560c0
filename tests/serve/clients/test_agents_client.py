"""A second, independent client: the official JavaScript voice client, unmodified, in Node and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

CLIENT = Path(__file__).parents[1] / "agents_client"
NODE = shutil.which("node")
AS_IN_A_BROWSER = ("--conditions=browser", "--experimental-websocket")  # keys travel as a subprotocol

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs node"),
    pytest.mark.skipif(
        not (CLIENT / "node_modules" / "@openai" / "agents-realtime").is_dir(),
        reason="needs @openai/agents-realtime: make setup installs it where npm is there",
    ),
]


def client_secret(live: Any, key: str) -> str:
    """A short-lived key, as a web server gets one for its page."""
    session = {"type": "realtime", "model": "gpt-realtime", "audio": {"output": {"voice": "marin"}}}
    answer = httpx.post(
        f"{live.url}/realtime/client_secrets",
        json={"session": session, "expires_after": {"anchor": "created_at", "seconds": 600}},
        headers={"authorization": f"Bearer {key}"},
    ).json()
    assert (
        answer["session"]["model"] == "echat-tiny"
        and answer["session"]["audio"]["output"]["voice"] == "marin"
    )
    assert answer["value"].startswith("ek_")
    return str(answer["value"])


@pytest.fixture(scope="module", params=["node", "browser"])
def received(
    request: pytest.FixtureRequest, serving: Any, question: bytes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the client experienced: a greeting and two turns."""
    from echat.serve.keys import Keys

    folder = tmp_path_factory.mktemp("sound")
    sound, keys = folder / "question.pcm", folder / "keys.jsonl"
    sound.write_bytes(question)
    key, _ = Keys(keys).add()
    assert NODE is not None
    with serving(keys=str(keys)) as live:
        url = live.url.replace("http", "ws") + "/realtime"
        in_browser = request.param == "browser"
        given = client_secret(live, key) if in_browser else key
        flags = AS_IN_A_BROWSER if in_browser else ()
        command = [NODE, *flags, "talk.mjs", url, str(sound), given]
        done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_greeting_and_an_answer(received):
    assert received["errors"] == []
    assert received["greeting"] > 12_000
    assert received["firstAudio"] > 0 and received["audioBytes"] > received["greeting"] + 12_000
    assert "session.updated" in received["kinds"]
    assert received["history"][-1]["words"][0]


@pytest.mark.slow
def test_it_interrupts_and_truncates(received):
    assert received["interruptions"] >= 1
    kinds = received["kinds"]
    assert kinds.index("conversation.item.truncated") > kinds.index("response.output_audio.delta")
    assert kinds.count("input_audio_buffer.speech_started") == 2


def test_its_history_is_that_of_the_server(received):
    roles = [item["role"] for item in received["history"]]
    assert roles == ["assistant", "user", "assistant", "user", "assistant"]
    assert received["history"][1]["content"] == ["input_audio"]
    assert received["history"][2]["content"] == ["output_audio"]
