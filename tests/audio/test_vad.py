"""Voice activity of real speech, silence and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import echat
from echat.audio.waveform import read

pytest.importorskip("silero_vad", reason="needs the serve extra")

from echat.audio import vad
from echat.audio.augmentation import NOISE_COLOURS, noise
from echat.audio.vad import FRAME, VoiceActivityDetector, has_speech, speech_seconds

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


def probabilities(samples: np.ndarray) -> list[float]:
    vad = VoiceActivityDetector()
    state, found = vad.begin(), []
    for start in range(0, len(samples) - FRAME + 1, FRAME):
        probability, state = vad.step(samples[start : start + FRAME], state)
        found.append(probability)
    return found


def test_speech_is_found_between_silences():
    speech, _ = read(QUESTION, 16_000)
    quiet = np.random.default_rng(0).normal(0, 1e-4, 16_000).astype(np.float32)
    found = probabilities(np.concatenate([quiet, speech.numpy(), quiet]))
    n_quiet = 16_000 // FRAME
    assert max(found[: n_quiet - 1]) < 0.3 and max(found[-n_quiet // 2 :]) < 0.3
    assert np.mean(np.array(found[n_quiet : -n_quiet - 1]) > 0.5) > 0.6


def test_sample_types_agree_and_states_are_values():
    speech, _ = read(QUESTION, 16_000)
    integers = np.round(speech.numpy() * 32768).astype(np.int16)
    assert np.allclose(probabilities(integers), probabilities(integers.astype(np.float32) / 32768), atol=1e-6)
    vad = VoiceActivityDetector()
    state = vad.begin()
    first = vad.step(integers[:FRAME], state)[0]
    vad.step(integers[FRAME : 2 * FRAME], state)
    assert vad.step(integers[:FRAME], state)[0] == first


def test_a_frame_of_another_length_is_refused():
    vad = VoiceActivityDetector()
    with pytest.raises(ValueError, match="512"):
        vad.step(np.zeros(100, np.int16), vad.begin())


@pytest.mark.parametrize("share", [1.0, 0.03, 0.001])
def test_speech_is_detected_at_any_loudness_and_length(share):
    speech = share * read(QUESTION, 16_000)[0].numpy()
    assert has_speech(speech) and 1.5 < speech_seconds(speech) <= len(speech) / 16_000
    loudest = int(np.argmax(np.convolve(speech**2, np.ones(4800), "valid")))
    assert has_speech(speech[loudest : loudest + 4800])  # a word of 0.3 s, cut close


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("colour", NOISE_COLOURS)
def test_noise_is_no_speech_at_any_level(level, colour):
    sound = level * noise(32_000, colour, np.random.default_rng(0))
    assert not has_speech(sound.astype(np.float32)) and speech_seconds(sound) == 0.0
    rounded = np.round(np.random.default_rng(0).triangular(-1, 0, 1, 32_000)) / 32768
    assert not has_speech(rounded) and not has_speech(np.zeros(0, np.float32))


def test_without_the_detector_only_faint_audio_is_not_speech(monkeypatch):
    monkeypatch.setattr(vad, "find_spec", lambda name: None)
    assert has_speech(np.full(16_000, 0.01)) and not has_speech(np.full(16_000, 3e-5))
    assert speech_seconds(np.full(16_000, 0.01)) == pytest.approx(1.0, abs=0.05)
