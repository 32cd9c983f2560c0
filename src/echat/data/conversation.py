"""A record as the conversation that a task trains on: user turns, assistant turns, the thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echat.data.sample import Sample
from echat.dialogue.tasks import Task
from echat.dialogue.thinking import LabelThought, LanguageThought, Thought
from echat.dialogue.turns import AssistantTurn, Conversation, UserTurn


def build_conversation(
    sample: Sample, task: Task, audio: Any = None, past: Sequence[Any] = (), is_pseudo_audio: bool = False
) -> Conversation:
    """The sample as a finished conversation for this task.

    ``audio`` is the question's sound, ``past`` that of past turns; ``is_pseudo_audio`` replaces the
    question's sound with labels and words as text.
    """
    turns: list[UserTurn | AssistantTurn] = []
    for turn, sound in zip(sample.history, past):
        turns += [UserTurn(turn.text, sound), AssistantTurn(turn.reply, turn.speech_ids)]
    turns.append(
        UserTurn(
            text=sample.reply or sample.text if task.reads_aloud else sample.text,
            audio=audio,
            prompt=sample.prompt,
            labels=sample.labels,
            is_pseudo_audio=is_pseudo_audio and task.input_modality == "audio",
        )
    )
    speech_ids = sample.speech_ids if task.writes_speech else None
    turns.append(AssistantTurn(_answer(sample, task), speech_ids, _thought(sample, task)))
    return Conversation(turns)


def _answer(sample: Sample, task: Task) -> str | None:
    if task.writes_label_target:
        return sample.target
    return sample.reply


def _thought(sample: Sample, task: Task) -> Thought | None:
    if task.thinks == "label":
        return LabelThought.from_labels(sample.text or "", sample.labels, sample.reply_emotion)
    if task.thinks == "language":
        return LanguageThought(sample.thought or "")
    return None
