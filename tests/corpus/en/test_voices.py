"""The table of English voices: training and test voices are disjoint, training voices follow their shares."""

from __future__ import annotations

import numpy as np
import pytest

from echat.corpus.en.voices import TRAIN_SHARES, VOICES, choose_training_voice, voices


def test_test_voices_are_never_training_voices() -> None:
    train = {voice.name for voice in voices("train")}
    test = {voice.name for voice in voices("test")}
    assert not train & test and "flite:rms" in test
    assert not any("rms" in name for name in train)
    variants = {name.split("+")[-1] for name in test if name.startswith("espeak")}
    assert not variants & {name.split("+")[-1] for name in train}


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_split_has_formant_voices_of_both_genders(split: str) -> None:
    formant = voices(split, "espeak-ng")
    assert len(formant) >= (20 if split == "train" else 6)
    assert {voice.gender for voice in formant} == {"male", "female"}


def test_names_are_unique() -> None:
    assert len({voice.name for voice in VOICES}) == len(VOICES)


def test_training_voices_are_sampled_by_their_shares() -> None:
    rng = np.random.default_rng(0)
    sampled = [choose_training_voice(rng) for _ in range(3000)]
    assert all(voice.split == "train" for voice in sampled)
    recorded = np.mean([voice.engine != "espeak-ng" for voice in sampled])
    assert recorded == pytest.approx(sum(TRAIN_SHARES.values()), abs=0.04)
    assert {voice.name for voice in sampled} == {voice.name for voice in voices("train")}
