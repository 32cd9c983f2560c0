"""Which tasks a record can serve: has it what the task hears and what it writes?"""

from __future__ import annotations

from collections.abc import Sequence

from echat.data.sample import Sample
from echat.dialogue.labels import LabelKind, Labels
from echat.dialogue.tasks import Task


def serves(sample: Sample, task: Task, heard_as_text: bool = False) -> bool:
    """Has the sample what the task hears and writes?"""
    if task.hears == "audio" and not (sample.text if heard_as_text else sample.audio):
        return False
    if task.hears == "text" and not sample.text and not (task.writes_speech and sample.reply):
        return False
    if task.writes_speech and not sample.speech_ids:
        return False
    if task.understands:
        return _serves_understanding(sample, task)
    if task.name in ("tts", "tts_stream"):
        return True
    if not sample.reply:
        return False
    if task.hears == "text":
        return _unmarked(sample.labels)
    if task.thinks == "label":
        return bool(sample.text) and _known(sample.labels, ("age", "gender", "emotion", "sound_event"))
    return task.thinks is None or bool(sample.thought)


def _serves_understanding(sample: Sample, task: Task) -> bool:
    """Words where it transcribes, a known label where it labels, a target where none can be made."""
    if sample.target is not None:
        return sample.task == task.name
    if task.name in ("asr_timestamps", "asr_punctuation"):
        return False
    if task.name == "asr_chat" and not sample.reply:
        return False
    if task.transcribes and not sample.text:
        return False
    return not task.labels or _known(sample.labels, task.labels)


def _known(labels: Labels, kinds: Sequence[LabelKind]) -> bool:
    return any(getattr(labels, kind) is not None for kind in kinds)


def _unmarked(labels: Labels) -> bool:
    """Would the words alone call for this reply? Typed words must not get answers to cues unseen."""
    plain = (None, "none", "neutral", "adult")
    return all(value in plain for value in (labels.age, labels.emotion, labels.sound_event))
