from __future__ import annotations

from dataclasses import replace

import pytest

from echat.data.defects import DataError, DefectKind
from echat.data.formats.audio_folder import AudioFolder, is_under, root_of
from echat.data.formats.manifest import row_of, sample_of
from echat.data.sample import AudioRef, Sample, Turn, speech_units
from echat.dialogue.labels import Labels


def test_words_that_no_table_knows_are_kept():
    row = {"key": "k", "text": "hi", "emotion": "boredom", "age": "adult", "sound_event": "thunder"}
    sample = sample_of(row, AudioFolder("."))
    assert sample.labels == Labels(age="adult", sound_event="other")
    assert sample.extra == {"emotion": "boredom", "sound_event": "thunder"}
    assert sample_of(row_of(sample, "."), AudioFolder(".")) == sample


def test_sound_in_a_tar_is_named_by_its_place():
    ref = AudioRef("/data/a.tar", offset=512, size=9, member="k.wav")
    sample = Sample("k", audio=replace(ref, start_seconds=0.5), history=(Turn(ref, "a", "b"),))
    assert sample_of(row_of(sample, "/data"), AudioFolder("/data")) == sample


@pytest.mark.parametrize("path", ["../a.wav", "x/../../a.wav", "audio/../../b/a.wav"])
def test_a_path_that_leads_out_is_refused(path):
    with pytest.raises(DataError, match="field audio: expected a path inside /data/set") as caught:
        sample_of({"key": "k", "audio": path}, AudioFolder.closed("/data/set"))
    assert caught.value.defect.kind is DefectKind.PATH_ESCAPE
    assert sample_of({"key": "k", "audio": path}, AudioFolder("/data/set", "/data")).audio.path.startswith(
        "/data/set"
    )


def test_where_names_begin(tmp_path, monkeypatch):
    (tmp_path / "set" / "lists").mkdir(parents=True)
    (tmp_path / "set" / "a.wav").touch()
    listed = str(tmp_path / "set" / "lists" / "data.list")
    assert root_of(listed, ["gone.wav", "a.wav"]) == str(tmp_path / "set")
    assert root_of(listed, ["nowhere.wav"]) == str(tmp_path / "set" / "lists")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.wav").touch()
    assert root_of(listed, ["here.wav"]) == "."
    assert is_under("s3://b/x/y", "s3://b/x") and not is_under("s3://b/x/../y", "s3://b/x")


@pytest.mark.parametrize(
    ("text", "units"),
    [("", 0), ("don't stop", 2), ("今天好", 3), ("こんにちは hello", 6), ("... 3.5!", 2), ("한국어", 3)],
)
def test_what_takes_time_to_say(text, units):
    assert speech_units(text) == units


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"task": "asr_emotoin"}, DefectKind.UNKNOWN_TASK),
        ({"reply_emotion": "furious"}, DefectKind.BAD_FIELD),
        ({"seconds": float("nan")}, DefectKind.BAD_FIELD),
        ({"speech_ids": (1, 4096)}, DefectKind.SPEECH_ID_RANGE),
        ({"reply": "one two three four five six", "speech_ids": (1, 2)}, DefectKind.SPEECH_TOO_SHORT),
        ({"history": (Turn(None, None, "yes", (9999,)),)}, DefectKind.SPEECH_ID_RANGE),
        ({"thought": 3}, DefectKind.BAD_FIELD),
    ],
)
def test_fields_are_checked_one_by_one(change, kind):
    assert [found for found, _ in replace(Sample("k"), **change).defects()] == [kind]


def test_a_stretch_must_be_one():
    with pytest.raises(DataError, match="expected 0 <= start < end"):
        AudioRef("a.wav", 2.0, 1.0)
    with pytest.raises(DataError, match="offset and size"):
        AudioRef("a.tar", offset=3)
