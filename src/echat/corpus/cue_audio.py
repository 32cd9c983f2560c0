"""Cues of Kokoro questions: calm clips of cue sets with the emotions, ages and sound events of the answers.

Each is made from the clip of `questions/` in the corpus, so a sentence has all its cues in one voice. `cues/`
has `manifest.jsonl` and `audio/PART/KEY.flac` at 16 kHz. A clip depends on the calm clip and its labels
alone; each is made once, also after interruptions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import read, write
from echat.corpus.conversations import ConversationError, conversations, labels_of
from echat.corpus.manifests import Row, json_line, read_growing_jsonl
from echat.corpus.spoken_questions import generator
from echat.corpus.synthesis.acoustic_environment import limit_peak
from echat.corpus.synthesis.kokoro import KokoroVoice
from echat.corpus.synthesis.prosody import EMOTIONS, LEVEL, apply_prosody, own_traits, sample_prosody
from echat.corpus.synthesis.sound_events import EVENTS, mix_event
from echat.dialogue.labels import EVALUATED_KINDS

CLIPS_IN_PART = 200
REAL_SHARE = 0.7  # of the events of which recordings are given
NEUTRAL_ONE_IN = 3  # so many calm clips go through the vocoder as well, so that its trace names no emotion
SEED = 1
_LABELS = tuple(kind for kind in EVALUATED_KINDS if kind != "gender")  # which is that of the voice
_KEPT = ("text", "lang", "split", "voice", "speed", "origin")
Clips = dict[str, list[Path]]


@dataclass(frozen=True)
class CueLine:
    """A calm clip (row of its manifest) and the labels to give it."""

    calm: Row
    emotion: str
    age: str
    sound_event: str

    @property
    def key(self) -> str:
        return "cue-" + _digest("|".join((self.calm["key"], self.emotion, self.age, self.sound_event)))[:16]

    @property
    def is_plain(self) -> bool:
        return (self.emotion, self.age, self.sound_event) == ("neutral", "adult", "none")


def cue_lines(texts: Path, calm_clips: list[Row], clips: Clips) -> Iterator[CueLine]:
    """Lines of all cue sets of a folder of which calm clips exist, without cues that no clip can have."""
    by_text: dict[str, list[Row]] = {}
    for row in calm_clips:
        by_text.setdefault(row["text"], []).append(row)
    seen = set()
    for file, one in conversations(texts):
        for text in one.get("say", ()):
            for calm in by_text.get(text, ()):
                for line in _lines_of(calm, one, file, clips):
                    if line.key not in seen:
                        seen.add(line.key)
                        yield line


def _lines_of(calm: Row, one: Row, file: str, clips: Clips) -> Iterator[CueLine]:
    """Lines of a calm clip for the answers of its cue set."""
    for cue in (answer.get("cue", "") for answer in one.get("answers", ())):
        try:
            line = _line(calm, cue)
        except ValueError as error:
            raise ConversationError(f"{file}, conversation {one.get('id')}: {error}") from error
        if can_be_delivered(line, cue, clips):
            yield line


def _line(calm: Row, cue: str) -> CueLine:
    labels = labels_of(cue, calm["key"])
    return CueLine(calm, **{kind: labels[kind] for kind in _LABELS})


def can_be_delivered(line: CueLine, cue: str, clips: Clips) -> bool:
    """Is there a way to make the cue from this voice? Children are made of women, of training voices only."""
    voice = KokoroVoice(line.calm["voice"].partition(":")[2])
    named = {word.strip() for word in cue.split(",")} & {"male", "female"}
    return (
        voice.is_for_training
        and named <= {voice.gender}
        and (line.age != "child" or voice.gender == "female")
        and line.emotion in EMOTIONS
        and (line.sound_event in ("none", *EVENTS) or bool(clips.get(line.sound_event)))
        and (not line.is_plain or int(_digest(line.calm["key"]), 16) % NEUTRAL_ONE_IN == 0)
    )


def deliver(line: CueLine, calm: np.ndarray, clips: Clips) -> tuple[np.ndarray, Row]:
    """The calm speech (16 kHz) with the cue of the line, and what is to be known about its event."""
    rng = generator(SEED, line.key)
    gender = str(line.calm["gender"])
    speaker = own_traits(calm, gender, line.age, rng)
    wave = calm
    if line.emotion != "neutral" or line.age != "adult" or line.is_plain:
        prosody = sample_prosody(line.emotion, speaker, rng, is_natural=True)
        wave = apply_prosody(calm, gender, speaker, prosody, rng)
        wave = wave * np.float32(
            np.sqrt(np.mean(calm**2)) / LEVEL
        )  # as loud as the calm clip, but for the cue
    details: Row = {}
    if line.sound_event != "none":
        mixed = mix_event(wave, line.sound_event, speaker, rng, clips, REAL_SHARE)
        wave, details = mixed.waveform, {"event_place": mixed.position, "event_is_real": mixed.is_real}
    return limit_peak(wave), details


def speak_cues(texts: Path, corpus: Path, clips: Clips) -> int:
    """Make the clips of cues that are missing in a corpus; returns how many were made."""
    folder, questions = corpus / "cues", corpus / "questions"
    manifest = folder / "manifest.jsonl"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_growing_jsonl(manifest, repair=True)}
    lines = cue_lines(texts, read_growing_jsonl(questions / "manifest.jsonl"), clips)
    start, made = time.process_time(), 0
    for line in lines:
        if line.key not in done:
            row = _write(line, questions, folder, clips, f"{len(done) // CLIPS_IN_PART:04d}")
            with manifest.open("a", encoding="utf-8") as out:
                out.write(json_line(row))
            done.add(line.key)
            made += 1
    cpu = (time.process_time() - start) / max(made, 1)
    if made:
        print(f"{made} cues made, {len(done)} in all, {cpu:.2f} CPU seconds each", flush=True)
    return made


def _write(line: CueLine, questions: Path, folder: Path, clips: Clips, part: str) -> Row:
    """Write the clip of a line; returns its row."""
    calm, _ = read(questions / line.calm["audio"], SAMPLE_RATE)
    wave, details = deliver(line, calm.numpy(), clips)
    audio = f"audio/{part}/{line.key}.flac"
    (folder / audio).parent.mkdir(parents=True, exist_ok=True)
    write(folder / audio, wave, SAMPLE_RATE)
    return {
        "key": line.key,
        "audio": audio,
        **{name: line.calm[name] for name in _KEPT},
        "duration_s": round(len(wave) / SAMPLE_RATE, 3),
        "emotion": line.emotion,
        "age": line.age,
        "gender": None if line.age == "child" else line.calm["gender"],
        "sound_event": line.sound_event,
        "calm": line.calm["key"],
        **details,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
