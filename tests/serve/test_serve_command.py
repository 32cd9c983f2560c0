"""`echat serve` as a process: its address, its end, settings that it refuses."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

START = [sys.executable, "-c", "import sys; from echat.cli import main; main(sys.argv[1:])"]


def serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*START, "serve", *arguments], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_it_prints_its_address_and_stops_at_a_signal() -> None:
    allowed = ["--allow-origin", "https://app.example.org", "--allow-host", "voice.example.org"]
    server = serve("--port", "0", *allowed)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.fullmatch(r"echat serves at (http://127\.0\.0\.1:(\d+)/) \(Ctrl-C stops it\)\n", line)
        assert found is not None and found[2] != "0", line
        assert httpx.get(found[1] + "healthz").json()["status"] == "ok"
        headers = {"Host": "voice.example.org", "Origin": "https://app.example.org"}
        assert httpx.get(found[1] + "v1/models", headers=headers).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["port", "host", "keys", "days"])
def test_invalid_settings_are_one_line_before_the_model_is_loaded(tmp_path: Path, fault: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        keys = str(tmp_path / "nokeys")
        arguments = {
            "port": ["serve", "--port", str(taken.getsockname()[1])],
            "host": ["serve", "--host", "192.0.2.1", "--port", "0"],
            "keys": ["serve", "--port", "0", "--keys", keys],
            "days": ["keys", "add", "--keys", keys, "--days", "inf"],
        }[fault]
        ended = subprocess.run([*START, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: --") and "expected" in line and "found" in line
