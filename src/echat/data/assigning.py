"""A task for records that leave it to the recipe: published formats name one for each record."""

from __future__ import annotations

from dataclasses import replace

from echat.data.defects import DataError, Defect, Kind
from echat.data.osum_text import normalise
from echat.data.sample import Sample
from echat.dialogue.rendering import target_text
from echat.dialogue.tasks import Task, get_task
from echat.dialogue.turns import AssistantTurn, UserTurn


def assign(sample: Sample, task: str | Task) -> Sample:
    """The sample as a record of ``task``; one that names its own stays as it is. Raises DataError.

    An understanding task gets its finished target, made from words and labels.
    """
    row = get_task(task)
    if sample.task is not None:
        return sample
    if row.hears == "audio" and sample.audio is None:
        raise _lacks(Kind.MISSING_AUDIO, sample, row, "sound to hear")
    if not row.understands:
        if not sample.reply and not (row.hears == "text" and row.writes_speech and sample.text):
            raise _lacks(Kind.MISSING_FIELD, sample, row, "a reply")
        return replace(sample, task=row.name)
    if sample.target is None and row.transcribes and not sample.text:
        raise _lacks(Kind.MISSING_FIELD, sample, row, "words")
    if sample.target is None and row.labels and all(getattr(sample.labels, k) is None for k in row.labels):
        raise _lacks(Kind.MISSING_FIELD, sample, row, f"a known label of {', '.join(row.labels)}")
    return _with_target(replace(sample, task=row.name), row)


def _with_target(sample: Sample, task: Task) -> Sample:
    """The sample as a published record of the task would be read."""
    if task.name == "asr_chat":
        return sample
    turn = UserTurn(sample.text, labels=sample.labels)
    written = target_text(turn, AssistantTurn(sample.target), task)
    target = normalise(written, task)
    words = target.split("<", 1)[0] or None if task.transcribes else sample.text
    extra = sample.extra if written == target else {**sample.extra, "txt": written}
    return replace(sample, target=target, text=words, extra=extra)


def _lacks(kind: Kind, sample: Sample, task: Task, what: str) -> DataError:
    return DataError(
        Defect(kind, "", key=sample.key, reason=f"task {task.name}: expected {what}, found none")
    )
