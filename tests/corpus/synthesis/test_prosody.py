"""Prosody of an emotion is the same in every voice: pitch, tempo, level and spectrum are measured."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import pyworld
from scipy.signal import lfilter

from echat.corpus.synthesis.prosody import (
    EMOTIONS,
    LEVEL,
    Prosody,
    SpeakerTraits,
    apply_prosody,
    sample_prosody,
    sample_speaker,
)

ADULT = SpeakerTraits(120.0, 1.0, False)


@cache
def reading(f0_hz: float = 120.0) -> np.ndarray:
    """A hummed vowel of 1.6 s whose pitch falls by 3 semitones, with pauses like those of words."""
    time = np.arange(25_600) / 16_000
    f0 = f0_hz * 2 ** ((1.5 - 3 * time / 1.6 + 0.8 * np.sin(9 * time)) / 12)
    wave = np.diff(np.floor(np.cumsum(f0) / 16_000), prepend=0.0)
    for hertz in (700.0, 1300.0, 2600.0):
        radius = np.exp(-np.pi * 90 / 16_000)
        wave = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * hertz / 16_000), radius**2], wave)
    words = (np.sin(2 * np.pi * 1.8 * time) > -0.8).astype(float)
    return (0.05 * wave * words / wave.std()).astype(np.float32)


def say(prosody: Prosody, speaker: SpeakerTraits = ADULT, f0_hz: float = 120.0) -> np.ndarray:
    return apply_prosody(reading(f0_hz), "male", speaker, prosody, np.random.default_rng(0))


def pitch(wave: np.ndarray) -> np.ndarray:
    """Semitones above 100 Hz of the voiced frames."""
    f0, _ = pyworld.dio(wave.astype(np.float64), 16_000, f0_floor=60.0, f0_ceil=700.0, frame_period=10.0)
    return 12 * np.log2(f0[f0 > 0] / 100)


def centre_hz(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / 16_000)).sum() / power.sum())


@pytest.mark.parametrize("source_hz", [100.0, 180.0])
@pytest.mark.parametrize("wanted_hz", [95.0, 200.0, 310.0])
def test_the_pitch_is_that_of_the_speaker_whatever_the_source_voice(
    source_hz: float, wanted_hz: float
) -> None:
    wave = say(Prosody(), SpeakerTraits(wanted_hz, 1.0, False), source_hz)
    assert 100 * 2 ** (np.median(pitch(wave)) / 12) == pytest.approx(wanted_hz, rel=0.06)


def test_tempo_changes_the_length() -> None:
    assert len(say(Prosody(tempo=1.25))) == pytest.approx(len(reading()) / 1.25, rel=0.02)


def test_spread_slope_and_final_rise_shape_the_pitch_contour() -> None:
    flat, wide = pitch(say(Prosody(pitch_std=0.4))), pitch(say(Prosody(pitch_std=3.0)))
    assert flat.std() < 0.5 * wide.std()
    falling = pitch(say(Prosody(pitch_std=0.3, pitch_slope=-5.0)))
    assert falling[:20].mean() - falling[-20:].mean() > 2.5
    rising = pitch(say(Prosody(pitch_std=0.3, final_rise=10.0)))
    assert rising[-8:].mean() - rising[:60].mean() > 5.0


def test_a_shorter_tract_and_a_brighter_tilt_raise_the_centre() -> None:
    plain = centre_hz(say(Prosody()))
    assert centre_hz(say(Prosody(), SpeakerTraits(120.0, 1.3, False))) > 1.1 * plain
    assert (
        centre_hz(say(Prosody(spectral_tilt=3.0)))
        > 1.1 * plain
        > 1.2 * centre_hz(say(Prosody(spectral_tilt=-3.0)))
    )


def test_loudness_is_relative_to_the_common_level() -> None:
    assert say(Prosody()).std() == pytest.approx(LEVEL, rel=0.03)
    assert say(Prosody(loudness_db=-6.0)).std() == pytest.approx(LEVEL / 2, rel=0.03)


def test_tremor_modulates_pitch_at_its_rate() -> None:
    track = pitch(say(Prosody(pitch_std=0.1, jitter=0.0, tremor=1.0, tremor_hz=7.0)))
    spectrum = np.abs(np.fft.rfft(track - track.mean()))
    peak_hz = np.argmax(spectrum[3:]) + 3
    assert peak_hz / (len(track) * 0.01) == pytest.approx(7.0, abs=1.2)


def test_emotions_are_ordered_in_pitch_tempo_and_level() -> None:
    prosody = {emotion: sample_prosody(emotion, ADULT, np.random.default_rng(1)) for emotion in EMOTIONS}
    assert prosody["sad"].pitch < prosody["neutral"].pitch < prosody["happy"].pitch
    assert prosody["sad"].tempo < prosody["neutral"].tempo < prosody["happy"].tempo
    assert prosody["sad"].loudness_db < prosody["neutral"].loudness_db < prosody["angry"].loudness_db
    assert prosody["sad"].spectral_tilt < prosody["neutral"].spectral_tilt < prosody["angry"].spectral_tilt
    assert [emotion for emotion in EMOTIONS if prosody[emotion].tremor] == ["fear"]
    assert [emotion for emotion in EMOTIONS if prosody[emotion].final_rise] == ["surprise"]
    assert [emotion for emotion in EMOTIONS if prosody[emotion].roughness] == ["angry"]


def test_an_unknown_emotion_names_the_known() -> None:
    with pytest.raises(ValueError, match="neutral, happy, sad"):
        sample_prosody("bored", ADULT, np.random.default_rng(0))


def test_ages_and_genders_have_separate_pitch_and_vocal_tracts() -> None:
    rng = np.random.default_rng(2)

    def speakers(age: str, gender: str | None) -> list[SpeakerTraits]:
        return [sample_speaker(age, gender, rng) for _ in range(50)]

    child, woman, man = speakers("child", None), speakers("adult", "female"), speakers("adult", "male")
    for lower, higher in ((man, woman), (woman, child)):
        assert max(s.f0_hz for s in lower) < min(s.f0_hz for s in higher)
        assert max(s.tract for s in lower) < min(s.tract for s in higher)
    assert all(speaker.is_old for speaker in speakers("old", "male"))


def test_old_speakers_are_slow_with_a_tremor() -> None:
    old = SpeakerTraits(120.0, 1.0, True)
    for emotion in EMOTIONS:
        prosody, young = (sample_prosody(emotion, who, np.random.default_rng(3)) for who in (old, ADULT))
        assert (
            prosody.tempo < 0.92 * young.tempo
            and prosody.tremor > 1.0
            and prosody.breathiness > young.breathiness
        )


def test_prosody_repeats_with_its_seed_and_silence_stays_finite() -> None:
    prosody = sample_prosody("fear", ADULT, np.random.default_rng(4))
    assert np.array_equal(say(prosody), say(prosody))
    hush = apply_prosody(np.full(8000, 1e-4, np.float32), "male", ADULT, prosody, np.random.default_rng(0))
    assert np.isfinite(hush).all()
