"""A reply is appropriate when it equals an accepted one but for few wrong words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from echat.data.sample import Sample
from echat.eval import judge
from echat.eval.judge import cue_pairs, is_appropriate, judged_questions

LONG = "i am so sorry to hear that you lost your keys today"


def sample(key: str, text: str, reply: str, **extra: Any) -> Sample:
    return Sample(key, text=text, extra={"situation": "keys", "accepted": [reply], **extra})


def test_accepted_replies_are_appropriate() -> None:
    assert is_appropriate("Happy Birthday!", ["happy birthday"])
    assert is_appropriate(LONG.replace("today", "then"), [LONG])
    assert not is_appropriate(LONG.replace("lost your", "found the"), [LONG])
    assert not is_appropriate("", [LONG])
    assert not is_appropriate("anything", [])


def test_a_reply_nearer_to_another_cue_is_not_appropriate() -> None:
    other = LONG.replace("today", "again")
    assert is_appropriate(LONG.replace("today", "then"), [LONG])
    assert not is_appropriate(other, [LONG], [other])
    assert not is_appropriate(LONG.replace("today", "then"), [LONG], [other])


def test_others_are_the_replies_of_the_same_situation() -> None:
    rows = [sample("1", "a", "yes"), sample("2", "a", "no"), sample("3", "a", "maybe", situation="bus")]
    asked = judged_questions([*rows, Sample("4", text="no replies")])
    assert [(q.accepted, q.others) for q in asked] == [
        (("yes",), ("no",)),
        (("no",), ("yes",)),
        (("maybe",), ()),
    ]


def test_pairs_share_words_but_no_reply() -> None:
    rows = [
        sample("1", "A b", "yes"),
        sample("2", "a b", "yes"),
        sample("3", "a b.", "no"),
        sample("4", "c", "no"),
    ]
    pairs = [(one.sample.key, other.sample.key) for one, other in cue_pairs(judged_questions(rows))]
    assert pairs == [("1", "3")]


def test_named_pairs_meet_in_their_pair_alone() -> None:
    rows = [sample(str(n), "a", f"reply {n}", pair=n // 2) for n in range(4)]
    pairs = [(one.sample.key, other.sample.key) for one, other in cue_pairs(judged_questions(rows))]
    assert pairs == [("0", "1"), ("2", "3")]


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge.shutil, "which", lambda program: None)
    assert "found no pocketsphinx_continuous and no flite" in (judge.missing_programs() or "")


def test_silent_reply_has_no_words() -> None:
    assert judge.transcribe(None, 22050) == ""
    assert judge.transcribe(torch.zeros(0), 22050) == ""


@pytest.mark.slow
@pytest.mark.skipif(judge.missing_programs() is not None, reason="needs pocketsphinx and flite")
def test_the_recognizer_understands_the_baseline_voice() -> None:
    assert "good morning" in judge.transcribe_baseline("good morning my friend")


def test_failing_program_is_reported() -> None:
    with pytest.raises(ValueError, match="sh: expected it to succeed, found exit code 3: no voice"):
        judge._call(["sh", "-c", "echo no voice >&2; exit 3"])
