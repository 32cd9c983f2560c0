"""Acoustic environment of speech: reverberation, microphone response, noise or babble at an SNR, level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from echat.audio.augmentation import NOISE_COLOURS, add_noise, gain, noise, reverberate
from echat.audio.features import SAMPLE_RATE
from echat.corpus.synthesis.tts_engines import Voice, speak

BABBLE = "babble"
Babble = tuple[tuple[str, Voice], ...]  # sentences and who speaks them


@dataclass(frozen=True)
class AcousticEnvironment:
    """Signal-to-noise ratio (None: no noise), gain, and the chances of a room and a microphone response."""

    snr_db: float | None
    room_chance: float = 0.0
    microphone_chance: float = 0.0
    gain_db: float = 0.0


def sample_training_environment(rng: np.random.Generator) -> AcousticEnvironment:
    """Half of the sentences quiet, half in noise of 5 to 30 dB; sometimes a room or a microphone response."""
    snr = float(rng.uniform(5.0, 30.0)) if rng.random() < 0.5 else None
    return AcousticEnvironment(
        snr, room_chance=0.25, microphone_chance=0.3, gain_db=float(rng.uniform(-3.0, 3.0))
    )


def apply_environment(
    speech: np.ndarray, environment: AcousticEnvironment, rng: np.random.Generator, babble: Babble
) -> np.ndarray:
    """The speech in an environment, with 0.1 to 0.4 s before and after, at most full scale."""
    if rng.random() < environment.room_chance:
        speech = reverberate(speech, rng)
    if rng.random() < environment.microphone_chance:
        speech = _apply_microphone(speech, rng)
    edges = (rng.uniform(0.1, 0.4, 2) * SAMPLE_RATE).astype(int)
    wave = np.pad(gain(speech, environment.gain_db), tuple(edges)).astype(np.float32)
    wave += (1e-4 * noise(len(wave), "pink", rng)).astype(np.float32)  # no room is digitally silent
    if environment.snr_db is not None:
        kind = str(rng.choice([*NOISE_COLOURS, BABBLE]))
        behind = _babble(len(wave), babble, rng) if kind == BABBLE else noise(len(wave), kind, rng)
        wave = add_noise(wave, behind, environment.snr_db)
    return limit_peak(wave)


def limit_peak(wave: np.ndarray) -> np.ndarray:
    """The waveform, attenuated where it would exceed full scale."""
    peak = float(np.abs(wave).max())
    return wave * np.float32(min(1.0, 0.98 / peak)) if peak else wave


def _apply_microphone(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random frequency response of up to 4 dB up and down."""
    spectrum = np.fft.rfft(speech)
    knots = rng.uniform(-4.0, 4.0, 6)
    response = np.interp(np.linspace(0.0, 5.0, len(spectrum)), np.arange(6), knots)
    return np.fft.irfft(spectrum * 10.0 ** (response / 20.0), n=len(speech)).astype(np.float32)


def _babble(samples: int, babble: Babble, rng: np.random.Generator) -> np.ndarray:
    """Four to six people speaking at once."""
    mixed = np.zeros(samples, dtype=np.float32)
    for _ in range(int(rng.integers(4, 7))):
        speech = _babble_speech(*babble[int(rng.integers(len(babble)))])
        mixed += np.resize(np.roll(speech, int(rng.integers(len(speech)))), samples)
    return mixed


@cache
def _babble_speech(text: str, voice: Voice) -> np.ndarray:
    speech = speak(text, voice)
    return speech / np.float32(np.std(speech))
