"""What a recipe does not want to learn from, each with a reason that is counted."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from echat.audio.features import SAMPLE_RATE
from echat.config import Config
from echat.data.defects import DataError, Defect, Kind
from echat.data.sample import AudioRef, Sample
from echat.dialogue.tasks import Task


class FilterConfig(Config):
    """Bounds of what is learned from. Speech ids that the codec does not know are refused always."""

    min_seconds: float = Field(0.1, ge=0)  # of each sound heard
    max_seconds: float = Field(30.0, gt=0)
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
    """Raise DataError for speech ids that cannot be learned as this task's."""
    for kind, reason in sample.defects(codec_size):
        short = kind is Kind.SPEECH_TOO_SHORT and task.writes_speech and filters.speech_covers_text
        if short or kind is Kind.SPEECH_ID_RANGE:
            raise refusal(sample, kind, reason)


def refuse_length(sample: Sample, ref: AudioRef, samples: int, filters: FilterConfig) -> None:
    """Raise DataError for a sound of so many 16 kHz samples that is shorter or longer than wanted."""
    seconds = samples / SAMPLE_RATE
    if filters.min_seconds <= seconds <= filters.max_seconds:
        return
    kind = Kind.TOO_SHORT if seconds < filters.min_seconds else Kind.TOO_LONG
    bounds = f"{filters.min_seconds:g} to {filters.max_seconds:g} s"
    raise refusal(
        sample,
        kind,
        f"{ref.where}: expected {bounds} of sound, found {seconds:.2f} s; set filters.min_seconds or "
        "filters.max_seconds if it shall be heard",
    )


def refusal(sample: Sample, kind: Kind, reason: str) -> DataError:
    """The error that names the record."""
    return DataError(Defect(kind, sample.source, key=sample.key, reason=reason))
