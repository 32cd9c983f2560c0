"""Training examples of the speech encoder alone: a clip, its CTC target in characters, its labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from echat.audio.augmentation import AugmentConfig
from echat.data.audio_loading import AudioLoader, extract_mel
from echat.data.defects import DefectKind
from echat.data.eligibility import FilterConfig, refusal, refuse_length
from echat.data.examples import MEL_FRAMES_PER_POSITION
from echat.data.mixture import SampledItem
from echat.data.sample import Sample
from echat.dialogue.labels import CTC_KINDS, VALUES, LabelKind, Labels
from echat.dialogue.vocabulary import IGNORE


@dataclass(frozen=True, slots=True)
class SpeechExample:
    """A clip, the units spoken in it (CTC target), and the labels of its voice."""

    key: str
    task: str
    mel: np.ndarray  # (frames, n_mels)
    targets: tuple[int, ...] | None  # unit ids from 1 up (0 is the CTC blank); None = words not known
    labels: tuple[int, ...]  # one class index per kind of CTC_KINDS, IGNORE = not known

    @property
    def sizes(self) -> tuple[int]:
        """Work of the encoder in units of one position of a language model."""
        return (len(self.mel) // MEL_FRAMES_PER_POSITION,)


@dataclass
class SpeechBuilder:
    """SampledItem -> SpeechExample with characters as units."""

    characters: str  # unit i + 1 is characters[i]
    text_languages: tuple[str, ...]  # texts in other languages are no targets
    audio_loader: AudioLoader
    n_mels: int  # mel bins of the encoder
    augment: AugmentConfig | None = None
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __call__(self, item: SampledItem) -> SpeechExample:
        sample = item.sample
        if sample.audio is None or not has_encoder_targets(sample):
            reason = "expected audio with its words or a label of its voice, found not both"
            raise refusal(sample, DefectKind.UNWANTED, reason)
        waveform = self.audio_loader.read(sample.audio)
        refuse_length(sample, sample.audio, len(waveform), self.filters)
        mel = extract_mel(waveform, self.n_mels, self.augment, np.random.default_rng(item.seed))
        labels = tuple(_class_index(sample.labels, kind) for kind in CTC_KINDS)
        return SpeechExample(sample.key, item.task, mel, self._units(sample), labels)

    def _units(self, sample: Sample) -> tuple[int, ...] | None:
        if not sample.text or sample.language not in (None, *self.text_languages):
            return None
        return tuple(
            self.characters.index(c) + 1 for c in normalize_text(sample.text) if c in self.characters
        )


def has_encoder_targets(sample: Sample) -> bool:
    """Has the record sound, and words or labels as targets?"""
    return sample.audio is not None and (sample.labels.has_any(CTC_KINDS) or bool(sample.text))


def _class_index(labels: Labels, kind: LabelKind) -> int:
    value = getattr(labels, kind)
    return IGNORE if value is None else VALUES[kind].index(value)


def normalize_text(text: str) -> str:
    """Words in one form for every corpus: lower case, no punctuation but apostrophes, single blanks."""
    kept = (c if c.isalnum() or c in "' " else " " for c in text.lower().replace("’", "'"))
    return " ".join("".join(kept).split())
