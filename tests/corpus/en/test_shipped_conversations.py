"""The conversations that ship: every one follows the rules that can be counted."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from echat.corpus.conversations import SHIPPED, conversations, labels_of

TURN = {"user", "cue", "tone", "thought", "reply"}
DANGERS = {None, "self_harm", "health", "violence", "fire", "abuse", "fraud"}


@pytest.fixture(scope="module")
def shipped():
    return [one for _, one in conversations(SHIPPED)]


@pytest.fixture(scope="module")
def cue_sets(shipped):
    return [one for one in shipped if "say" in one]


@pytest.fixture(scope="module")
def dialogues(shipped):
    return [one for one in shipped if "turns" in one]


def replies(one):
    return [part["reply"] for part in one.get("answers") or one["turns"]]


def test_there_are_many_of_many_topics(cue_sets, dialogues):
    assert len(cue_sets) >= 2000 and len(dialogues) >= 800
    assert len({one["topic"] for one in cue_sets}) >= 400
    assert sum(bool(one.get("recall")) for one in dialogues) >= 200


def test_each_has_a_name_of_its_own(shipped):
    assert max(Counter(one["id"] for one in shipped).values()) == 1


def test_cue_sets_have_three_wordings_and_an_answer_for_each_of_several_voices(cue_sets):
    for one in cue_sets:
        assert len(set(one["say"])) == 3 and one.get("danger") in DANGERS, one["id"]
        cues = [answer["cue"] for answer in one["answers"]]
        assert 2 <= len(set(cues)) == len(cues) <= 4, one["id"]
        for answer in one["answers"]:
            assert set(answer) == {"cue", "tone", "thought", "reply"}, one["id"]


def test_dialogues_have_two_to_six_turns_with_known_labels(dialogues):
    for one in dialogues:
        assert 2 <= len(one["turns"]) <= 6, one["id"]
        for turn in one["turns"]:
            assert {"user", "tone", "reply"} <= set(turn) <= {"user", "cue", "tone", "thought", "reply"}, one[
                "id"
            ]
            assert labels_of(turn.get("cue"), one["id"])["emotion"]


def test_replies_can_be_spoken(shipped):
    for one in shipped:
        for reply in replies(one):
            assert 1 <= len(reply.split()) <= 32, (one["id"], reply)
            assert not re.search(r"[*#_\[\]<>{}]|[^\x00-\x7f]", reply), (one["id"], reply)


def test_no_reply_and_no_wording_is_there_twice(shipped, cue_sets):
    for texts in (
        [reply for one in shipped for reply in replies(one)],
        [text for one in cue_sets for text in one["say"]],
    ):
        plain = Counter(re.sub(r"[^a-z0-9 ]", "", text.lower()) for text in texts)
        assert [text for text, count in plain.most_common(20) if count > 1] == []
