"""Written form: case, full stops and question marks, nothing else; a written form stays as it is."""

from __future__ import annotations

import pytest

from echat.corpus.conversations import SHIPPED, conversations, shipped_lexicon
from echat.corpus.en.questions import is_question
from echat.corpus.en.written_form import mid_sentence_capitals, written_form
from echat.metrics import words


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("i'm home on monday", "I'm home on Monday."),
        ("WE CALL IT BEAR", "We call it bear."),
        ("can i see peter's dog", "Can I see Peter's dog?"),
        ("p i t t s b u r g h", "P I T T S B U R G H."),
        ("a year in may or march", "A year in May or march."),
        ("may twelfth and march first", "May twelfth and March first."),
        ("you may march to new york on a new road", "You may march to New York on a new road."),
        ("hi, my back hurts. is it bad", "Hi, my back hurts. Is it bad?"),
        ("it's seven o'clock", "It's seven o'clock."),
        ("Ana said so", "Ana said so."),
        ("stop!", "Stop!"),
        ("well,", "Well."),
        ("six", "Six."),
        ("don\u2019t", "Don't."),
        ("", ""),
        ("...", ""),
    ],
)
def test_case_and_the_mark_at_the_end(text: str, written: str) -> None:
    assert written_form(text) == written
    assert written_form(written) == written


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("what time is it", "what i want is sleep"),
        ("do you know her", "do it now"),
        ("do bees die", "do this for me"),
        ("when did he come", "when i was young we swam"),
        ("how old are you", "how lovely"),
        ("what about me", "what a day"),
        ("who told you", "who they are is a secret"),
        ("why not", "why that's all one"),
        ("can't you wait", "can't wait"),
        ("would he like it", "would be nice"),
        ("it's cold isn't it", "it is cold"),
        ("i have a cold should i go", "so do i"),
        ("and if he falls", "and he falls"),
        ("hello is anybody there", "hello there"),
        ("for whom is it", "for him"),
    ],
)
def test_questions_by_question_word_inversion_and_tag(question: str, statement: str) -> None:
    assert is_question(question.split())
    assert not is_question(statement.split())


@pytest.mark.slow
def test_words_are_never_added_changed_or_dropped() -> None:
    for _, one in conversations(SHIPPED / "dialogues"):
        for turn in one["turns"]:
            spoken = " ".join(words(turn["user"]))
            written = written_form(spoken, shipped_lexicon())
            assert words(written) == spoken.split()
            assert "," not in written


def test_the_lexicon_holds_words_with_a_capital_inside_sentences() -> None:
    texts = [
        "Then Bea rang.",
        "Is Bea in?",
        "She said: Come in.",
        "To me. Then me.",
        "In May I may, may I?",
        "Ask Joe.",
    ]
    assert mid_sentence_capitals(texts) == {"bea": "Bea"}
    assert mid_sentence_capitals(texts, frozenset({"bea"})) == {}
    assert written_form("is bea in", {"bea": "Bea"}) == "Is Bea in?"
    assert written_form("is bea in") == "Is bea in?"
    assert shipped_lexicon()["friday"] == "Friday" and "bloom" not in shipped_lexicon()


@pytest.mark.slow
def test_most_questions_of_the_shipped_conversations_are_found() -> None:
    """At least 80 % of the question marks, and at most 4 % of those set are wrong."""
    found = {True: 0, False: 0}
    asked = 0
    for _, one in conversations(SHIPPED / "cues"):
        for text in one["say"]:
            if any(mark in text[:-1] for mark in ".!?:;") or text[:1].islower() or text[-1] not in ".?":
                continue
            asked += text.endswith("?")
            if is_question(words(text)):
                found[text.endswith("?")] += 1
    assert asked > 300
    assert found[True] >= 0.8 * asked and found[False] <= 0.04 * sum(found.values())
