"""Task eligibility: which tasks a record can serve, and filters of what is trained on."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from echat.audio.features import SAMPLE_RATE
from echat.config import Config
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.sample import AudioRef, Sample
from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import VOICE_KINDS, Labels
from echat.dialogue.tasks import Task
from echat.dialogue.thinking import VOICE_SLOTS


def can_serve(sample: Sample, task: Task, is_pseudo_audio: bool = False) -> bool:
    """Has the sample the input and the target of the task?"""
    if task.input_modality == "audio" and not (sample.text if is_pseudo_audio else sample.audio):
        return False
    if task.input_modality == "text" and not sample.text and not (task.reads_aloud and sample.reply):
        return False
    if task.writes_speech and not sample.speech_ids:
        return False
    if task.understands:
        return _can_serve_understanding(sample, task)
    if task.reads_aloud:
        return True
    if not sample.reply:
        return False
    if task.input_modality == "text":
        return _unmarked(sample.labels)
    if task.thinks == "label":
        return bool(sample.text) and sample.labels.has_any(VOICE_SLOTS)
    return task.thinks is None or bool(sample.thought)


def _can_serve_understanding(sample: Sample, task: Task) -> bool:
    """Words where it transcribes, a known label where it labels, a target where none can be made."""
    if sample.target is not None:
        return sample.task == task.name
    if task.target == "finished":
        return False
    if task.target == "answered" and not sample.reply:
        return False
    if task.transcribes and not sample.text:
        return False
    return not task.labels or sample.labels.has_any(task.labels)


def _unmarked(labels: Labels) -> bool:
    """Would the words alone call for this reply? Typed words must not get answers to labels unseen."""
    return all(
        getattr(labels, kind) in (None, LABEL_KINDS[kind].unmarked)
        for kind in VOICE_KINDS
        if LABEL_KINDS[kind].unmarked is not None
    )


# --- Filters of training data; each refused record has a reason that is counted.


SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 30.0  # of sound that is trained on, unless configured


class FilterConfig(Config):
    """Filters of training data. Speech ids beyond the codec are refused always."""

    min_seconds: float = Field(SHORTEST_SECONDS, ge=0)  # of each input sound
    max_seconds: float = Field(LONGEST_SECONDS, gt=0)
    speech_covers_text: bool = True  # refuse spoken replies with too few ids for their text

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        refuse_empty_range(self.min_seconds, self.max_seconds)
        return self


def refuse_empty_range(min_seconds: float, max_seconds: float) -> None:
    """Raise ValueError for bounds that no sound can meet."""
    if min_seconds > max_seconds:
        raise ValueError(
            f"expected min_seconds <= max_seconds, found {min_seconds:g} and {max_seconds:g}; swap them"
        )


def refuse_speech(sample: Sample, task: Task, codec_size: int, filters: FilterConfig) -> None:
    """Raise DataError for speech ids that cannot be a target of this task."""
    for kind, reason in sample.defects(codec_size):
        short = kind is DefectKind.SPEECH_TOO_SHORT and task.writes_speech and filters.speech_covers_text
        if short or kind is DefectKind.SPEECH_ID_RANGE:
            raise refusal(sample, kind, reason)


def refuse_length(sample: Sample, ref: AudioRef, samples: int, filters: FilterConfig) -> None:
    """Raise DataError for a sound of so many 16 kHz samples outside of the filter's bounds."""
    seconds = samples / SAMPLE_RATE
    if filters.min_seconds <= seconds <= filters.max_seconds:
        return
    kind = DefectKind.TOO_SHORT if seconds < filters.min_seconds else DefectKind.TOO_LONG
    bounds = f"{filters.min_seconds:g} to {filters.max_seconds:g} s"
    raise refusal(
        sample,
        kind,
        f"{ref.where}: expected {bounds} of sound, found {seconds:.2f} s; set filters.min_seconds or "
        "filters.max_seconds if it shall be used",
    )


def refusal(sample: Sample, kind: DefectKind, reason: str) -> DataError:
    """The error that names the record."""
    return DataError(Defect(kind, sample.source, key=sample.key, reason=reason))
