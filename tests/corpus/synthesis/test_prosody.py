"""A mood sounds alike in every voice: what it promises is measured in the rendered sound."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import pyworld
from scipy.signal import lfilter

from echat.corpus.synthesis.prosody import (
    LEVEL,
    Prosody,
    SpeakerTraits,
    apply_prosody,
    sample_prosody,
    sample_speaker,
)

MOODS = ("neutral", "happy", "sad", "angry", "fear", "surprise")
ADULT = SpeakerTraits(120.0, 1.0, False)


@cache
def reading(f0_hz: float = 120.0) -> np.ndarray:
    """A hummed vowel of 1.6 s whose melody falls by 3 semitones, with pauses like those of words."""
    time = np.arange(25_600) / 16_000
    f0 = f0_hz * 2 ** ((1.5 - 3 * time / 1.6 + 0.8 * np.sin(9 * time)) / 12)
    wave = np.diff(np.floor(np.cumsum(f0) / 16_000), prepend=0.0)
    for hertz in (700.0, 1300.0, 2600.0):
        radius = np.exp(-np.pi * 90 / 16_000)
        wave = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * hertz / 16_000), radius**2], wave)
    words = (np.sin(2 * np.pi * 1.8 * time) > -0.8).astype(float)
    return (0.05 * wave * words / wave.std()).astype(np.float32)


def say(manner: Prosody, speaker: SpeakerTraits = ADULT, f0_hz: float = 120.0) -> np.ndarray:
    return apply_prosody(reading(f0_hz), "male", speaker, manner, np.random.default_rng(0))


def melody(wave: np.ndarray) -> np.ndarray:
    """Semitones above 100 Hz of the voiced frames."""
    f0, _ = pyworld.dio(wave.astype(np.float64), 16_000, f0_floor=60.0, f0_ceil=700.0, frame_period=10.0)
    return 12 * np.log2(f0[f0 > 0] / 100)


def centre_hz(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / 16_000)).sum() / power.sum())


@pytest.mark.parametrize("source_hz", [100.0, 180.0])
@pytest.mark.parametrize("wanted_hz", [95.0, 200.0, 310.0])
def test_the_speaker_decides_the_pitch_whatever_the_voice(source_hz: float, wanted_hz: float) -> None:
    wave = say(Prosody(), SpeakerTraits(wanted_hz, 1.0, False), source_hz)
    assert 100 * 2 ** (np.median(melody(wave)) / 12) == pytest.approx(wanted_hz, rel=0.06)


def test_tempo_changes_the_length() -> None:
    assert len(say(Prosody(tempo=1.25))) == pytest.approx(len(reading()) / 1.25, rel=0.02)


def test_spread_glide_and_rise_shape_the_melody() -> None:
    flat, wide = melody(say(Prosody(pitch_std=0.4))), melody(say(Prosody(pitch_std=3.0)))
    assert flat.std() < 0.5 * wide.std()
    falling = melody(say(Prosody(pitch_std=0.3, pitch_slope=-5.0)))
    assert falling[:20].mean() - falling[-20:].mean() > 2.5
    rising = melody(say(Prosody(pitch_std=0.3, final_rise=10.0)))
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


def test_tremor_shakes_the_melody_at_its_rate() -> None:
    track = melody(say(Prosody(pitch_std=0.1, jitter=0.0, tremor=1.0, tremor_hz=7.0)))
    spectrum = np.abs(np.fft.rfft(track - track.mean()))
    peak_hz = np.argmax(spectrum[3:]) + 3
    assert peak_hz / (len(track) * 0.01) == pytest.approx(7.0, abs=1.2)


def test_moods_are_ordered_as_a_listener_expects() -> None:
    drawn = {mood: sample_prosody(mood, ADULT, np.random.default_rng(1)) for mood in MOODS}
    assert drawn["sad"].pitch < drawn["neutral"].pitch < drawn["happy"].pitch
    assert drawn["sad"].tempo < drawn["neutral"].tempo < drawn["happy"].tempo
    assert drawn["sad"].loudness_db < drawn["neutral"].loudness_db < drawn["angry"].loudness_db
    assert drawn["sad"].spectral_tilt < drawn["neutral"].spectral_tilt < drawn["angry"].spectral_tilt
    assert [mood for mood in MOODS if drawn[mood].tremor] == ["fear"]
    assert [mood for mood in MOODS if drawn[mood].final_rise] == ["surprise"]
    assert [mood for mood in MOODS if drawn[mood].roughness] == ["angry"]


def test_an_unknown_mood_names_the_known() -> None:
    with pytest.raises(ValueError, match="neutral, happy, sad"):
        sample_prosody("bored", ADULT, np.random.default_rng(0))


def test_ages_and_genders_have_separate_throats() -> None:
    rng = np.random.default_rng(2)

    def draw(age: str, gender: str | None) -> list[SpeakerTraits]:
        return [sample_speaker(age, gender, rng) for _ in range(50)]

    child, woman, man = draw("child", None), draw("adult", "female"), draw("adult", "male")
    for lower, higher in ((man, woman), (woman, child)):
        assert max(s.f0_hz for s in lower) < min(s.f0_hz for s in higher)
        assert max(s.tract for s in lower) < min(s.tract for s in higher)
    assert all(speaker.is_old for speaker in draw("old", "male"))


def test_the_old_speak_slowly_and_shake() -> None:
    old = SpeakerTraits(120.0, 1.0, True)
    for mood in MOODS:
        manner, young = (sample_prosody(mood, who, np.random.default_rng(3)) for who in (old, ADULT))
        assert (
            manner.tempo < 0.92 * young.tempo
            and manner.tremor > 1.0
            and manner.breathiness > young.breathiness
        )


def test_delivery_repeats_with_its_seed_and_survives_silence() -> None:
    manner = sample_prosody("fear", ADULT, np.random.default_rng(4))
    assert np.array_equal(say(manner), say(manner))
    hush = apply_prosody(np.full(8000, 1e-4, np.float32), "male", ADULT, manner, np.random.default_rng(0))
    assert np.isfinite(hush).all()
