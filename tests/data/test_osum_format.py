from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from echat.data.osum_format import from_raw, read_raw, to_raw, write_raw
from echat.data.sample import AudioRef, DataError, Sample, Turn
from echat.dialogue.labels import Labels

EMOTION = {
    "key": "fx_1",
    "wav": "q.wav",
    "txt": "终于 放假了 hello OK <HAPPY>\n",
    "task": "<TRANSCRIBE> <EMOTION>",
    "lang": "cn",
    "speaker": "spk_a",
    "extra": {"duration": 1.2, "dataset": "fixture"},
}
SPOKEN = {
    "key": "fx_2",
    "wav": "q2.wav",
    "txt": "<愉悦>小朋友早上好呀",
    "task": "<S2TCHAT> <TEXT2TOKEN> <THINK>",
    "txt_1": "earlier reply",
    "wav_1": "q1.wav",
    "extra": {
        "age": "<CHILD>",
        "gender": "MALE",
        "q_emotion": "HAPPY",
        "caption": "<LAUGH>",
        "q_txt": "早上好",
        "speech_token": ["970", 1884],
        "speech_token_1": [1],
    },
}


def test_an_understanding_record_keeps_its_target(tmp_path):
    sample = from_raw(EMOTION, tmp_path)
    assert sample.task == "asr_emotion" and sample.target == "终于放假了hello OK<HAPPY>"
    assert sample.text == "终于放假了hello OK" and sample.seconds == 1.2
    assert sample.extra["speaker"] == "spk_a" and sample.audio == AudioRef(str(tmp_path / "q.wav"))


def test_a_label_only_target_is_not_emptied(tmp_path):
    sample = from_raw({**EMOTION, "task": "<EMOTION>", "txt": "<HAPPY>"}, tmp_path)
    assert sample.target == "<HAPPY>" and sample.text is None


def test_a_spoken_reply_comes_with_labels_history_and_ids(tmp_path):
    sample = from_raw(SPOKEN, tmp_path)
    assert sample.task == "s2s_think_label"
    assert (sample.reply_emotion, sample.reply) == ("愉悦", "小朋友早上好呀")
    assert sample.labels == Labels("child", "male", "happy", "laugh")
    assert sample.text == "早上好" and sample.speech_ids == (970, 1884)
    assert sample.history == (Turn(AudioRef(str(tmp_path / "q1.wav")), None, "earlier reply", (1,)),)


def test_thinking_text_chooses_the_language_form(tmp_path):
    record = json.loads(json.dumps(SPOKEN))
    record["extra"]["think_str"] = "The child is happy."
    sample = from_raw(record, tmp_path)
    assert sample.task == "s2s_think_language" and sample.thought == "The child is happy."


def test_reading_aloud_has_no_question_sound(tmp_path):
    record = {
        "key": "t",
        "wav": "a.wav",
        "txt": "hi",
        "task": "TEXT2TOKEN",
        "speech_token": [5],
        "extra": "{}",
    }
    sample = from_raw(record, tmp_path)
    assert (
        sample.task == "tts" and sample.audio is None and sample.reply == "hi" and sample.speech_ids == (5,)
    )


SAMPLES = [
    from_raw(EMOTION, Path("/data")),
    from_raw(SPOKEN, Path("/data")),
    Sample(
        key="segment",
        task="s2s",
        audio=AudioRef("/data/long.wav", 1.5, 2.25),
        text="a",
        reply="b",
        speech_ids=(1, 2),
        language="en",
        extra={"extra": {}},
    ),
    Sample(key="chat", task="asr_chat", audio=AudioRef("/a.wav"), text="a", reply="b", extra={"extra": {}}),
    Sample(key="typed", task="t2t", text="a", reply="b", extra={"extra": {}}),
]


def test_reading_undoes_writing(tmp_path):
    path = tmp_path / "raw.list"
    assert write_raw(SAMPLES, path) == len(SAMPLES)
    again = read_raw(path, "/")
    for before, after in zip(SAMPLES, again, strict=True):
        assert replace(after, source="", extra={}) == replace(before, source="", extra={})
        kept = {k: v for k, v in after.extra.items() if k != "extra"}
        assert kept == {k: v for k, v in before.extra.items() if k != "extra"}


def test_writing_undoes_reading(tmp_path):
    record = to_raw(from_raw(SPOKEN, tmp_path))
    assert to_raw(from_raw(record, tmp_path)) == record
    assert record["extra"]["speech_token"] == [970, 1884] and record["txt"] == SPOKEN["txt"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": None}, "field key"),
        ({"txt": None}, "record fx_1: field txt"),
        ({"task": "<NOPE>"}, "task tag"),
        ({"txt_2": "a"}, "fields txt_N: expected 1..1 without gaps, found"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path, change, complaint):
    path = tmp_path / "raw.list"
    path.write_text(json.dumps(EMOTION) + "\n" + json.dumps({**EMOTION, **change}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"line 2: .*{complaint}"):
        read_raw(path)
