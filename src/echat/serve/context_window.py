"""Context window: which turns of a conversation fit into the model's positions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from echat.dialogue.turns import Turn, UserTurn
from echat.infer.truncation import ANSWER_POSITIONS, SAMPLES_PER_POSITION

if TYPE_CHECKING:
    from echat.infer.engine import Engine

POSITIONS_PER_TURN = 8  # of the layout, about
CACHED_COUNTS = 4096  # texts


class ContextWindow:
    """Truncates conversations to the context length of one model. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._tokenizer = engine.tokenizer
        self.room = engine.model.config.llm.max_positions - ANSWER_POSITIONS
        self._n_ids: OrderedDict[int, int] = (
            OrderedDict()
        )  # by the hash of a text, as texts of users are not kept

    def truncate(self, turns: Sequence[Turn]) -> list[Turn]:
        """The newest turns that fit, with the question always among them.

        The cut moves in steps of half the room: between two steps a growing conversation keeps its first
        turns, so the prompt (prefix) cache stays valid. A typed question that is too long alone is a
        ValueError.
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
        """Approximate number of positions of a turn."""
        return self._count(turn.text) + _audio_positions(turn)

    def _upper_bound(self, turn: Turn) -> int:
        """An upper bound without the tokenizer: a text id is at least one byte."""
        return len((turn.text or "").encode(errors="replace")) + _audio_positions(turn)

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
            if len(self._n_ids) > CACHED_COUNTS:
                self._n_ids.popitem(last=False)
        return found


def _audio_positions(turn: Turn) -> int:
    if isinstance(turn, UserTurn):
        n_samples = sum(len(piece) for piece in turn.audio.pieces) if turn.audio is not None else 0
        return n_samples // SAMPLES_PER_POSITION + POSITIONS_PER_TURN
    return len(turn.speech_ids or ()) + POSITIONS_PER_TURN
