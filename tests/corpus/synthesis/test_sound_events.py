"""Sounds between words: varied, repeatable, at a natural level, and only from sets that may be shared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echat.corpus.synthesis import sound_events as events
from echat.corpus.synthesis.acoustic_environment import (
    AcousticEnvironment,
    apply_environment,
    sample_training_environment,
)
from echat.corpus.synthesis.prosody import SpeakerTraits

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


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A data pack of three clips: one free, one of a part that may not be shared, one for testing."""
    rows = [
        {"key": "a", "split": "train", "sound_event": "sneeze", "origin": "ESC-10"},
        {"key": "b", "split": "train", "sound_event": "sneeze", "origin": "ESC-50"},
        {"key": "c", "split": "test", "sound_event": "sneeze", "origin": "ESC-10"},
    ]
    folder = tmp_path / "esc"
    folder.mkdir()
    burst = np.zeros(40_000)
    burst[20_000:24_000] = np.random.default_rng(0).standard_normal(4000) * 0.1
    for row in rows:
        row["audio"] = f"{row['key']}.wav"
        soundfile.write(folder / row["audio"], burst, 16_000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_real_clips_keep_licence_and_split(pack: Path) -> None:
    assert [path.stem for path in events.real_clips(pack, "train")["sneeze"]] == ["a"]
    assert [path.stem for path in events.real_clips(pack, "test")["sneeze"]] == ["c"]
    assert events.real_clips(pack / "nowhere", "train") == {}


def test_real_clips_are_cut_to_their_sound(pack: Path) -> None:
    clips = events.real_clips(pack, "train")
    mixes = [
        events.mix_event(words(), "sneeze", ADULT, np.random.default_rng(seed), clips) for seed in range(12)
    ]
    real = [mixed for mixed in mixes if mixed.is_real]
    assert real and all(len(mixed.waveform) < len(words()) + 16_000 for mixed in real)


def test_surroundings_reach_the_snr_and_keep_the_scale() -> None:
    speech = words()
    quiet = apply_environment(speech, AcousticEnvironment(None), np.random.default_rng(0))
    noisy = apply_environment(speech, AcousticEnvironment(10.0), np.random.default_rng(0))
    assert len(quiet) == len(noisy) and 0.2 < (len(quiet) - len(speech)) / 16_000 < 0.8
    found = 10 * np.log10(np.mean(quiet**2) / np.mean((noisy - quiet) ** 2))
    assert found == pytest.approx(10.0, abs=0.5)
    loud = apply_environment(speech, AcousticEnvironment(0.0, 1.0, 1.0, 30.0), np.random.default_rng(1))
    assert np.abs(loud).max() <= 0.98 + 1e-6 and loud.dtype == np.float32


def test_training_surroundings_are_half_quiet() -> None:
    rng = np.random.default_rng(0)
    snrs = [sample_training_environment(rng).snr_db for _ in range(400)]
    assert np.mean([snr is None for snr in snrs]) == pytest.approx(0.5, abs=0.08)
    assert all(snr is None or 5 <= snr <= 30 for snr in snrs)
