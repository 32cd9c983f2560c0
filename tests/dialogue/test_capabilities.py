"""Texts in the form of the training data, and texts that are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.capabilities import Capabilities, ReadingCapabilities, WrittenForm
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn

QUESTIONS = WrittenForm(lowercase=True, spelled_out=True, marks="")
READING = WrittenForm(lowercase=True, spelled_out=True, marks=",")


@pytest.mark.parametrize(
    ("text", "question", "reading"),
    [
        ("I Am Sad, my dog DIED!", "i am sad my dog died", "i am sad, my dog died"),
        ("Don’t worry. It's well-known.", "don't worry it's well known", "don't worry, it's well known"),
        ("Wait... what?", "wait what", "wait, what"),
        ("I have 2 cats; 3 dogs.", "i have two cats three dogs", "i have two cats, three dogs"),
        ("i am glad", "i am glad", "i am glad"),
    ],
)
def test_texts_are_written_as_in_training(text: str, question: str, reading: str) -> None:
    assert QUESTIONS.of(text) == question
    assert READING.of(text) == reading


@given(st.text(alphabet="abC ,.;!?-'\"12\n", max_size=30), st.sampled_from([QUESTIONS, READING]))
def test_a_text_in_the_form_stays_as_it_is(text: str, form: WrittenForm) -> None:
    written = form.of(text)
    assert form.of(written) == written
    assert written == written.lower() and set(written) <= set("abcdefghijklmnopqrstuvwxyz', ")


@given(st.text(max_size=30))
def test_what_is_not_declared_changes_nothing(text: str) -> None:
    assert WrittenForm().of(text) == text
    assert Capabilities().foreign_words(text) == []


def test_words_in_a_script_outside_of_the_training_data_are_named() -> None:
    english = Capabilities(languages=("en",))
    assert english.foreign_words("hello, Привет and 你好 — naïve café 12") == ["Привет", "你好"]
    assert Capabilities(languages=("zh", "en")).foreign_words("你好 world") == []
    assert Capabilities(languages=("zh",)).foreign_words("你好 world") == ["world"]
    with pytest.raises(ValueError, match="expected text in en, .* found 'Привет' in another script"):
        english.refuse_foreign("Привет", "text")


def test_a_pace_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected least and most, found 9 and 4"):
        ReadingCapabilities(ids_per_syllable=(9, 4))


@pytest.mark.parametrize("kept", [0, 1, 3, 7])
def test_a_conversation_with_less_history_ends_as_before(kept: int) -> None:
    turns: list[Turn] = [
        turn for n in range(3) for turn in (UserTurn(text=f"q{n}"), AssistantTurn(text=f"a{n}"))
    ]
    conversation = Conversation([*turns, UserTurn(text="now")])
    cut = conversation.with_history(kept)
    assert cut.history == conversation.history[max(0, 3 - kept) :]
    assert cut.question == conversation.question
