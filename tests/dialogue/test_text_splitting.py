"""Pieces put together are the text, each is small enough, and cuts are where a reader would breathe."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.text_splitting import (
    CLAUSE,
    PARAGRAPH,
    SENTENCE,
    WORD,
    pause_after,
    split_in_two,
    split_text,
)

TEXTS = st.text(alphabet="ab ,.!?;:…。，！\n\"'()-中文", max_size=120)


def n_words(text: str) -> int:
    return len(text.split())


@given(TEXTS, st.integers(1, 30))
def test_pieces_are_the_text_and_none_is_too_large(text: str, limit: int) -> None:
    found = split_text(text, len, limit)
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found)


@given(
    st.lists(st.sampled_from(["so", "this,", "that;", "ends.", "why?", "no"]), max_size=60),
    st.integers(1, 12),
)
def test_every_word_is_in_one_piece_in_order(words: list[str], limit: int) -> None:
    found = split_text(" ".join(words), n_words, limit)
    assert [word for piece in found for word in piece.split()] == words
    assert all(n_words(piece) <= limit for piece in found)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One two. Three four. Five.", 4, ["One two. Three four. ", "Five."]),
        ("One two. Three four. Five.", 2, ["One two. ", "Three four. ", "Five."]),
        ("one two three, four five; six seven eight", 5, ["one two three, four five; ", "six seven eight"]),
        ("one two three four five six seven", 6, ["one two three four ", "five six seven"]),
        ('"No." he said', 1, ['"No." ', "he ", "said"]),
        ("It is 3.5 miles. Yes.", 4, ["It is 3.5 miles. ", "Yes."]),
    ],
)
def test_cuts_are_between_sentences_then_clauses_then_words(
    text: str, limit: int, expected: list[str]
) -> None:
    assert split_text(text, n_words, limit) == expected


def test_chinese_is_cut_at_its_own_marks() -> None:
    assert split_text("你好。今天天气很好，我们走吧！", len, 9) == ["你好。", "今天天气很好，", "我们走吧！"]
    assert split_text("今天天气很好我们走吧", len, 4) == ["今天天气", "很好我们", "走吧"]


def test_halves() -> None:
    assert split_in_two("one two three four five six", n_words) == ["one two three ", "four five six"]
    assert split_in_two("one", n_words) == ["one"]
    assert split_in_two("undivided", len) == ["undivided"]


@pytest.mark.parametrize(
    ("piece", "pause"),
    [
        ("Yes. ", SENTENCE),
        ('"Yes!" ', SENTENCE),
        ("是。", SENTENCE),
        ("well, ", CLAUSE),
        ("so ", WORD),
        ("a\n", PARAGRAPH),
    ],
)
def test_a_pause_is_as_long_as_its_mark_asks(piece: str, pause: float) -> None:
    assert pause_after(piece) == pause


def test_a_long_text_is_cut_without_counting_it_again_and_again() -> None:
    calls = 0

    def size(text: str) -> int:
        nonlocal calls
        calls += 1
        return len(re.findall(r"\w+", text))

    assert len(split_text("word " * 4000, size, 20)) == 200
    assert calls < 60_000
