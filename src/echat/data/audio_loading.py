"""Audio loading for training: decode, resample, cache, augment, log-mel.

All randomness comes from the generator passed in, so a mel depends on nothing but its sampled item.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from echat.audio import augmentation
from echat.audio.errors import AudioError
from echat.audio.features import SAMPLE_RATE, log_mel
from echat.audio.file_decoding import open_sound, seconds_of
from echat.audio.waveform import read
from echat.config import Config
from echat.data import storage
from echat.data.sample import AudioRef

NOISE_SECONDS = 20  # of each noise colour that is cached
BANDS = 6  # of the mel axis, each with its own warp and gain
_FULL_SCALE = np.float32(1 / 32768)


class AugmentConfig(Config):
    """Data augmentation of the user's sound in training. Zero switches a kind off."""

    renamed: ClassVar = {
        "bend": "vtlp_bands",
        "formants": "vtlp",
        "colour_db": "eq_db",
        "tempo": "time_stretch",
    }

    speed: float = 0.0  # play faster or slower by up to this share (pitch and formants follow)
    pitch: float = 0.0  # raise or lower pitch and formants by up to this share at unchanged tempo
    time_stretch: float = 0.0  # faster or slower by up to this share, on the mel: pitch stays
    vtlp: float = 0.0  # warp the mel axis by up to this share: vocal tract length perturbation
    vtlp_bands: float = 0.0  # on top of it, piecewise: each fifth of the mel axis by its own share
    eq_db: float = 0.0  # spectral equalization: bands by up to so many decibels, smoothly
    edges: float = 0.0  # begin and end after up to so many seconds of the clip's own quiet, whatever it had
    gain_db: float = 0.0  # louder or softer by up to this many decibels
    noise: float = 0.0  # probability of added noise
    noise_snr: tuple[float, float] = (5.0, 30.0)  # decibels, sampled uniformly
    probability: float = 1.0  # of speed or pitch (at most one of the two) being applied
    time_masks: int = 0  # stretches of mel set to 0
    max_time: int = 30  # longest such stretch, frames
    mel_masks: int = 0  # bands of mel set to 0
    max_mels: int = 10  # widest such band, bins
    substitutions: int = 0  # stretches replaced by an earlier stretch


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


@lru_cache(maxsize=len(augmentation.NOISE_COLOURS))
def noise_sample(colour: str) -> np.ndarray:
    """Cached noise to cut from: generating it costs more than the mel of a clip."""
    rng = np.random.default_rng(augmentation.NOISE_COLOURS.index(colour))
    return augmentation.noise(NOISE_SECONDS * SAMPLE_RATE, colour, rng)


def augment_waveform(waveform: np.ndarray, augment: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Edges, speed or pitch, gain, noise, as configured."""
    if augment.edges:
        waveform = augmentation.vary_margins(waveform, rng, augment.edges)
    kinds = [kind for kind in ("speed", "pitch") if getattr(augment, kind)]
    if kinds and rng.random() < augment.probability:
        kind = kinds[int(rng.integers(len(kinds)))]
        share = getattr(augment, kind)
        factor = math.exp(rng.uniform(-1.0, 1.0) * math.log1p(share))
        change = augmentation.speed if kind == "speed" else augmentation.pitch
        waveform = change(waveform, factor)
    if augment.gain_db:
        waveform = augmentation.gain(waveform, rng.uniform(-augment.gain_db, augment.gain_db))
    if augment.noise and rng.random() < augment.noise:
        colour = augmentation.NOISE_COLOURS[int(rng.integers(len(augmentation.NOISE_COLOURS)))]
        begin = int(rng.integers(NOISE_SECONDS * SAMPLE_RATE))
        sound = np.roll(noise_sample(colour), -begin)[: len(waveform)]
        waveform = augmentation.add_noise(waveform, sound, rng.uniform(*augment.noise_snr))
    return waveform.astype(np.float32)


def augment_mel(mel: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Time stretch, VTLP, equalization, masks, substitutions, as configured."""
    if augment.time_stretch:
        mel = augmentation.stretch_mel(
            mel, math.exp(rng.uniform(-1.0, 1.0) * math.log1p(augment.time_stretch))
        )
    if augment.vtlp or augment.vtlp_bands:
        everywhere = rng.uniform(-1.0, 1.0) * math.log1p(augment.vtlp)
        here = rng.uniform(-1.0, 1.0, BANDS) * math.log1p(augment.vtlp_bands) if augment.vtlp_bands else 0.0
        mel = augmentation.warp_mel(mel, np.exp(everywhere + here))
    if augment.eq_db:
        mel = augmentation.equalize_mel(mel, rng.uniform(-1.0, 1.0, BANDS) * augment.eq_db)
    if augment.time_masks or augment.mel_masks:
        longest = min(augment.max_time, max(1, len(mel) // 4))  # a mask must not swallow a short clip
        mel = augmentation.spec_augment(
            mel, rng, augment.time_masks, longest, augment.mel_masks, augment.max_mels
        )
    if augment.substitutions:
        mel = augmentation.spec_substitute(mel, rng, augment.substitutions)
    return mel
