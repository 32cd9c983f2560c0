"""Data augmentation of waveforms and mels: gain, noise, room, telephone, speed, pitch, VTLP, SpecAugment.

Every function takes a ``numpy.random.Generator`` where chance is involved, so a seed repeats the sample.
Waveforms are ``(samples,)`` float32 arrays or tensors, and the kind passed in comes back; mels are
``(frames, n_mels)``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.lead_in import with_background
from echat.audio.time_stretching import TimeStretcher
from echat.config import Config

Wave = TypeVar("Wave", np.ndarray, Tensor)

MEL_PER_DECIBEL = 0.1 / 4.0  # of `features.log_mel`: a quarter of log10 of the power
NOISE_COLOURS = ("white", "pink", "brown", "hum")


def gain(waveform: Wave, decibels: float) -> Wave:
    """Louder or softer by ``decibels``; not clipped."""
    return waveform * float(10.0 ** (decibels / 20.0))


def noise(samples: int, colour: str, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Noise of unit power and a given colour: white, pink (-3 dB per octave), brown (-6), or mains hum."""
    if colour not in NOISE_COLOURS:
        raise ValueError(f"expected a noise colour of {', '.join(NOISE_COLOURS)}, found '{colour}'")
    if colour == "hum":
        return _hum(samples, rng, rate)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    bins = np.maximum(np.arange(len(spectrum)), 1.0)
    spectrum *= bins ** {"white": 0.0, "pink": -0.5, "brown": -1.0}[colour]
    wave = np.fft.irfft(spectrum, n=samples)
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-12)).astype(np.float32)


def _hum(samples: int, rng: np.random.Generator, rate: int) -> np.ndarray:
    mains = rng.choice([50.0, 60.0])
    time = np.arange(samples) / rate
    partials = [
        np.sin(2 * np.pi * (mains * k * time + rng.random())) * rng.uniform(0.3, 1.0) / k for k in range(1, 8)
    ]
    wave = np.sum(partials, axis=0) + 0.1 * rng.standard_normal(samples)
    return (wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def add_noise(waveform: Wave, noise_wave: np.ndarray, snr_db: float) -> Wave:
    """Mix ``noise_wave`` (repeated or cut to length) in, ``snr_db`` below the mean power."""
    signal = waveform if isinstance(waveform, np.ndarray) else waveform.numpy()
    tiled = np.resize(noise_wave, signal.shape).astype(np.float32)
    power, noise_power = float(np.mean(signal**2)), float(np.mean(tiled**2))
    if power == 0.0 or noise_power == 0.0:
        return waveform
    scale = np.float32(np.sqrt(power / noise_power / 10.0 ** (snr_db / 10.0)))
    mixed = signal + scale * tiled
    return mixed if isinstance(waveform, np.ndarray) else torch.from_numpy(mixed)


def reverberate(waveform: np.ndarray, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A room: noise-like reflections that decay by 60 dB within 0.15 to 0.4 s, half of them after the end."""
    length = int(rng.uniform(0.15, 0.4) * rate)
    reflections = rng.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    reflections[: int(0.003 * rate)] = 0.0
    reflections *= rng.uniform(0.1, 0.35) / np.sqrt(np.sum(reflections**2))
    reflections[0] = 1.0
    whole = len(waveform) + length - 1
    size = 1 << (whole - 1).bit_length()  # a power of two is transformed fastest
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(reflections, size)
    return np.fft.irfft(spectrum, size)[: len(waveform) + length // 2].astype(np.float32)


def telephone(waveform: np.ndarray, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A telephone line: 300 to 3,400 Hz, each edge varied by a fifth, and the 256 levels of mu-law."""
    spectrum = np.fft.rfft(waveform)
    hertz = np.fft.rfftfreq(len(waveform), 1.0 / rate)
    low, high = 300.0 * rng.uniform(0.8, 1.2), 3400.0 * rng.uniform(0.8, 1.15)
    slopes = np.minimum((hertz - low) / 100.0, (high - hertz) / 200.0)
    narrow = np.fft.irfft(spectrum * np.clip(slopes + 1.0, 0.0, 1.0), n=len(waveform))
    peak = np.abs(narrow).max() + 1e-12
    companded = np.sign(narrow) * np.log1p(255.0 * np.abs(narrow) / peak) / np.log(256.0)
    levels = np.round(companded * 127.0) / 127.0
    return (np.sign(levels) * np.expm1(np.abs(levels) * np.log(256.0)) / 255.0 * peak).astype(np.float32)


def vary_margins(waveform: Wave, rng: np.random.Generator, seconds: float) -> Wave:
    """A 16 kHz clip that begins, and ends, after 0 to ``seconds`` of its own quiet, whatever it had: people
    cut their clips close or leave them long. Of the sound itself nothing is lost."""
    signal = torch.as_tensor(waveform)
    for _ in range(2):
        signal = with_background(signal, round(rng.uniform(0.0, seconds) * SAMPLE_RATE)).flip(0)
    return signal.numpy() if isinstance(waveform, np.ndarray) else signal


def speed(waveform: Wave, factor: float) -> Wave:
    """Play ``factor`` times faster: pitch, formants and tempo move together, as on a tape."""
    signal = waveform if isinstance(waveform, np.ndarray) else waveform.numpy()
    length = max(1, round(len(signal) / factor))
    positions = np.arange(length) * factor
    if factor > 1.0:
        signal = _lowpass(signal, 1.0 / factor)
    faster = np.interp(positions, np.arange(len(signal)), signal).astype(np.float32)
    return faster if isinstance(waveform, np.ndarray) else torch.from_numpy(faster)


def _lowpass(signal: np.ndarray, cutoff: float) -> np.ndarray:
    """Zero everything above ``cutoff`` (1.0 = half the sample rate)."""
    spectrum = np.fft.rfft(signal)
    spectrum[int(cutoff * len(spectrum)) :] = 0.0
    return np.fft.irfft(spectrum, n=len(signal))


def time_stretch(waveform: Wave, factor: float, rate: int = SAMPLE_RATE) -> Wave:
    """Speak ``factor`` times faster at unchanged pitch."""
    signal = waveform if isinstance(waveform, np.ndarray) else waveform.numpy()
    if abs(factor - 1.0) < 1e-3:
        return waveform
    faster = TimeStretcher(rate, factor).push(signal, last=True)[: round(len(signal) / factor)]
    return faster if isinstance(waveform, np.ndarray) else torch.from_numpy(faster)


def pitch(waveform: Wave, factor: float, rate: int = SAMPLE_RATE) -> Wave:
    """Raise pitch *and* formants by ``factor`` at unchanged tempo: a smaller or larger speaker."""
    return time_stretch(speed(waveform, factor), 1.0 / factor, rate)


def warp_mel(mel: Tensor, factor: float | np.ndarray) -> Tensor:
    """Vocal tract length perturbation (VTLP): stretch the mel axis by ``factor`` (above 1: formants rise).

    Several factors apply at evenly spaced bins from the lowest to the highest, with linear interpolation
    between them: a vocal tract of another form.
    """
    n_mels = mel.shape[1]
    factors = torch.from_numpy(_interpolated(factor, n_mels))
    return _rows_at(mel.T, torch.arange(n_mels, dtype=torch.float32) / factors).T.contiguous()


def stretch_mel(mel: Tensor, factor: float) -> Tensor:
    """Speak ``factor`` times faster at unchanged pitch: the frames lie closer together."""
    return _rows_at(mel, torch.arange(max(1, round(len(mel) / factor)), dtype=torch.float32) * factor)


def _rows_at(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``x`` at fractional positions by linear interpolation; the last row stands for all beyond."""
    last = len(x) - 1
    positions = positions.clamp(max=last)
    low = positions.floor().long()
    share = (positions - low)[:, None].to(x)
    return x[low] * (1.0 - share) + x[(low + 1).clamp(max=last)] * share


def equalize_mel(mel: Tensor, decibels: np.ndarray) -> Tensor:
    """FilterAugment (Nam et al. 2022, linear bands): add ``decibels``, given at evenly spaced bins, to a
    normalised log mel. It simulates microphones, rooms and voices.
    """
    return mel + torch.from_numpy(_interpolated(decibels, mel.shape[1]) * np.float32(MEL_PER_DECIBEL))


def _interpolated(values: float | np.ndarray, n_mels: int) -> np.ndarray:
    """(n_mels,) float32: the values at evenly spaced bins and straight lines between them."""
    knots = np.atleast_1d(values)
    return np.interp(np.linspace(0, 1, n_mels), np.linspace(0, 1, len(knots)), knots).astype(np.float32)


def spec_augment(
    mel: Tensor,
    rng: np.random.Generator,
    time_masks: int = 2,
    max_time: int = 50,
    mel_masks: int = 2,
    max_mels: int = 10,
) -> Tensor:
    """A copy with random time stretches (1..max_time frames) and mel bands (1..max_mels bins) set to 0."""
    masked = mel.clone()
    frames, n_mels = mel.shape
    for _ in range(time_masks):
        start, width = int(rng.integers(frames)), int(rng.integers(1, max_time + 1))
        masked[start : start + width] = 0.0
    for _ in range(mel_masks):
        start, width = int(rng.integers(n_mels)), int(rng.integers(1, max_mels + 1))
        masked[:, start : start + width] = 0.0
    return masked


def spec_substitute(mel: Tensor, rng: np.random.Generator, count: int = 3, max_frames: int = 30) -> Tensor:
    """A copy with ``count`` stretches (1..max_frames frames) replaced by an earlier one."""
    replaced = mel.clone()
    frames = mel.shape[0]
    for _ in range(count):
        start = int(rng.integers(frames))
        width = min(int(rng.integers(1, max_frames + 1)), frames - start)
        earlier = int(rng.integers(start + 1))
        replaced[start : start + width] = mel[earlier : earlier + width]
    return replaced


# --- Which of them training applies, how strongly: the augmentation of a recipe.

NOISE_SECONDS = 20  # of each noise colour that is cached
BANDS = 6  # of the mel axis, each with its own warp and gain


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
    room: float = 0.0  # probability of reverberation
    telephone: float = 0.0  # probability of a telephone's band and levels
    probability: float = 1.0  # of speed or pitch (at most one of the two) being applied
    time_masks: int = 0  # stretches of mel set to 0
    max_time: int = 30  # longest such stretch, frames
    mel_masks: int = 0  # bands of mel set to 0
    max_mels: int = 10  # widest such band, bins
    substitutions: int = 0  # stretches replaced by an earlier stretch


@lru_cache(maxsize=len(NOISE_COLOURS))
def noise_sample(colour: str) -> np.ndarray:
    """Cached noise to cut from: generating it costs more than the mel of a clip."""
    rng = np.random.default_rng(NOISE_COLOURS.index(colour))
    return noise(NOISE_SECONDS * SAMPLE_RATE, colour, rng)


def augment_waveform(waveform: np.ndarray, augment: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Edges, speed or pitch, room, gain, noise, telephone, as configured."""
    if augment.edges:
        waveform = vary_margins(waveform, rng, augment.edges)
    kinds = [kind for kind in ("speed", "pitch") if getattr(augment, kind)]
    if kinds and rng.random() < augment.probability:
        kind = kinds[int(rng.integers(len(kinds)))]
        share = getattr(augment, kind)
        factor = math.exp(rng.uniform(-1.0, 1.0) * math.log1p(share))
        change = speed if kind == "speed" else pitch
        waveform = change(waveform, factor)
    if augment.room and rng.random() < augment.room:
        waveform = reverberate(waveform, rng)
    if augment.gain_db:
        waveform = gain(waveform, rng.uniform(-augment.gain_db, augment.gain_db))
    if augment.noise and rng.random() < augment.noise:
        colour = NOISE_COLOURS[int(rng.integers(len(NOISE_COLOURS)))]
        begin = int(rng.integers(NOISE_SECONDS * SAMPLE_RATE))
        sound = np.roll(noise_sample(colour), -begin)[: len(waveform)]
        waveform = add_noise(waveform, sound, rng.uniform(*augment.noise_snr))
    if augment.telephone and rng.random() < augment.telephone:
        waveform = telephone(waveform, rng)
    return waveform.astype(np.float32)


def augment_mel(mel: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Time stretch, VTLP, equalization, masks, substitutions, as configured."""
    if augment.time_stretch:
        mel = stretch_mel(mel, math.exp(rng.uniform(-1.0, 1.0) * math.log1p(augment.time_stretch)))
    if augment.vtlp or augment.vtlp_bands:
        everywhere = rng.uniform(-1.0, 1.0) * math.log1p(augment.vtlp)
        here = rng.uniform(-1.0, 1.0, BANDS) * math.log1p(augment.vtlp_bands) if augment.vtlp_bands else 0.0
        mel = warp_mel(mel, np.exp(everywhere + here))
    if augment.eq_db:
        mel = equalize_mel(mel, rng.uniform(-1.0, 1.0, BANDS) * augment.eq_db)
    if augment.time_masks or augment.mel_masks:
        longest = min(augment.max_time, max(1, len(mel) // 4))  # a mask must not swallow a short clip
        mel = spec_augment(mel, rng, augment.time_masks, longest, augment.mel_masks, augment.max_mels)
    if augment.substitutions:
        mel = spec_substitute(mel, rng, augment.substitutions)
    return mel
