"""English voices of the TTS engines: the table with its split into training and test, and the reply voice."""

from __future__ import annotations

from typing import Literal

import numpy as np

from echat.corpus.synthesis.acoustic_environment import Babble
from echat.corpus.synthesis.tts_engines import Gender, SpeechEngine, Voice


def _espeak(split: Literal["train", "test"], gender: Gender, *options: str) -> list[Voice]:
    return [Voice("espeak-ng", option, gender, split) for option in options]


VOICES: tuple[Voice, ...] = (
    *_espeak("train", "female", "en-us+f1", "en-us+f2", "en-gb+f4", "en-gb-scotland+f1", "en-us+linda"),
    *_espeak("train", "female", "en-us+belinda", "en-us+aunty", "en-us+Annie", "en-gb+f2", "en-us+grandma"),
    *_espeak("train", "female", "en-us+Andrea", "en-gb-x-rp+f1", "en-us+f4", "en-us+shelby"),
    *_espeak("train", "male", "en-us+m1", "en-us+m2", "en-us+m3", "en-gb+m4", "en-gb+m6", "en-us+m7"),
    *_espeak("train", "male", "en-us+Andy", "en-us+Gene", "en-us+Mike", "en-gb-x-rp+Lee", "en-us+max"),
    *_espeak(
        "train", "male", "en-us+john", "en-us+victor", "en-gb-scotland+m2", "en-us+norbert", "en-us+klatt3"
    ),
    *_espeak("train", "male", "en-us", "en-gb", "en-us+grandpa", "en-us+ed"),
    Voice("flite", "awb", "male", "train"),
    Voice("flite", "slt", "female", "train"),
    Voice("flite", "kal16", "male", "train"),
    Voice("festival", "kal_diphone", "male", "train"),
    Voice("festival", "ked_diphone", "male", "train"),
    Voice("festival", "cmu_us_slt_arctic_hts", "female", "train"),
    Voice("pico", "en-US", "female", "train"),
    Voice("pico", "en-GB", "female", "train"),
    *_espeak("test", "female", "en-us+f3", "en-gb+f5", "en-us+Alicia"),
    *_espeak("test", "male", "en-us+m5", "en-gb+boris", "en-us+Denis"),
    Voice("flite", "rms", "male", "test"),
)

REPLY_VOICE = next(voice for voice in VOICES if voice.name == "flite:slt")  # speaks every answer, unmodified

# How often each recorded voice and, together, the formant voices speak in training.
TRAIN_SHARES = {
    "flite:awb": 0.15,
    "flite:slt": 0.14,
    "flite:kal16": 0.05,
    "festival:ked_diphone": 0.06,
    "festival:kal_diphone": 0.03,
    "festival:cmu_us_slt_arctic_hts": 0.07,
    "pico:en-US": 0.11,
    "pico:en-GB": 0.11,
}


def voices(split: Literal["train", "test"], engine: SpeechEngine | None = None) -> list[Voice]:
    """The voices of a split (of one engine), in the order of the table."""
    return [voice for voice in VOICES if voice.split == split and engine in (None, voice.engine)]


_FORMANT = voices("train", "espeak-ng")


def choose_training_voice(rng: np.random.Generator) -> Voice:
    """A random training voice: recorded ones by `TRAIN_SHARES`, the formant voices evenly for the rest."""
    number = float(rng.random())
    for voice in voices("train"):
        number -= TRAIN_SHARES.get(voice.name, 0.0)
        if number < 0:
            return voice
    return _FORMANT[int(rng.integers(len(_FORMANT)))]


_BABBLE_SENTENCES = (
    "we could take the early train and be there before the shops close",
    "nobody told me that the meeting was moved to another room",
    "put the bread on the table and call the children for dinner",
    "the weather report says that it will be sunny all week",
    "have you seen the new film that everyone is talking about",
    "he walked down the street and turned left at the old church",
)
BABBLE: Babble = tuple(
    (text, _FORMANT[7 * index % len(_FORMANT)]) for index, text in enumerate(_BABBLE_SENTENCES)
)
