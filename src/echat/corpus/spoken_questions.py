"""Rendering of one spoken question: text and labels in, a waveform and its corpus record out."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.corpus.en import LANGUAGE
from echat.corpus.en.scenario_grammar import Dialogue
from echat.corpus.en.voices import BABBLE, choose_training_voice, voices
from echat.corpus.synthesis.acoustic_environment import (
    AcousticEnvironment,
    apply_environment,
    sample_training_environment,
)
from echat.corpus.synthesis.prosody import apply_prosody, sample_prosody, sample_speaker
from echat.corpus.synthesis.sound_events import mix_event
from echat.corpus.synthesis.tts_engines import Voice, speak

Condition = Literal["espeak", "natural", "noise"]
CONDITIONS: tuple[Condition, ...] = ("espeak", "natural", "noise")
_SAME_GENDER_CHANCE = 0.6  # so often a source voice of the other gender is replaced by another voice


@dataclass(frozen=True)
class SpokenQuestion:
    """What to render. `speaker_key` seeds voice and speaker: the same key gives the same voice."""

    dialogue: Dialogue
    split: str
    speaker_key: str
    seed: int
    condition: Condition | None = None  # of a test question
    pair: str | None = None

    @property
    def key(self) -> str:
        return self.dialogue.key

    def record_fields(self) -> dict[str, Any]:
        """The record fields of the dialogue, without empty ones: it may have no reply."""
        return {name: value for name, value in asdict(self.dialogue).items() if value not in ("", [])}


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on the seed and the names only, on every machine alike."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def render_question(
    question: SpokenQuestion, clips: dict[str, list[Path]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The question as 16 kHz sound, and its corpus record without the paths."""
    dialogue = question.dialogue
    by_speaker = generator(question.seed, question.speaker_key, "throat")
    by_key = generator(question.seed, dialogue.key, "delivery")
    voice = _choose_voice(question, by_speaker)
    speaker = sample_speaker(
        dialogue.age, dialogue.gender, generator(question.seed, question.speaker_key, dialogue.age)
    )
    reading = speak(dialogue.text, voice, words_per_minute=int(by_speaker.integers(145, 186)))
    prosody = sample_prosody(dialogue.emotion, speaker, by_key)
    wave = apply_prosody(reading, voice.gender, speaker, prosody, by_key)
    details: dict[str, Any] = {}
    if dialogue.sound_event is not None:
        mixed = mix_event(wave, dialogue.sound_event, speaker, by_key, clips)
        wave = mixed.waveform
        details = {"event_place": mixed.position, "event_is_real": mixed.is_real}
    environment = _environment(question, by_key)
    wave = apply_environment(wave, environment, by_key, BABBLE)
    return wave, _record(question, voice, environment, len(wave)) | details


def _choose_voice(question: SpokenQuestion, rng: np.random.Generator) -> Voice:
    if question.split != "test":
        first, second = choose_training_voice(rng), choose_training_voice(rng)
        keeps_gender = first.gender == question.dialogue.gender
        return first if keeps_gender or rng.random() > _SAME_GENDER_CHANCE else second
    formant, recorded = voices("test", "espeak-ng"), voices("test", "flite")
    held_out = {"espeak": formant, "natural": recorded, "noise": formant if rng.random() < 0.5 else recorded}
    table = held_out[question.condition or "espeak"]
    return table[int(rng.integers(len(table)))]


def _environment(question: SpokenQuestion, rng: np.random.Generator) -> AcousticEnvironment:
    if question.split == "test":
        snr = float(rng.uniform(5.0, 20.0)) if question.condition == "noise" else None
        return AcousticEnvironment(snr, gain_db=float(rng.uniform(-2.0, 2.0)))
    return sample_training_environment(rng)


def _record(
    question: SpokenQuestion, voice: Voice, environment: AcousticEnvironment, samples: int
) -> dict[str, Any]:
    spoken = question.record_fields()
    record = {"key": spoken.pop("key"), "lang": LANGUAGE, **spoken}
    snr = environment.snr_db
    record |= {
        "voice": voice.name,
        "engine": voice.engine,
        "split": question.split,
        "noise": None if snr is None else round(snr, 1),
        "duration_s": round(samples / SAMPLE_RATE, 3),
    }
    if question.condition is not None:
        record["condition"] = question.condition
    if question.pair is not None:
        record["pair"] = question.pair
    return record
