"""Conversations on disk, only where the operator asked for it; clients are told when a session opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from echat.audio.waveform import write


class Recorder:
    """One folder per session: a WAV per spoken item, and a line per item in `items.jsonl`."""

    def __init__(self, folder: Path, session_id: str) -> None:
        self._folder = folder / session_id

    def keep(self, item: dict[str, Any], samples: np.ndarray | None, rate: int) -> None:
        """Write an item and its int16 sound (n,)."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = dict(item)
        if samples is not None and len(samples):
            line["file"] = f"{len(list(self._folder.glob('*.wav'))):04}-{item['role']}.wav"
            write(self._folder / line["file"], samples.astype(np.float32) / 32768, rate)
        with open(self._folder / "items.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
