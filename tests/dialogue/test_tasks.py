"""The table is complete and its names resolve."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.labels import VALUES, Labels
from echat.dialogue.prompts import system_prompt
from echat.dialogue.tasks import TASKS, Sampling, Task, get_task, reply_task, task_for_tag
from echat.dialogue.understanding import format_understanding, parse_understanding

LABELLING = [task for task in TASKS.values() if task.labels]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_row_finds_its_prompts(task: Task) -> None:
    for profile in ("echat", "osum", "reference"):
        assert task.system_for(profile)  # type: ignore[arg-type]
    asks = task.understands or task.thinks is not None
    assert (task.prompt_for("echat") is not None) == asks
    assert (task.prompt_for("reference") is not None) == task.understands


@pytest.mark.parametrize("think", ["off", "label", "language"])
@pytest.mark.parametrize("speaks", [False, True])
def test_the_task_of_a_reply_thinks_and_speaks_as_asked(think: str, speaks: bool) -> None:
    task = TASKS[reply_task(think, speaks)]
    assert (task.thinks or "off") == think and task.writes_speech == speaks and not task.understands


def test_prompts_keep_their_odd_letters() -> None:
    assert "user\u2019s words" in system_prompt("s2s_think")
    assert "</think end>" in system_prompt("s2s_think")
    assert "anaosum_echat2e" in TASKS["asr"].system_for("reference")
    assert "anaosum_echat2e" not in TASKS["asr"].system_for("osum")
    with pytest.raises(ValueError, match="system prompt: expected one of"):
        system_prompt("nobody")


def test_reference_decoding_is_the_recorded_one() -> None:
    assert TASKS["asr"].decoding_for("reference").text == Sampling(True, 5, 0.9, 1.0, 1.05)
    assert TASKS["asr"].decoding_for("osum").text == Sampling()
    assert TASKS["s2t"].decoding_for("osum").text == Sampling(True, 2, 1.0, 0.4, 1.05)
    assert TASKS["tts"].decoding_for("reference").speech == Sampling(True, 15, 0.8, 1.2)
    assert TASKS["t2t"].decoding_for("reference").max_new_ids == 200
    assert TASKS["s2s"].decoding_for("reference").constrain_age
    assert not TASKS["s2t_think_label"].decoding_for("reference").constrain_age


@pytest.mark.parametrize(
    "tag,thinks,name",
    [
        ("<TRANSCRIBE>", "language", "asr"),
        ("<S2TCHAT> <TEXT2TOKEN> <THINK>", "label", "s2s_think_label"),
        ("<S2TCHAT> <THINKER>", "language", "s2t_think_language"),
        ("<S2TCHAT> <TEXT2TOKEN> <HISTORY>", "language", "s2s"),
        ("TEXT2TOKEN", "language", "tts"),
        ("<CAPTION> <AUDIO>", "language", "event"),
    ],
)
def test_data_tags_find_their_row(tag: str, thinks: Any, name: str) -> None:
    assert task_for_tag(tag, thinks).name == name


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'understand'"):
        get_task("understnad")
    with pytest.raises(ValueError, match="task tag: expected one of <TRANSCRIBE>"):
        task_for_tag("<SING>")


@given(st.data())
def test_parsing_undoes_formatting_of_understanding(data: st.DataObject) -> None:
    task = data.draw(st.sampled_from(LABELLING))
    words = data.draw(st.text("abc def,.'", max_size=20)).strip() if task.transcribes else ""
    known: dict[str, Any] = {kind: data.draw(st.sampled_from([None, *VALUES[kind]])) for kind in task.labels}
    labels = Labels(**known)
    parsed = parse_understanding(task, format_understanding(task, words, labels))
    assert (parsed.text, parsed.labels) == (words, labels)


def test_missing_tags_go_where_they_belong() -> None:
    parsed = parse_understanding(TASKS["understand"], "hello<OLD><COUGH>")
    assert parsed.labels == Labels(age="old", sound_event="cough")
    assert parse_understanding(TASKS["understand"], "hello").labels == Labels()


def test_transcribe_then_answer() -> None:
    text = format_understanding(TASKS["asr_chat"], "hi", None, "hello")
    assert text == "hi<开始回答>hello"
    parsed = parse_understanding(TASKS["asr_chat"], text)
    assert (parsed.text, parsed.reply) == ("hi", "hello")


@given(st.text(max_size=40))
def test_parsing_understanding_never_raises(text: str) -> None:
    for task in LABELLING:
        parse_understanding(task, text)
    assert parse_understanding(TASKS["asr"], text).labels == Labels()
