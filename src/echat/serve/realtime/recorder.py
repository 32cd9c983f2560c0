"""Recorder of conversations on disk, only where the operator enabled it; clients are notified when a session
opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from echat.audio.waveform import write
from echat.serve.protocol.json_text import write_json


def check_folder(folder: Path) -> None:
    """Create the folder of recordings; ValueError where it is not writable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"recording: expected a folder that can be written, found {folder} ({reason}); name another"
        ) from error


class Recorder:
    """The recording of one session, a folder: a WAV per spoken item, and a line per item in `items.jsonl`."""

    def __init__(self, folder: Path, session_id: str) -> None:
        self._folder = folder / session_id

    def write_item(self, item: dict[str, Any], samples: np.ndarray | None, rate: int) -> None:
        """Write an item and its int16 samples (n,), whole or not at all."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = dict(item)
        if samples is not None and len(samples):
            line["file"] = f"{len(list(self._folder.glob('*.wav'))):04}-{item['role']}.wav"
            write(self._folder / line["file"], samples.astype(np.float32) / 32768, rate)
        _append(self._folder / "items.jsonl", write_json(line) + "\n")


def _append(path: Path, line: str) -> None:
    with open(path, "ab", buffering=0) as lines:
        before = lines.tell()
        data = line.encode()
        if lines.write(data) != len(data):  # the disk is full
            lines.truncate(before)
            raise OSError("no space left on the device")
