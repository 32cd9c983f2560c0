"""WAV files: repair of wrong lengths in the header, and a reader of 16-bit PCM without a decoder.

Recorders write the length last. One that was killed leaves 0, one that writes to a pipe leaves the largest
number, and some count their own header. Like players do, samples are then read to the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Self

import numpy as np

from echat.audio.errors import AudioError

RATES = (1000, 768_000)  # Hz that a header may announce; nothing is recorded outside
_STREAMED = 0x7FFF_F000  # and above: the length was not known
_MOST_LACKING = 4096  # bytes by which a length may be too large, a header or a buffer, and the share of it;
_LACKING_SHARE = 8  # what broke off lacks more
_TAGS = (b"ID3", b"TAG", b"APE")  # behind the samples, although no chunk


def is_wav(data: bytes) -> bool:
    """Do the bytes begin as a WAV does?"""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def whole_wav(data: bytes, where: str) -> bytes:
    """A WAV with the true length of its samples in the header, for decoders that rely on it. AudioError where
    the file ends before or within the samples."""
    block = 1
    for name, size, body in _chunks(data):
        if name == b"fmt " and body + 16 <= len(data):
            _, _, rate, _, block = struct.unpack_from("<HHIIH", data, body)
            refuse_impossible_rate(rate, where)
        if name == b"data":
            return _with_size(data, body, size, _true_size(data, body, size, block, where))
    raise cut_off(where, "a wav file with a data chunk", f"{len(data)} bytes without one")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and position of the body of each chunk of a RIFF file."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, size, position + 8
        position += 8 + size + size % 2


def _with_size(data: bytes, body: int, size: int, true: int) -> bytes:
    if size == true:
        return data
    head = data[:4] + struct.pack("<I", body + true - 8) + data[8 : body - 4]
    return head + struct.pack("<I", true) + data[body : body + true]


def _true_size(data: bytes, body: int, size: int, block: int, where: str) -> int:
    """Bytes of sound from ``body`` on, where the header says ``size``."""
    there = len(data) - body
    if size <= there and (size or not there) and _is_boundary(data, body + size):
        return size
    if not size and _is_boundary(data, body):
        return 0  # empty, and something else follows
    whole = there - there % max(1, block)
    if 0 < size < _STREAMED and size > there:
        is_file_whole = struct.unpack_from("<I", data, 4)[0] + 8 <= len(data)
        breaks_a_sample = whole != there
        if not is_file_whole and (
            size - there > min(_MOST_LACKING, size // _LACKING_SHARE) or breaks_a_sample
        ):
            raise cut_off(where, f"{size} bytes of sound", f"{there}")
    return whole


def _is_boundary(data: bytes, position: int) -> bool:
    """Does the file end here, or a chunk or a tag start, with or without a padding byte before it?"""
    return any(
        len(data) - start < 8 or data.startswith(_TAGS, start) or _is_chunk(data, start)
        for start in (position, position + 1)
    )


def _is_chunk(data: bytes, position: int) -> bool:
    name, size = struct.unpack_from("<4sI", data, position)
    return all(32 <= byte < 127 for byte in name) and position + 8 + size <= len(data)


def refuse_impossible_rate(rate: int, where: str) -> None:
    """AudioError for a rate that no recorder has."""
    low, high = RATES
    if not low <= rate <= high:
        raise AudioError(
            f"{where}: expected a sample rate of {low} to {high} Hz in the header, found {rate} Hz; "
            "export the sound again with its true rate",
            "rate",
        )


def cut_off(where: str, expected: str, found: str) -> AudioError:
    """The error of a file that is not whole."""
    return AudioError(
        f"{where}: expected {expected}, found {found}: the file is cut off; copy it again", "cut off"
    )


# --- The plainest sound file, 16-bit PCM in a WAV, read without a decoder: faster, and the same numbers.

_PCM = 1
_FULL_SCALE = np.float32(1 / 32768)


class Samples:
    """The part of the ``soundfile.SoundFile`` interface that reading needs, over an array (samples, channels)
    of int16 or float32."""

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
        form = None
        for name, size, body in _chunks(data) if is_wav(data) else ():
            if name == b"fmt " and body + 16 <= len(data):
                form = struct.unpack_from("<HHIIHH", data, body)
            if name == b"data":
                return cls._samples_at(data, body, size, form)
        return None

    @classmethod
    def _samples_at(cls, data: bytes, body: int, size: int, form: tuple[int, ...] | None) -> Self | None:
        if form is None or body + size > len(data) or not size:
            return None
        kind, channels, rate, _, block, bits = form
        if kind != _PCM or bits != 16 or not channels or not rate or block != 2 * channels or size % block:
            return None
        return cls(np.frombuffer(data, "<i2", size // 2, body).reshape(-1, channels), rate)
