"""A question as input of a microphone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FRAME_BYTES = 960  # 20 ms of 24 kHz PCM


def frames(path: str) -> Iterator[bytes]:
    """The file, with silence around it, in frames of 20 ms."""
    sound = bytes(24_000) + Path(path).read_bytes() + bytes(72_000)
    for start in range(0, len(sound) - FRAME_BYTES, FRAME_BYTES):
        yield sound[start : start + FRAME_BYTES]
