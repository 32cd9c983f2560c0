"""Tags are written one way and read in many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.labels import (
    KINDS,
    VALUES,
    LabelKind,
    Labels,
    canonical,
    describe_voice,
    split_reply_emotion,
    split_trailing_tags,
    tag,
)

PAIRS = [(kind, value) for kind in KINDS for value in VALUES[kind]]


@pytest.mark.parametrize("kind,value", PAIRS)
def test_canonical_undoes_tag_in_any_case(kind: LabelKind, value: str) -> None:
    assert canonical(kind, tag(kind, value)) == value
    assert canonical(kind, tag(kind, value).lower()) == value
    assert canonical(kind, value) == value


@pytest.mark.parametrize(
    "kind,spelling,label",
    [
        ("emotion", "<ANGRY>", "angry"),
        ("emotion", "anger", "angry"),
        ("age", "<middle_age>", "adult"),
        ("age", "<YOUTH>", "adult"),
        ("sound_event", "screaming", "scream"),
        ("sound_event", "throat clearing", "throat_clearing"),
        ("sound_event", "church_bells", "other"),
        ("sound_event", "<NONE>", "none"),
        ("style", "<诗歌>", "诗歌散文"),
        ("emotion", "<&&>", None),
        ("emotion", "None", None),
        ("gender", "robot", None),
        ("gender", None, None),
    ],
)
def test_known_spellings(kind: LabelKind, spelling: str | None, label: str | None) -> None:
    assert canonical(kind, spelling) == label


@given(st.text(max_size=20))
def test_canonical_is_a_known_label_or_nothing(spelling: str) -> None:
    for kind in KINDS:
        assert canonical(kind, spelling) in (None, *VALUES[kind])


def test_labels_refuse_other_words() -> None:
    with pytest.raises(ValueError, match="label emotion: expected one of neutral"):
        Labels(emotion="anger")


def test_record_without_event_is_speech_alone_only_when_it_has_words() -> None:
    assert Labels.from_record({"text": "hi", "gender": "female"}) == Labels(
        gender="female", sound_event="none"
    )
    assert Labels.from_record({"text": None, "sound_event": None}) == Labels()
    assert Labels.from_record({"text": None, "sound_event": "cough"}) == Labels(sound_event="cough")


def test_trailing_tags_leave_the_words() -> None:
    assert split_trailing_tags("i am 3 < 4 <SAD> <OLD>\n") == ("i am 3 < 4", ["SAD", "OLD"])
    assert split_trailing_tags("<SAD>") == ("", ["SAD"])
    assert split_trailing_tags("plain") == ("plain", [])


def test_only_reply_emotions_leave_the_reply() -> None:
    assert split_reply_emotion("<开心>好") == ("开心", "好")
    assert split_reply_emotion("<b>好") == (None, "<b>好")


def test_description_names_known_labels_only() -> None:
    assert describe_voice(Labels("child", None, "sad", "throat_clearing")) == "sad child throat clearing"
    assert describe_voice(Labels("old", "male", None, "none")) == "old male"
    assert describe_voice(Labels()) == ""
