"""Parsing undoes formatting, and nothing a model writes breaks a reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.labels import REPLY_EMOTIONS, VALUES
from echat.dialogue.thinking import (
    VOICE_SLOTS,
    LabelThought,
    LanguageThought,
    ParsedReply,
    format_reply,
    format_thought,
    parse_reply,
    unfinished_labels,
    unfinished_thought,
)

free_text = st.text(max_size=60).map(str.strip).filter(lambda text: "think" not in text)
replies = free_text.filter(lambda text: not text.startswith("<"))
label_thoughts = st.builds(
    LabelThought,
    transcript=free_text,
    reply_emotion=st.sampled_from(REPLY_EMOTIONS),
    **{kind: st.sampled_from([None, *VALUES[kind]]) for kind in VOICE_SLOTS},
)
language_thoughts = st.builds(
    LanguageThought, free_text.filter(lambda text: text and not text.startswith("用户说的话是"))
)


def test_label_form_is_the_literal_of_the_released_weights() -> None:
    thought = LabelThought("你好", "adult", "female", "angry", "throat_clearing", "安慰鼓励")
    assert format_reply(thought, "别急") == (
        "<think>用户说的话是:你好,年龄为:<ADULT>,性别为:<FEMALE>,情感为:<ANGER>,"
        "声音事件为:<THROAT CLEARING>,推测使用的回复情感为:<安慰鼓励>,"
        "我应该综合用户的语义和副语言信息给出专业且对应的回答<think end><安慰鼓励>别急"
    )


def test_unknown_slots_are_placeholders_and_missing_reply_emotion_is_neutral() -> None:
    assert format_thought(LabelThought("hi")).count("<&&>") == 4
    assert "推测使用的回复情感为:<中立>" in format_thought(LabelThought("hi"))


@given(label_thoughts, replies)
def test_parse_undoes_format_of_labels(thought: LabelThought, reply: str) -> None:
    assert parse_reply(format_reply(thought, reply)) == ParsedReply(
        thought, thought.reply_emotion, reply, True
    )


@given(language_thoughts, replies)
def test_parse_undoes_format_of_language(thought: LanguageThought, reply: str) -> None:
    assert parse_reply(format_reply(thought, reply)) == ParsedReply(thought, None, reply, True)


@given(replies)
def test_reply_without_thought_is_itself(reply: str) -> None:
    assert parse_reply(reply) == ParsedReply(None, None, reply, True)


FRAGMENTS = ["<think>", "<think end>", "</think>", "</think end>", "<", ">", "用户说的话是:", ",年龄为:<OLD>"]
FRAGMENTS += [
    "情感为:",
    "<SAD>",
    "<安慰鼓励>",
    "hello",
    " ",
    "\n",
    "我应该综合用户的语义和副语言信息给出专业且对应的回答",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=40))
def test_nothing_a_model_writes_raises(text: str) -> None:
    parsed = parse_reply(text)
    assert "<think end>" not in parsed.reply
    assert parsed.reply in text


@given(label_thoughts, replies, st.integers(0, 200))
def test_label_thought_cut_anywhere_keeps_finished_slots(thought: LabelThought, reply: str, at: int) -> None:
    text = format_reply(thought, reply)
    cut = text[: min(at, text.index("<think end>"))]
    parsed = parse_reply(cut)
    assert parsed.reply in cut
    if isinstance(parsed.thought, LabelThought):
        assert not parsed.wellformed
        assert parsed.thought.age in (None, thought.age) or "年龄" in thought.transcript


@pytest.mark.parametrize(
    "text,reply",
    [
        ("<think>he is sad</think end>oh dear", "oh dear"),
        ("<think>he is sad</think>oh dear", "oh dear"),
        ("he is sad<think end>oh dear", "oh dear"),
        ("<think>用户说的话是:hi,我应该综合用户的语义和副语言信息给出专业且对应的回答oh dear", "oh dear"),
        ("<think>he is sad and never stops", ""),
        ("<think><think end>oh dear", "oh dear"),
    ],
)
def test_malformed_thoughts_survive(text: str, reply: str) -> None:
    parsed = parse_reply(text)
    assert parsed.reply == reply
    assert not parsed.wellformed


def test_full_width_punctuation_and_lower_case_are_salvaged() -> None:
    text = "<think>用户说的话是：你好，年龄为：<youth>，性别为：<female>，情感为：<angry><think end>好"
    parsed = parse_reply(text)
    assert parsed.thought == LabelThought("你好", "adult", "female", "angry")
    assert not parsed.wellformed


def test_reply_follows_the_last_end_tag() -> None:
    assert parse_reply("<think>a<think end>b<think end>c").reply == "c"


@given(st.one_of(label_thoughts, st.builds(LanguageThought, free_text)), replies)
def test_a_thought_grows_while_it_is_written(thought, reply):
    text = format_reply(thought, reply)
    seen = [unfinished_thought(text[:end]) for end in range(len(text) + 1)]
    whole = text[len("<think>") : text.index("<think end>")]
    assert all(whole.startswith(inside) for inside in seen)
    assert [len(inside) for inside in seen] == sorted(len(inside) for inside in seen)
    assert seen[-1] == whole


def test_labels_are_known_one_after_the_other():
    thought = LabelThought("i am home", "adult", "female", "happy", "none", "开心")
    text = format_thought(thought).removesuffix("<think end>")
    found = [unfinished_labels(unfinished_thought(text[:end])) for end in range(len(text))]
    ages = [one.age for one in found if one is not None]
    assert ages[0] is None and ages[-1] == "adult"
    assert found[-1] is not None and found[-1].sound_event == "none"
    assert unfinished_labels("she sounds sad") is None


@pytest.mark.parametrize(
    "thought", [LanguageThought("she is glad"), LabelThought("hi", "adult", "female", "happy")]
)
def test_a_text_that_is_cut_anywhere_before_its_reply_has_none(
    thought: LanguageThought | LabelThought,
) -> None:
    whole = format_reply(thought, "good")
    for end in range(len(whole) - len("good") + 1):
        assert parse_reply(whole[:end]).reply == "", whole[:end]
    assert parse_reply(whole).reply == "good"


@pytest.mark.parametrize("text", ["<3", "a < b", "<smile> hello", "< think", "1 <"])
def test_a_reply_that_only_looks_like_a_tag_stays(text: str) -> None:
    assert parse_reply(text).reply.endswith(text[-1])
