"""Recordings: on disk only where they are announced, and never in the way of the conversation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echat.serve.realtime.recorder import Recorder, check_folder

ITEM = {"id": "item_1", "role": "user", "content": [{"type": "input_text", "text": "half \ud83d"}]}


def test_an_item_is_a_line_and_its_audio_a_file(tmp_path):
    recorder = Recorder(tmp_path, "sess_1")
    recorder.write_item(ITEM, np.ones(1600, np.int16), 16_000)
    recorder.write_item(ITEM, None, 16_000)
    first, second = map(json.loads, (tmp_path / "sess_1" / "items.jsonl").read_text("utf-8").splitlines())
    assert first["file"] == "0000-user.wav" and (tmp_path / "sess_1" / first["file"]).is_file()
    assert "file" not in second and second["content"][0]["text"] == "half \ufffd"


def test_an_unwritable_folder_is_refused_at_the_start(tmp_path, serving):
    file = tmp_path / "file"
    file.write_text("mine")
    for start in (file, file / "below"):
        with pytest.raises(ValueError, match="recording: expected a folder that can be written, found"):
            check_folder(start)
    with pytest.raises(ValueError, match="recording"), serving(recording=str(file)):
        pass
    assert file.read_text() == "mine"


def full_disk(folder: Path) -> None:
    (folder / "items.jsonl").symlink_to("/dev/full")


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [full_disk, no_folder])
def test_a_failed_recording_does_not_end_the_session(talking, question, quiet, tmp_path, fault):
    async def dialogue(client: Any) -> None:
        folder = tmp_path / client.session.id
        folder.mkdir()
        fault(folder)
        await client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        for _ in range(2):
            await client.say(question + quiet(1.0))
            done = await client.until("response.done")
            assert done["response"]["status"] in ("completed", "incomplete")
        notices = [event["recording"] for event in client.received if event["type"] == "session.recording"]
        assert notices == [True, False]
        assert b'errors_total{where="recording"} 1.0' in client.session.context.metrics.text()

    talking(dialogue, recording=str(tmp_path))
