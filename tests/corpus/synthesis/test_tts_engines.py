"""The voice table keeps its promises; speaking repeats itself and a mood is measurable in any voice."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from echat.corpus.synthesis import tts_engines as voices
from echat.corpus.synthesis.tts_engines import VOICES, VoiceError, choose_training_voice, speak

WORDS = "i lost my keys on the bus"
ENGINES = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("espeak-ng", "flite", "festival"))
    or find_spec("ttspico") is None,
    reason="speech engines missing",
)


def test_test_voices_are_never_training_voices() -> None:
    train = {voice.name for voice in voices.voices("train")}
    test = {voice.name for voice in voices.voices("test")}
    assert not train & test and "flite:rms" in test
    assert not any("rms" in name for name in train)
    variants = {name.split("+")[-1] for name in test if name.startswith("espeak")}
    assert not variants & {name.split("+")[-1] for name in train}


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_split_has_formant_voices_of_both_genders(split: str) -> None:
    formant = voices.voices(split, "espeak-ng")
    assert len(formant) >= (20 if split == "train" else 6)
    assert {voice.gender for voice in formant} == {"male", "female"}


def test_names_are_unique() -> None:
    assert len({voice.name for voice in VOICES}) == len(VOICES)


def test_training_voices_are_drawn_by_their_shares() -> None:
    rng = np.random.default_rng(0)
    drawn = [choose_training_voice(rng) for _ in range(3000)]
    assert all(voice.split == "train" for voice in drawn)
    recorded = np.mean([voice.is_recorded for voice in drawn])
    assert recorded == pytest.approx(sum(voices.TRAIN_SHARES.values()), abs=0.04)
    assert {voice.name for voice in drawn} == {voice.name for voice in voices.voices("train")}


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    voices.require_program.cache_clear()
    with pytest.raises(VoiceError, match="apt install flite"):
        speak(WORDS, voices.REPLY_VOICE)
    voices.require_program.cache_clear()


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
        speak("...", voices.REPLY_VOICE)
