"""Audio loading for training: decode, resample, cache, augment, log-mel.

All randomness comes from the generator passed in, so a mel depends on nothing but its sampled item.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echat.audio.augmentation import AugmentConfig, augment_mel, augment_waveform
from echat.audio.errors import AudioError
from echat.audio.features import SAMPLE_RATE, log_mel
from echat.audio.file_decoding import open_sound, seconds_of
from echat.audio.waveform import read
from echat.data import storage
from echat.data.sample import AudioRef

_FULL_SCALE = np.float32(1 / 32768)


class AudioLoader:
    """Reads sound at 16 kHz through an LRU cache of ``cache_mb`` in int16 (6 h take 0.7 GB).

    A hit or a miss changes nothing but the time: sound is rounded to int16 either way.
    """

    def __init__(self, cache_mb: float = 1000.0) -> None:
        self._free_bytes = int(cache_mb * 1e6)  # bytes left; below 0 something has to go
        self._cache: OrderedDict[AudioRef, np.ndarray] = OrderedDict()

    def read(self, ref: AudioRef) -> np.ndarray:
        """(samples,) float32 in [-1, 1]. Raises AudioError or DataError."""
        stored = self._cache.get(ref)
        if stored is None:
            stored = _decode_int16(ref)
            self._store(ref, stored)
        else:
            self._cache.move_to_end(ref)
        return stored.astype(np.float32) * _FULL_SCALE

    def _store(self, ref: AudioRef, stored: np.ndarray) -> None:
        self._cache[ref] = stored
        self._free_bytes -= stored.nbytes
        while self._free_bytes < 0:
            _, oldest = self._cache.popitem(last=False)
            self._free_bytes += oldest.nbytes


def load_audio(ref: AudioRef, rate: int | None = SAMPLE_RATE, **bounds: Any) -> tuple[Tensor, int]:
    """(samples,) and their rate (None: as stored), for ``bounds`` of :func:`echat.audio.waveform.read`.

    Raises AudioError or DataError.
    """
    data = ref.read_bytes()
    start, end = ref.start_seconds, ref.end_seconds
    try:
        return read(data, rate, name=ref.where, start_seconds=start, end_seconds=end, **bounds)
    except AudioError:
        raise
    except Exception as error:  # bytes and stretch are untrusted
        cause = f"{type(error).__name__} {error}".strip()
        raise AudioError(
            f"{ref.where}: expected sound, found what its decoder cannot read ({cause})", "undecodable"
        ) from error


def stored_seconds(ref: AudioRef) -> float:
    """Length of a sound as the header of its file says it. Raises AudioError or DataError."""
    import soundfile

    if not (storage.stamp(ref.path).size if ref.is_file else ref.size):
        raise AudioError(f"{ref.where}: expected an audio file, found 0 bytes", "empty")
    try:
        if ref.is_file:
            whole = seconds_of(ref.path)
        else:
            with open_sound(ref.read_bytes(), ref.where) as sound:
                whole = float(sound.frames / sound.samplerate)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{ref.where}: expected sound, found: {error}", "undecodable") from error
    end = whole if ref.end_seconds is None else min(ref.end_seconds, whole)
    return end - (ref.start_seconds or 0.0)


def _decode_int16(ref: AudioRef) -> np.ndarray:
    """(samples,) int16 at 16 kHz."""
    waveform, _ = load_audio(ref)
    scaled = waveform.numpy() * np.float32(32768.0)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


def extract_mel(
    waveform: np.ndarray, n_mels: int, augment: AugmentConfig | None, rng: np.random.Generator
) -> np.ndarray:
    """Log-mel (frames, n_mels) float32; augmented when ``augment`` is given."""
    if augment is None:
        return log_mel(torch.from_numpy(waveform), n_mels).numpy()
    mel = log_mel(torch.from_numpy(augment_waveform(waveform, augment, rng)), n_mels)
    return augment_mel(mel, augment, rng).numpy()
