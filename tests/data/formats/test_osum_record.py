from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.data.defects import DataError
from echat.data.formats.audio_folder import AudioFolder
from echat.data.formats.corpus import open_corpus
from echat.data.formats.manifest import row_of, sample_of
from echat.data.formats.osum_record import from_record, to_record
from echat.data.sample import AudioRef, Sample, Turn
from echat.dialogue.labels import REPLY_EMOTIONS, VALUES, Labels
from echat.dialogue.tasks import TASKS

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
SOUNDS = {"wav": AudioRef("q.wav"), "wav_1": AudioRef("q1.wav")}
ONE = {"wav": AudioRef("q.wav")}


def test_an_understanding_record_keeps_its_target():
    sample = from_record(EMOTION, ONE)
    assert sample.task == "asr_emotion" and sample.target == "终于放假了hello OK<HAPPY>"
    assert sample.text == "终于放假了hello OK" and sample.seconds == 1.2 and sample.source == "fixture"
    assert sample.extra["speaker"] == "spk_a" and sample.audio == ONE["wav"]
    assert sample.labels == Labels(emotion="happy")


def test_a_spoken_reply_comes_with_labels_history_and_ids():
    sample = from_record(SPOKEN, SOUNDS)
    assert sample.task == "s2s_think_label"
    assert (sample.reply_emotion, sample.reply) == ("愉悦", "小朋友早上好呀")
    assert sample.labels == Labels("child", "male", "happy", "laugh")
    assert sample.text == "早上好" and sample.speech_ids == (970, 1884)
    assert sample.history == (Turn(AudioRef("q1.wav"), None, "earlier reply", (1,)),)


def test_reading_aloud_has_no_question_sound():
    record = {"key": "t", "txt": "hi", "task": "TEXT2TOKEN", "speech_token": [5], "extra": "{}"}
    sample = from_record(record, ONE)
    assert sample.task == "tts" and sample.audio is None and sample.reply_audio == ONE["wav"]
    assert sample.reply == "hi" and sample.speech_ids == (5,)


@pytest.mark.parametrize("record", [EMOTION, SPOKEN])
def test_writing_undoes_reading(record):
    written, sounds = to_record(from_record(record, SOUNDS if "wav_1" in record else ONE))
    wanted = {name: value for name, value in record.items() if not name.startswith("wav")}
    wanted["txt"] = wanted["txt"].strip()
    extra = (
        {**wanted["extra"], "speech_token": [970, 1884]}
        if "speech_token" in wanted["extra"]
        else wanted["extra"]
    )
    assert written == {**wanted, "extra": extra}
    assert set(sounds) == {name for name in record if name.startswith("wav")}


def test_aliases_of_tags_are_written_as_they_were_read():
    record = {"key": "k", "txt": "x", "task": "<TRANSCRIBE><GENDER>", "extra": {"caption": "church_bells"}}
    sample = from_record(record, ONE)
    assert (sample.task, sample.labels.sound_event) == ("asr_gender", "other")
    assert to_record(sample)[0] == record
    changed = to_record(replace(sample, labels=Labels(sound_event="cough"), task="asr"))[0]
    assert changed["extra"]["caption"] == "<COUGH>" and changed["task"] == "<TRANSCRIBE>"


texts = st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12)
ids = st.none() | st.lists(st.integers(0, 4095), min_size=1, max_size=9).map(tuple)
refs = st.none() | st.builds(AudioRef, st.just("a.wav"), st.none() | st.just(0.5), st.none() | st.just(1.5))
labels = st.builds(
    Labels,
    **{
        kind: st.none() | st.sampled_from(VALUES[kind])
        for kind in ("age", "gender", "emotion", "sound_event")
    },
)
samples = st.builds(
    Sample,
    key=st.just("k"),
    audio=refs,
    text=texts,
    labels=labels,
    task=st.none() | st.sampled_from(sorted(TASKS)),
    prompt=texts,
    target=texts,
    reply=texts,
    reply_emotion=st.none() | st.sampled_from(REPLY_EMOTIONS),
    reply_audio=refs,
    speech_ids=ids,
    thought=texts,
    history=st.lists(st.builds(Turn, refs, texts, st.just("yes"), ids), max_size=2).map(tuple),
    language=st.none() | st.just("en"),
    split=st.none() | st.just("dev"),
    source=st.just("corpus"),
    seconds=st.none() | st.floats(0.0, 60.0),
    extra=st.dictionaries(st.sampled_from(["speaker", "emotion_raw", "age", "gender"]), texts, max_size=3),
)


@given(samples)
@settings(max_examples=60)
def test_any_sample_survives_a_manifest(sample):
    row = json.loads(json.dumps(row_of(sample, "")))
    assert sample_of(row, AudioFolder(""), "corpus") == sample


@given(samples)
@settings(max_examples=60)
def test_any_sample_survives_the_published_record(sample):
    record, sounds = to_record(sample)
    again = from_record(json.loads(json.dumps(record)), sounds)
    assert replace(again, extra={}) == replace(sample, extra={})
    kept = {name: value for name, value in sample.extra.items() if value != "none"}
    assert {name: value for name, value in again.extra.items() if name not in ("txt", "task")} == kept


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": None}, "field key"),
        ({"txt": None}, "record fx_1: field txt"),
        ({"wav": 3}, "record fx_1: field wav: expected a path, found 3"),
        ({"task": "<NOPE>"}, "task tag"),
        ({"txt_2": "a"}, "fields txt_N: expected 1..1 without gaps, found"),
        ({"extra": {"speech_token": "123"}}, "expected a list of integers"),
        ({"extra": {"duration": "long"}}, "field duration: expected seconds, found 'long'"),
        ({"extra": {"echat": {"labels": {"age": "ancient"}}}}, "label age"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path, change, complaint):
    path = tmp_path / "raw.list"
    path.write_text(
        json.dumps({**EMOTION, "key": "fx_0"}) + "\n" + json.dumps({**EMOTION, **change}) + "\n",
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=f"line 2.*{complaint}"):
        list(open_corpus(path, "raw", root=tmp_path, within="/"))
