"""Made-up dialogues of true lengths, for benchmarks of training: what stands where, and random ids.

Lengths follow the published samples: a thought of 67 ids, a reply of 46 and its 421 speech ids, questions of
5 s, transcripts of some 4 ids per second, prompts of 38 to 82 ids around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echat.data.examples import DialogueExample
from echat.dialogue.vocabulary import AUDIO, IGNORE, SPEECH, TEXT
from echat.model.speech_encoder import EncoderConfig

BEFORE = {"understand": 42, "s2s_think": 77, "tts": 33}  # ids of system prompt and user start
AFTER = 5  # ids between question and answer
STAGES = {1: {"understand": 1.0}, 3: {"s2s_think": 0.65, "understand": 0.25, "tts": 0.1}}


@dataclass(frozen=True)
class Dialogue:
    """Lengths of one sample; ids are seeded with its number."""

    number: int
    task: str
    mel_frames: int  # 0: no audio
    prompt: int  # text ids after the system prompt: an instruction, or the text to be read
    text: int  # text ids written, the end included
    speech: int  # speech ids written, both markers included; 0: none

    @property
    def positions(self) -> int:
        """Of the language model, without padding."""
        audio_positions = EncoderConfig().llm_frames(self.mel_frames) + 2 if self.mel_frames else 0
        return BEFORE[self.task] + self.prompt + audio_positions + AFTER + self.text + self.speech

    @property
    def targets(self) -> int:
        return self.text + self.speech


def sample_dialogues(stage: int, count: int, seed: int = 0) -> list[Dialogue]:
    """Samples of a stage's mixture."""
    rng = np.random.default_rng(seed)
    tasks = STAGES[stage]
    return [_sample(number, str(rng.choice([*tasks], p=[*tasks.values()])), rng) for number in range(count)]


def _sample(number: int, task: str, rng: np.random.Generator) -> Dialogue:
    seconds = float(np.clip(rng.lognormal(np.log(5.0), 0.5), 1.0, 15.0))
    reply = int(np.clip(rng.normal(46, 15), 8, 120))
    speech = int(reply * rng.uniform(8, 10)) + 2
    if task == "understand":
        return Dialogue(number, task, int(100 * seconds), int(rng.integers(8, 31)), int(4 * seconds) + 6, 0)
    if task == "tts":
        return Dialogue(number, task, 0, reply, 0, speech)
    thought = int(np.clip(rng.normal(67, 20), 20, 150))
    return Dialogue(number, task, int(100 * seconds), 0, thought + reply + 1, speech)


@dataclass(frozen=True)
class Pieces:
    """One dialogue as the published code pads it: piece by piece."""

    before: np.ndarray  # text ids
    prompt: np.ndarray
    mel: np.ndarray | None
    after: np.ndarray
    text: np.ndarray
    speech: np.ndarray


def pieces_of(dialogue: Dialogue, text_size: int, codec_size: int, n_mels: int) -> Pieces:
    rng = np.random.default_rng(dialogue.number)

    def text(count: int) -> np.ndarray:
        return rng.integers(0, text_size, count)

    mel = (
        rng.standard_normal((dialogue.mel_frames, n_mels), dtype=np.float32) if dialogue.mel_frames else None
    )
    return Pieces(
        text(BEFORE[dialogue.task]),
        text(dialogue.prompt),
        mel,
        text(AFTER),
        text(dialogue.text),
        rng.integers(0, codec_size, dialogue.speech),
    )


def example_of(dialogue: Dialogue, text_size: int, codec_size: int, n_mels: int) -> DialogueExample:
    """The same dialogue as one contiguous sequence."""
    parts = pieces_of(dialogue, text_size, codec_size, n_mels)
    audio_positions = EncoderConfig().llm_frames(dialogue.mel_frames) if parts.mel is not None else 0
    runs = [(TEXT, parts.before, False), (TEXT, parts.prompt, False)]
    if audio_positions:
        begin, end = np.array([codec_size + 1]), np.array([codec_size + 2])
        runs += [(SPEECH, begin, False), (AUDIO, np.zeros(audio_positions, int), False), (SPEECH, end, False)]
    runs += [(TEXT, parts.after, False), (TEXT, parts.text, True), (SPEECH, parts.speech, True)]
    labels = [
        np.where(learn, ids + (text_size if kind == SPEECH else 0), IGNORE) for kind, ids, learn in runs
    ]
    return DialogueExample(
        key=str(dialogue.number),
        task=dialogue.task,
        kinds=np.concatenate([np.full(len(ids), kind) for kind, ids, _ in runs]),
        ids=np.concatenate([ids for _, ids, _ in runs]),
        labels=np.append(np.concatenate(labels)[1:], IGNORE),
        mels=(parts.mel,) if parts.mel is not None else (),
        writes_speech=dialogue.speech > 0,
    )
