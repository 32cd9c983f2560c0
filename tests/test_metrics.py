"""Error rates agree with a known implementation; what is missing is wrong."""

from __future__ import annotations

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.metrics import Confusion, edit_distance, error_rate, words

sentence = st.lists(st.sampled_from(["a", "b", "c", "it's"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    "text,units",
    [
        ("Hello, World!", ["hello", "world"]),
        ("I’m  at the 'bus-stop'...", ["i'm", "at", "the", "bus", "stop"]),
        ("今天 OK 吗？", ["今", "天", "ok", "吗"]),
        ("Grüß dich", ["grüß", "dich"]),
        ("twenty 20", ["twenty", "20"]),
        ("…!?", []),
    ],
)
def test_units_are_words_and_single_characters(text: str, units: list[str]) -> None:
    assert words(text) == units


@given(sentence, sentence)
def test_word_errors_agree_with_jiwer(reference: str, found: str) -> None:
    rate = error_rate([(reference, found)]).rate
    assert rate == pytest.approx(jiwer.wer(reference, found))


@given(st.lists(st.tuples(sentence, sentence), min_size=1, max_size=5))
def test_errors_add_up_over_texts(pairs: list[tuple[str, str]]) -> None:
    single = [error_rate([pair]) for pair in pairs]
    together = error_rate(pairs)
    assert together.errors == sum(rate.errors for rate in single)
    assert together.length == sum(rate.length for rate in single)


@given(st.text(max_size=10), st.text(max_size=10))
def test_distance_is_symmetric_and_bounded(one: str, other: str) -> None:
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    assert (distance == 0) == (one == other)


def test_references_without_words_are_left_out() -> None:
    assert error_rate([("...", "hello")]).rate is None
    assert error_rate([("hello", "")]).rate == 1.0


def test_scores_of_labels() -> None:
    pairs = [("sad", "sad")] * 3 + [("sad", "happy")] + [("happy", None)] * 2 + [(None, "sad")]
    confusion = Confusion.of(pairs)
    assert confusion.total == 6
    assert confusion.accuracy == 0.5
    assert confusion.recalls == {"sad": 0.75, "happy": 0.0}
    assert confusion.unweighted_recall == 0.375
    assert confusion.as_dict()["confusion"] == {"sad": {"sad": 3, "happy": 1}, "happy": {"unreadable": 2}}


def test_no_items_have_no_score() -> None:
    empty = Confusion.of([(None, "sad")])
    assert (empty.accuracy, empty.unweighted_recall, empty.recalls) == (None, None, {})
