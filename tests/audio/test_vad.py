"""Voice activity of real speech, silence and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import echat
from echat.audio.waveform import read

pytest.importorskip("silero_vad", reason="needs the serve extra")

from echat.audio.vad import FRAME, VoiceActivity

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


def probabilities(samples: np.ndarray) -> list[float]:
    vad = VoiceActivity()
    state, found = vad.begin(), []
    for place in range(0, len(samples) - FRAME + 1, FRAME):
        probability, state = vad.step(samples[place : place + FRAME], state)
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
    vad = VoiceActivity()
    state = vad.begin()
    first = vad.step(integers[:FRAME], state)[0]
    vad.step(integers[FRAME : 2 * FRAME], state)
    assert vad.step(integers[:FRAME], state)[0] == first


def test_a_frame_of_another_length_is_refused():
    vad = VoiceActivity()
    with pytest.raises(ValueError, match="512"):
        vad.step(np.zeros(100, np.int16), vad.begin())
