"""A second, independent client: the official JavaScript voice client, unmodified."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CLIENT = Path(__file__).parent / "agents_client"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs node"),
    pytest.mark.skipif(
        not (CLIENT / "node_modules" / "@openai" / "agents-realtime").is_dir(),
        reason="needs @openai/agents-realtime: make setup installs it where npm is there",
    ),
]


@pytest.fixture(scope="module")
def told(live: Any, question: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client experienced in two turns."""
    sound = tmp_path_factory.mktemp("sound") / "question.pcm"
    sound.write_bytes(question)
    url = live.url.replace("http", "ws") + "/realtime"
    assert NODE is not None
    done = subprocess.run(
        [NODE, "talk.mjs", url, str(sound)], cwd=CLIENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_it_hears_an_answer(told):
    assert told["errors"] == []
    assert told["firstAudio"] > 0 and told["audioBytes"] > 12_000
    assert "session.updated" in told["kinds"]


def test_it_interrupts_and_truncates(told):
    assert told["interruptions"] >= 1
    kinds = told["kinds"]
    assert kinds.index("conversation.item.truncated") > kinds.index("response.output_audio.delta")
    assert kinds.count("input_audio_buffer.speech_started") == 2


def test_its_history_is_that_of_the_server(told):
    roles = [item["role"] for item in told["history"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert told["history"][0]["content"] == ["input_audio"]
    assert told["history"][1]["content"] == ["output_audio"]
