"""Truncation of a conversation to the context window of a model, and its texts in the form of training data.

`match_training` and `truncate_history` make the conversation that every prompt is rendered from.
`ContextWindow` truncates the growing conversations of a server beforehand, in large steps, so that the prompt
cache stays useful.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echat.audio.features import HOP, SAMPLE_RATE
from echat.audio.waveform import read
from echat.dialogue.rendering import AudioSegment, Segment
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn
from echat.infer.audio_input import split_recordings

if TYPE_CHECKING:
    from echat.dialogue.capabilities import Capabilities
    from echat.dialogue.tasks import Task
    from echat.model.speech_encoder import EncoderConfig
    from echat.model.speech_llm import SpeechLLMConfig
    from echat.model.text_tokenizer import TextTokenizer

ANSWER_POSITIONS = 1024  # of the model's positions that stay free for an answer, but a quarter at most
POSITIONS_PER_TURN = 8  # of the layout, about
COUNTED_TEXTS = 4096  # texts of which the number of ids is cached

Render = Callable[[Conversation], Sequence[Segment]]


def prompt_room(max_positions: int) -> int:
    """Positions that a prompt may take."""
    return max_positions - min(ANSWER_POSITIONS, max_positions // 4)


def match_training(conversation: Conversation, task: Task, capabilities: Capabilities) -> Conversation:
    """As many turns of history as the training data had, and typed text in the form it had there.

    Raises ValueError for words in a script that no language of the model has.
    """
    if capabilities.history_turns is not None:
        conversation = conversation.with_history(capabilities.history_turns)
    turns = [_as_written(turn, task, capabilities) for turn in conversation.turns]
    return conversation if turns == list(conversation.turns) else Conversation(turns)


def _as_written(turn: Turn, task: Task, capabilities: Capabilities) -> Turn:
    if (
        isinstance(turn, AssistantTurn)
        or not turn.text
        or (turn.audio is not None and task.input_modality == "audio")
    ):
        return turn
    form = capabilities.reading if task.reads_aloud else capabilities.questions
    capabilities.refuse_foreign(turn.text, "text")
    return replace(turn, text=form.of(turn.text) or turn.text)


def truncate_history(conversation: Conversation, render: Render, model: SpeechLLMConfig) -> Conversation:
    """The newest turns that leave room for an answer. The question stays; a typed one that is too long by
    itself is a ValueError."""
    room, encoder = prompt_room(model.llm.max_positions), model.encoder
    if not conversation.history and not conversation.question.text:
        return conversation
    excess = n_positions(render(conversation), encoder) - room
    if excess <= 0:
        return conversation
    question = conversation.with_history(0)
    alone = render(question)
    fixed = n_positions(alone, encoder)
    kept = len(conversation.history)
    for turns in conversation.history:
        if excess <= 0:
            break
        excess -= n_positions(render(Conversation([*turns, *question.turns])), encoder) - fixed
        kept -= 1
    if (
        excess > 0
        and (n_text := n_positions([s for s in alone if not isinstance(s, AudioSegment)], encoder)) > room
    ):
        raise ValueError(
            f"question: expected at most {room} text ids, which leave this model room for an answer, found "
            f"{n_text}; ask something shorter"
        )
    return conversation.with_history(kept)


def n_positions(segments: Sequence[Segment], encoder: EncoderConfig) -> int:
    """How many positions a prompt takes; those of audio up to the rounding of its length."""
    return sum(
        _positions_of(segment.audio, encoder.samples_per_llm_frame)
        if isinstance(segment, AudioSegment)
        else len(segment.ids)
        for segment in split_recordings(segments)
    )


def _positions_of(audio: Any, samples_per_position: int) -> int:
    if isinstance(audio, str | Path):
        audio = read(str(audio), SAMPLE_RATE)[0]
    if getattr(audio, "ndim", 0) == 2:  # a mel
        return len(audio) * HOP // samples_per_position + 1
    return len(audio) // samples_per_position + 1 if hasattr(audio, "__len__") else 1


# --- Conversations of a server


class ContextWindow:
    """Truncates the conversations of a server, with cached text lengths. Safe to share between threads."""

    def __init__(self, tokenizer: TextTokenizer, model: SpeechLLMConfig) -> None:
        self._tokenizer, self.room = tokenizer, prompt_room(model.llm.max_positions)
        self._samples_per_position = model.encoder.samples_per_llm_frame
        self._n_ids: OrderedDict[int, int] = OrderedDict()  # by the hash of a text: no text is kept

    def truncate(self, turns: Sequence[Turn]) -> list[Turn]:
        """The newest turns that fit; the question is always among them.

        Turns are dropped in steps of half the room: between two of them a growing conversation keeps its
        first turn, so its prompt cache stays valid. A typed question that does not fit alone is a ValueError.
        """
        self._check_question(turns[-1])
        if sum(self._upper_bound(turn) for turn in turns) <= self.room:  # no need to count
            return list(turns)
        n_pairs = (len(turns) - 1) // 2  # a question and its answer each
        sizes = [self.positions(turns[2 * n]) + self.positions(turns[2 * n + 1]) for n in range(n_pairs)]
        excess = sum(sizes) + sum(self.positions(turn) for turn in turns[2 * n_pairs :]) - self.room
        step = max(1, self.room // 2)
        to_drop = -(-excess // step) * step if excess > 0 else 0
        first = 0
        while first < n_pairs and to_drop > 0:
            to_drop -= sizes[first]
            first += 1
        return list(turns[2 * first :])

    def positions(self, turn: Turn) -> int:
        """About how many positions a turn takes."""
        return self._count(turn.text) + self._audio_positions(turn)

    def _upper_bound(self, turn: Turn) -> int:
        """A bound that needs no tokenizer: an id of text stands for at least one byte."""
        return len((turn.text or "").encode(errors="replace")) + self._audio_positions(turn)

    def _check_question(self, question: Turn) -> None:
        prompt = question.prompt if isinstance(question, UserTurn) else None
        texts = [text for text in (question.text, prompt) if text]
        if sum(len(text.encode(errors="replace")) for text in texts) <= self.room:
            return
        found = sum(self._count(text) for text in texts)
        if found > self.room:
            raise ValueError(
                f"question: expected at most {self.room} text ids, which the model has positions for, "
                f"found {found}; ask a shorter one"
            )

    def _count(self, text: str | None) -> int:
        if not text:
            return 0
        key = hash(text)
        found = self._n_ids.get(key)
        if found is None:
            found = self._n_ids[key] = len(self._tokenizer.encode(text))
            if len(self._n_ids) > COUNTED_TEXTS:
                self._n_ids.popitem(last=False)
        return found

    def _audio_positions(self, turn: Turn) -> int:
        if isinstance(turn, UserTurn):
            n_samples = sum(len(piece) for piece in turn.audio.pieces) if turn.audio is not None else 0
            return n_samples // self._samples_per_position + POSITIONS_PER_TURN
        return len(turn.speech_ids or ()) + POSITIONS_PER_TURN
