"""Sessions of onnxruntime have one home, and leave no telemetry behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import echat

PACKAGE = Path(echat.__file__).parent


@pytest.mark.slow
def test_a_session_writes_nothing_below_the_home_folder(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("silero_vad")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    code = "from echat.audio.vad import _session; assert _session().get_inputs()"
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sessions_are_made_in_one_place():
    makers = [path.name for path in PACKAGE.rglob("*.py") if "InferenceSession(" in path.read_text()]
    assert makers == ["onnx_runtime.py"]
