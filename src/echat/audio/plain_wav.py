"""The plainest sound file, 16-bit PCM in a WAV, read without a decoder: faster, and the same numbers."""

from __future__ import annotations

import struct
from typing import Self

import numpy as np

_PCM = 1
_FULL_SCALE = np.float32(1 / 32768)


class Samples:
    """What of ``soundfile.SoundFile`` reading takes, over (samples, channels) int16 or float32 in memory."""

    def __init__(self, samples: np.ndarray, samplerate: int) -> None:
        self._samples, self.samplerate = samples, samplerate
        self._position = 0

    @property
    def frames(self) -> int:
        return len(self._samples)

    @property
    def subtype(self) -> str:
        """As libsndfile names it."""
        return "PCM_16"  # of what a decoder made of lossy sound no more is worth keeping

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """(frames or, below 0, all, channels); 16-bit numbers are those of [-1, 1], either way."""
        assert dtype in ("float32", "int16") and always_2d
        part = self._samples[self._position :][: None if frames < 0 else frames]
        self._position += len(part)
        if dtype == part.dtype:
            return part
        if dtype == "int16":
            return np.clip(np.round(part / _FULL_SCALE), -32768, 32767).astype(np.int16)
        return part.astype(np.float32) * _FULL_SCALE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class PlainWav(Samples):
    """16-bit PCM of a WAV."""

    @classmethod
    def of(cls, data: bytes) -> Self | None:
        """None where the bytes are anything else, or not whole: then a decoder has to look."""
        if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
            return None
        position, form = 12, None
        while position + 8 <= len(data):
            name, size = struct.unpack_from("<4sI", data, position)
            body = position + 8
            if name == b"fmt " and body + 16 <= len(data):
                form = struct.unpack_from("<HHIIHH", data, body)
            if name == b"data":
                return cls._samples_at(data, body, size, form)
            position = body + size + size % 2
        return None

    @classmethod
    def _samples_at(cls, data: bytes, body: int, size: int, form: tuple[int, ...] | None) -> Self | None:
        if form is None or body + size > len(data) or not size:
            return None
        kind, channels, rate, _, block, bits = form
        if kind != _PCM or bits != 16 or not channels or not rate or block != 2 * channels or size % block:
            return None
        return cls(np.frombuffer(data, "<i2", size // 2, body).reshape(-1, channels), rate)
