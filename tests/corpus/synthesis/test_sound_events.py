"""Sound events vary, repeat with their seed and keep the words; environments reach their SNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.corpus.synthesis import acoustic_environment
from echat.corpus.synthesis import sound_events as events
from echat.corpus.synthesis.acoustic_environment import (
    AcousticEnvironment,
    apply_environment,
    sample_training_environment,
)
from echat.corpus.synthesis.prosody import SpeakerTraits
from echat.corpus.synthesis.tts_engines import Voice
from echat.dialogue.labels import VALUES

ADULT = SpeakerTraits(120.0, 1.0, False)
CHILD = SpeakerTraits(300.0, 1.38, False)


def words(seconds: float = 1.5) -> np.ndarray:
    time = np.arange(int(seconds * 16_000)) / 16_000
    return (0.1 * np.sin(2 * np.pi * 150 * time) * (np.abs(time - seconds / 2) > 0.1)).astype(np.float32)


def centre_hz(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / 16_000)).sum() / power.sum())


@pytest.mark.parametrize("name", events.EVENTS)
def test_events_repeat_vary_and_have_unit_peak(name: str) -> None:
    first, again, other = (events.synthesize_event(name, ADULT, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    for wave in (first, other):
        assert np.abs(wave).max() == pytest.approx(1.0, abs=1e-6) and 0.15 < len(wave) / 16_000 < 2.5
        assert abs(wave[0]) < 1e-3 and abs(wave[-1]) < 1e-3


def test_a_child_coughs_higher_than_a_man() -> None:
    pairs = [
        [
            centre_hz(events.synthesize_event("cough", who, np.random.default_rng(seed)))
            for who in (ADULT, CHILD)
        ]
        for seed in range(6)
    ]
    assert np.mean([child > man for man, child in pairs]) > 0.8


def test_an_unknown_event_names_the_known() -> None:
    with pytest.raises(ValueError, match="cough, laugh, sigh, sneeze"):
        events.synthesize_event("yawn", ADULT, np.random.default_rng(0))


def test_an_event_leaves_the_words_whole() -> None:
    speech = words()
    seen = set()
    for seed in range(30):
        mixed = events.mix_event(speech, "cough", ADULT, np.random.default_rng(seed), {})
        seen.add(mixed.position)
        assert not mixed.is_real and len(mixed.waveform) > len(speech) + 3000
        if mixed.position == "before":
            assert np.array_equal(mixed.waveform[-len(speech) :], speech)
        elif mixed.position == "after":
            assert np.array_equal(mixed.waveform[: len(speech)], speech)
        assert 0.05 < np.abs(mixed.waveform).max() < 0.3
    assert seen == {"before", "after", "between"}


def test_recordings_are_cut_to_their_sound(tmp_path: Path) -> None:
    burst = np.zeros(40_000)
    burst[20_000:24_000] = np.random.default_rng(0).standard_normal(4000) * 0.1
    soundfile.write(tmp_path / "sneeze.wav", burst, 16_000)
    clips = {"sneeze": [tmp_path / "sneeze.wav"]}
    mixes = [
        events.mix_event(words(), "sneeze", ADULT, np.random.default_rng(seed), clips) for seed in range(12)
    ]
    real = [mixed for mixed in mixes if mixed.is_real]
    assert real and all(len(mixed.waveform) < len(words()) + 16_000 for mixed in real)


def test_environments_reach_the_snr_and_keep_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    babbler = np.random.default_rng(3).standard_normal(8000).astype(np.float32)
    monkeypatch.setattr(acoustic_environment, "speak", lambda text, voice: babbler)
    speech, babble = words(), (("some words", Voice("flite", "awb", "male", "train")),)

    def render(environment: AcousticEnvironment, seed: int) -> np.ndarray:
        return apply_environment(speech, environment, np.random.default_rng(seed), babble)

    for seed in range(4):  # of several kinds of noise
        quiet, noisy = render(AcousticEnvironment(None), seed), render(AcousticEnvironment(10.0), seed)
        assert len(quiet) == len(noisy) and 0.2 < (len(quiet) - len(speech)) / 16_000 < 0.8
        found = 10 * np.log10(np.mean(quiet**2) / np.mean((noisy - quiet) ** 2))
        assert found == pytest.approx(10.0, abs=0.5)
    loud = render(AcousticEnvironment(0.0, 1.0, 1.0, 30.0), 1)
    assert np.abs(loud).max() <= 0.98 + 1e-6 and loud.dtype == np.float32


def test_half_of_the_training_environments_are_quiet() -> None:
    rng = np.random.default_rng(0)
    snrs = [sample_training_environment(rng).snr_db for _ in range(400)]
    assert np.mean([snr is None for snr in snrs]) == pytest.approx(0.5, abs=0.08)
    assert all(snr is None or 5 <= snr <= 30 for snr in snrs)


def test_events_are_labels_that_models_know() -> None:
    assert set(events.EVENTS) < set(VALUES["sound_event"])
