"""Voice frameworks, unmodified and with their defaults, each in a process and an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"


def has(module: str) -> bool:
    """Is it installed where the clients are?"""
    return (
        PYTHON.exists()
        and subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0
    )


@pytest.fixture
def run_client(live: Any, question: bytes, tmp_path: Path) -> Any:
    """Run a client to its end: what it experienced."""

    def run(script: str, url: str) -> dict[str, Any]:
        sound = tmp_path / "question.pcm"
        sound.write_bytes(question)
        command = [PYTHON, CLIENTS / script, url, sound]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    return run


@pytest.mark.slow
def test_livekit(run_client, live):
    if not has("livekit.plugins.openai"):
        pytest.skip("needs livekit-plugins-openai: make setup installs it into .venv/clients")
    received = run_client("livekit_talk.py", live.url)
    assert received["errors"] == []
    for turn in ("greeting", "answer", "typed"):
        assert received[turn]["text"] and received[turn]["seconds"] > 0.5, received
    assert received["interrupted"]["seconds"] > 0.5
    assert len(received["words"][-1].split()) > 3
    assert received["roles"][:5] == ["assistant", "user", "assistant", "user", "assistant"]


@pytest.mark.slow
def test_pipecat(run_client, live):
    if not has("pipecat.services.openai.realtime.llm"):
        pytest.skip("needs pipecat-ai: make setup installs it into .venv/clients")
    received = run_client("pipecat_talk.py", live.url.replace("http", "ws") + "/realtime")
    assert received["errors"] == []
    for turn in ("greeting", "answer"):
        assert received[turn]["text"] and received[turn]["seconds"] > 0.5, received
