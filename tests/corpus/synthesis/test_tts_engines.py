"""TTS engines: each speaks, repeatably; a missing one is named with its remedy."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from echat.corpus.en.voices import REPLY_VOICE, VOICES
from echat.corpus.synthesis.tts_engines import VoiceError, require_program, speak

WORDS = "i lost my keys on the bus"
ENGINES = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("espeak-ng", "flite", "festival"))
    or find_spec("ttspico") is None,
    reason="speech engines missing",
)


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    require_program.cache_clear()
    with pytest.raises(VoiceError, match="apt install flite"):
        speak(WORDS, REPLY_VOICE)
    require_program.cache_clear()


@ENGINES
@pytest.mark.parametrize(
    "name",
    [
        "espeak-ng:en-us+f3",
        "flite:rms",
        "festival:kal_diphone",
        "festival:cmu_us_slt_arctic_hts",
        "pico:en-GB",
    ],
)
def test_every_engine_speaks_and_repeats_itself(name: str) -> None:
    voice = next(voice for voice in VOICES if voice.name == name)
    first, second = speak(WORDS, voice), speak(WORDS, voice)
    assert np.array_equal(first, second) and first.dtype == np.float32
    assert 16_000 < len(first) < 64_000 and 0.001 < np.std(first) < 0.5


@ENGINES
def test_festival_says_different_words_in_turn() -> None:
    voice = next(voice for voice in VOICES if voice.name == "festival:ked_diphone")
    assert len(speak("yes", voice)) < len(speak(WORDS, voice))


def test_nothing_to_say_is_refused() -> None:
    with pytest.raises(VoiceError, match="expected words to speak"):
        speak("...", REPLY_VOICE)
