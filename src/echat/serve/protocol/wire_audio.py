"""Wire audio: base64 of 16-bit PCM at 24 kHz or of G.711 (mu-law, A-law) at 8 kHz, to and from samples at the
model's rates. Pieces may be cut anywhere, also within a sample."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

import numpy as np
import soxr

from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import Resampler
from echat.audio.time_stretching import TimeStretcher
from echat.audio.waveform import MIN_SECONDS, to_int16
from echat.serve.protocol.session import PCM_RATE, FormatName
from echat.serve.protocol.wire import ProtocolError

G711_RATE = 8_000
BYTES_PER_SAMPLE = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}
MIN_SAMPLES = int(MIN_SECONDS * SAMPLE_RATE)  # of a question, at 16 kHz


def decode_base64(audio: str, where: str) -> bytes:
    """The bytes of base64; anything else is refused, as the field `where`."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{where}: expected base64", param=where) from error


def rate_of(name: FormatName) -> int:
    """Samples per second of a format."""
    return PCM_RATE if name == "audio/pcm" else G711_RATE


class AudioDecoder:
    """Streaming decoder and resampler: bytes of a format in, 16 kHz int16 out."""

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
        """The next samples (n,) at 16 kHz; `last` flushes the resampler."""
        data = self._rest + data
        whole = len(data) - len(data) % BYTES_PER_SAMPLE[self.name]
        self._rest = b"" if last else data[whole:]
        samples = _samples(data[:whole], self.name)
        self.samples += len(samples)
        resampled = self._resampler.push(samples, last)
        if last:
            self._resampler = Resampler(rate_of(self.name), SAMPLE_RATE)
        return to_int16(resampled / 32768)


class AudioEncoder:
    """Streaming resampler and encoder: float samples at the model's rate in, bytes of a format out."""

    def __init__(self, name: FormatName, rate: int, speed: float = 1.0) -> None:
        self.name = name
        self._stretcher = None if speed == 1.0 else TimeStretcher(rate, speed)
        self._resampler = None if rate == rate_of(name) else Resampler(rate, rate_of(name))

    def push(self, waveform: np.ndarray, last: bool = False) -> bytes:
        """The next bytes; `last` flushes the resampler."""
        if self._stretcher is not None:
            waveform = self._stretcher.push(waveform, last)
        if self._resampler is not None:
            waveform = self._resampler.push(waveform, last)
        return _bytes(to_int16(waveform), self.name)


def milliseconds(n_bytes: int, name: FormatName) -> int:
    """Duration of so many bytes."""
    return n_bytes * 1000 // (BYTES_PER_SAMPLE[name] * rate_of(name))


def to_pcm24(samples: np.ndarray) -> bytes:
    """Whole 16 kHz int16 samples as 24 kHz PCM."""
    resampled = soxr.resample(samples.astype(np.float32) / 32768, SAMPLE_RATE, PCM_RATE)
    return to_int16(resampled).astype("<i2").tobytes()


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
