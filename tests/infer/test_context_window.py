"""Conversations are truncated to the context window, and rarely at another turn."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from echat.dialogue.turns import AssistantTurn, Turn, UserTurn
from echat.infer.truncation import POSITIONS_PER_TURN, ContextWindow
from echat.model.llm import LLMConfig
from echat.model.speech_llm import SpeechLLMConfig

ROOM = 1000


class Tokenizer:
    """An id per blank-separated word."""

    def __init__(self) -> None:
        self.n_encoded = 0

    def encode(self, text: str) -> list[int]:
        self.n_encoded += len(text)
        return [0] * len(text.split())


@pytest.fixture
def window() -> Any:
    found = ContextWindow(Tokenizer(), SpeechLLMConfig(llm=LLMConfig(max_positions=ROOM * 4 // 3)))  # type: ignore[arg-type]
    assert found.room == ROOM  # a quarter of a small model stays free for an answer
    return found


def words(count: int, number: int) -> str:
    return f"w{number} " * count


def conversation(n_pairs: int, count: int = 40) -> list[Turn]:
    turns: list[Turn] = []
    for number in range(n_pairs):
        turns += [UserTurn(text=words(count, number)), AssistantTurn(words(count, number + 1000))]
    return [*turns, UserTurn(text="and now")]


def test_a_short_conversation_is_neither_truncated_nor_tokenized(window: Any) -> None:
    turns = conversation(1)
    assert window.truncate(turns) == turns
    assert window._tokenizer.n_encoded == 0


@pytest.mark.parametrize("n_pairs", [5, 10, 12, 30, 200])
def test_the_newest_turns_and_the_question_stay(window: Any, n_pairs: int) -> None:
    turns = conversation(n_pairs)
    left = window.truncate(turns)
    assert left == turns[len(turns) - len(left) :] and isinstance(left[0], UserTurn)
    assert sum(window.positions(turn) for turn in left) <= ROOM
    if len(left) < len(turns):  # and no more is cut than a step
        assert sum(window.positions(turn) for turn in left) > ROOM // 2 - 2 * (40 + POSITIONS_PER_TURN)


def test_a_growing_conversation_mostly_keeps_its_first_turn(window: Any) -> None:
    firsts = [window.truncate(conversation(n))[0] for n in range(20, 60)]
    cuts = sum(before != after for before, after in itertools.pairwise(firsts))
    pairs_per_step = ROOM // 2 // (2 * (40 + POSITIONS_PER_TURN))
    assert 0 < cuts <= 40 // pairs_per_step + 1


def test_no_text_is_tokenized_twice(window: Any) -> None:
    window.truncate(conversation(60))
    before = window._tokenizer.n_encoded
    window.truncate([*conversation(60)[:-1], UserTurn(text="again")])
    assert window._tokenizer.n_encoded - before == len("again")


def test_a_finished_conversation_is_truncated_as_well(window: Any) -> None:
    turns = conversation(30)[:-1]
    left = window.truncate(turns)
    assert isinstance(left[-1], AssistantTurn) and sum(window.positions(turn) for turn in left) <= ROOM


@pytest.mark.parametrize("question", [UserTurn(text=words(1001, 0)), UserTurn("hi", prompt=words(1001, 0))])
def test_a_typed_question_that_is_too_long_is_refused(window: Any, question: UserTurn) -> None:
    with pytest.raises(ValueError, match="question: expected at most 1000 text ids.*found 100[12]"):
        window.truncate([question])
