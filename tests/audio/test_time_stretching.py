"""Faster and slower speech."""

from __future__ import annotations

import numpy as np
import pytest

from echat.audio.time_stretching import TimeStretcher

RATE = 22_050
TONE = (0.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)


def stretched(sound: np.ndarray, speed: float, step: int) -> np.ndarray:
    stretcher = TimeStretcher(RATE, speed)
    pieces = [stretcher.push(sound[start : start + step]) for start in range(0, len(sound), step)]
    return np.concatenate([*pieces, stretcher.push(np.zeros(0), last=True)])


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_length_changes_and_pitch_stays(speed):
    made = stretched(TONE, speed, 4000)
    assert len(made) / len(TONE) == pytest.approx(1 / speed, rel=0.05)
    middle = made[len(made) // 4 : -len(made) // 4]
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))))
    assert peak * RATE / len(middle) == pytest.approx(200, abs=5)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("step", [1, 997, 10_000, 100_000])
def test_pieces_of_any_length_give_the_same(step):
    sound = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    assert np.array_equal(stretched(sound, 1.3, step), stretched(sound, 1.3, len(sound)))


def test_an_impossible_speed_is_refused():
    with pytest.raises(ValueError, match="speed"):
        TimeStretcher(RATE, 0.0)
