"""What of a conversation a model is given: words in the form it learned, and no more history than it learned
and has positions for.

Whatever door a question comes through, its prompt is rendered from the conversation that is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echat.audio.features import HOP, SAMPLE_RATE
from echat.audio.waveform import read
from echat.dialogue.rendering import Audio, Segment
from echat.dialogue.turns import AssistantTurn, Conversation, Turn
from echat.infer.audio_input import split_recordings
from echat.model.speech_encoder import LLM_FRAME_SECONDS

if TYPE_CHECKING:
    from echat.dialogue.capabilities import Capabilities
    from echat.dialogue.tasks import Task

ANSWER_POSITIONS = 1024  # of the model's positions that stay free for an answer, but a quarter at most
SAMPLES_PER_POSITION = round(LLM_FRAME_SECONDS * SAMPLE_RATE)

Render = Callable[[Conversation], Sequence[Segment]]


def match_training(conversation: Conversation, task: Task, learned: Capabilities) -> Conversation:
    """The history that was learned, and what the user typed as training wrote it.

    Raises ValueError for words in a script that no language of the model has.
    """
    if learned.history_turns is not None:
        conversation = conversation.with_history(learned.history_turns)
    turns = [_as_written(turn, task, learned) for turn in conversation.turns]
    return conversation if turns == list(conversation.turns) else Conversation(turns)


def _as_written(turn: Turn, task: Task, learned: Capabilities) -> Turn:
    if (
        isinstance(turn, AssistantTurn)
        or not turn.text
        or (turn.audio is not None and task.input_modality == "audio")
    ):
        return turn
    form = learned.reading if task.reads_aloud else learned.questions
    learned.refuse_foreign(turn.text, "text")
    return replace(turn, text=form.of(turn.text) or turn.text)


def truncate_history(conversation: Conversation, render: Render, max_positions: int) -> Conversation:
    """The newest turns that leave room for an answer. The question stays; typed words that fill the model
    alone are refused."""
    room = max_positions - min(ANSWER_POSITIONS, max_positions // 4)
    if not conversation.history and not conversation.question.text:
        return conversation
    excess = n_positions(render(conversation)) - room
    if excess <= 0:
        return conversation
    question = conversation.with_history(0)
    alone = render(question)
    fixed = n_positions(alone)
    kept = len(conversation.history)
    for turns in conversation.history:
        if excess <= 0:
            break
        excess -= n_positions(render(Conversation([*turns, *question.turns]))) - fixed
        kept -= 1
    if excess > 0 and (n_text := n_positions([s for s in alone if not isinstance(s, Audio)])) > room:
        raise ValueError(
            f"question: expected at most {room} text ids, which leave this model room for an answer, found "
            f"{n_text}; ask something shorter"
        )
    return conversation.with_history(kept)


def n_positions(segments: Sequence[Segment]) -> int:
    """How many positions a prompt takes; those of a sound up to the rounding of its length."""
    return sum(
        _positions_of(segment.audio) if isinstance(segment, Audio) else len(segment.ids)
        for segment in split_recordings(segments)
    )


def _positions_of(audio: Any) -> int:
    if isinstance(audio, str | Path):
        audio = read(str(audio), SAMPLE_RATE)[0]
    if getattr(audio, "ndim", 0) == 2:  # a mel
        return len(audio) * HOP // SAMPLES_PER_POSITION + 1
    return len(audio) // SAMPLES_PER_POSITION + 1 if hasattr(audio, "__len__") else 1
