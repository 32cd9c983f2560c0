"""A draw becomes a clip, the units spoken in it and what the voice tells: for the encoder by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from echat.data.defects import Kind
from echat.data.examples import ENCODER_SHARE, IGNORE
from echat.data.filters import FilterConfig, refusal, refuse_length
from echat.data.sample import Sample
from echat.data.sounds import AugmentConfig, Sounds, mel_of
from echat.data.stream import Draw
from echat.dialogue.labels import VALUES, LabelKind, Labels

CTC_LABELS: tuple[LabelKind, ...] = ("age", "gender", "emotion", "sound_event")


@dataclass(frozen=True, slots=True)
class SpeechExample:
    """A clip, the units spoken in it and what the voice tells."""

    key: str
    task: str
    mel: np.ndarray  # (frames, n_mels)
    targets: tuple[int, ...] | None  # unit ids from 1 up (0 is the CTC blank); None = words not known
    labels: tuple[int, ...]  # one class index per kind of CTC_LABELS, IGNORE = not known

    @property
    def sizes(self) -> tuple[int]:
        """Work of the encoder in units of one position of a language model."""
        return (len(self.mel) // ENCODER_SHARE,)


@dataclass
class SpeechBuilder:
    """Draw -> SpeechExample with characters as units."""

    characters: str  # unit i + 1 is characters[i]
    text_languages: tuple[str, ...]  # texts in other languages are not spelled
    sounds: Sounds
    n_mels: int  # mel bins of the encoder
    augment: AugmentConfig | None = None
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __call__(self, draw: Draw) -> SpeechExample:
        sample = draw.sample
        if sample.audio is None or not teaches(sample):
            reason = "expected audio with its words or a label of its voice, found not both"
            raise refusal(sample, Kind.UNWANTED, reason)
        waveform = self.sounds.read(sample.audio)
        refuse_length(sample, sample.audio, len(waveform), self.filters)
        mel = mel_of(waveform, self.n_mels, self.augment, np.random.default_rng(draw.seed))
        labels = tuple(_class_index(sample.labels, kind) for kind in CTC_LABELS)
        return SpeechExample(sample.key, draw.task, mel, self._units(sample), labels)

    def _units(self, sample: Sample) -> tuple[int, ...] | None:
        if not sample.text or sample.language not in (None, *self.text_languages):
            return None
        return tuple(self.characters.index(c) + 1 for c in spoken_form(sample.text) if c in self.characters)


def teaches(sample: Sample) -> bool:
    """Has the record sound, and words or labels that it teaches?"""
    labels = any(getattr(sample.labels, kind) is not None for kind in CTC_LABELS)
    return sample.audio is not None and (labels or bool(sample.text))


def _class_index(labels: Labels, kind: LabelKind) -> int:
    value = getattr(labels, kind)
    return IGNORE if value is None else VALUES[kind].index(value)


def spoken_form(text: str) -> str:
    """Words in one form for every corpus: lower case, no punctuation but apostrophes, single blanks."""
    kept = (c if c.isalnum() or c in "' " else " " for c in text.lower().replace("’", "'"))
    return " ".join("".join(kept).split())
