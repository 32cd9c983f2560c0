"""Sound as it travels: 16-bit PCM at 24 kHz, or G.711 at 8 kHz; in and out of samples at the model's rates.

State is local to one session; pieces may be cut anywhere, also within a sample.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr

from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import Resampler
from echat.audio.time_stretching import TimeStretcher
from echat.serve.protocol.session import PCM_RATE, FormatName

G711_RATE = 8_000
BYTES_PER_SAMPLE = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}


def rate_of(name: FormatName) -> int:
    """Samples per second."""
    return PCM_RATE if name == "audio/pcm" else G711_RATE


class Decoder:
    """Bytes in, 16 kHz int16 out."""

    def __init__(self, name: FormatName) -> None:
        self.name = name
        self._rest = b""
        self._resampler = Resampler(rate_of(name), SAMPLE_RATE)
        self.samples = 0  # received, at the rate of the format

    @property
    def seconds(self) -> float:
        """Received so far."""
        return self.samples / rate_of(self.name)

    def push(self, data: bytes, last: bool = False) -> np.ndarray:
        """The next samples (n,) at 16 kHz; `last` gives what the resampler still holds."""
        data = self._rest + data
        whole = len(data) - len(data) % BYTES_PER_SAMPLE[self.name]
        self._rest = b"" if last else data[whole:]
        samples = _samples(data[:whole], self.name)
        self.samples += len(samples)
        resampled = self._resampler.push(samples, last)
        if last:
            self._resampler = Resampler(rate_of(self.name), SAMPLE_RATE)
        return _int16(resampled)


class Encoder:
    """Float samples at the model's rate in, bytes out."""

    def __init__(self, name: FormatName, rate: int, speed: float = 1.0) -> None:
        self.name = name
        self._stretcher = None if speed == 1.0 else TimeStretcher(rate, speed)
        self._resampler = None if rate == rate_of(name) else Resampler(rate, rate_of(name))

    def push(self, waveform: np.ndarray, last: bool = False) -> bytes:
        """The next bytes; `last` gives what the resampler still holds."""
        if self._stretcher is not None:
            waveform = self._stretcher.push(waveform, last)
        samples = waveform.astype(np.float32) * 32768
        if self._resampler is not None:
            samples = self._resampler.push(samples, last)
        return _bytes(_int16(samples), self.name)


def milliseconds(n_bytes: int, name: FormatName) -> int:
    """How long so many bytes sound."""
    return n_bytes * 1000 // (BYTES_PER_SAMPLE[name] * rate_of(name))


def to_pcm24(samples: np.ndarray) -> bytes:
    """Whole 16 kHz int16 samples as 24 kHz PCM."""
    return _int16(soxr.resample(samples.astype(np.float32), SAMPLE_RATE, PCM_RATE)).astype("<i2").tobytes()


def _int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples), -32768, 32767).astype(np.int16)


def _samples(data: bytes, name: FormatName) -> np.ndarray:
    if name == "audio/pcm":
        return np.frombuffer(data, "<i2")
    codes = np.frombuffer(data, np.uint8)
    return (_mu_law() if name == "audio/pcmu" else _a_law())[codes]


def _bytes(samples: np.ndarray, name: FormatName) -> bytes:
    if name == "audio/pcm":
        return samples.astype("<i2").tobytes()
    table = _codes(name)
    return table[samples.astype(np.int32) + 32768].tobytes()


@lru_cache(maxsize=1)
def _mu_law() -> np.ndarray:
    """Code -> sample of G.711 mu-law: sign, three bits of exponent, four of mantissa, all inverted."""
    codes = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent, mantissa = (codes >> 4) & 7, codes & 15
    magnitude = ((2 * mantissa + 33) << (exponent + 2)) - 132
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)


@lru_cache(maxsize=1)
def _a_law() -> np.ndarray:
    """Code -> sample of G.711 A-law: every other bit inverted."""
    codes = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (codes >> 4) & 7, codes & 15
    steps = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    magnitude = steps << 3
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)


@lru_cache(maxsize=2)
def _codes(name: FormatName) -> np.ndarray:
    """(65536,) the code nearest to every sample from -32768 on."""
    values = (_mu_law() if name == "audio/pcmu" else _a_law()).astype(np.int32)
    order = np.argsort(values, kind="stable")
    middles = (values[order][1:] + values[order][:-1]) / 2
    nearest = order[np.searchsorted(middles, np.arange(-32768, 32768))].astype(np.uint8)
    if name == "audio/pcmu":
        nearest[nearest == 0x7F] = 0xFF  # of the two zeros, the positive one
    return nearest
