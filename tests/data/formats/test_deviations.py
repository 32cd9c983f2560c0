"""One test for each row of the table in docs/data_formats.md, named like the row."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from echat.data.defects import DataError, DefectKind
from echat.data.formats.corpus import open_corpus
from echat.data.sample import AudioRef, Sample
from echat.data.tools.conversion import ConversionConfig, convert

DOCUMENT = Path(__file__).parents[3] / "docs" / "data_formats.md"


def wav(seconds: float = 0.1, level: float = 0.5) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(round(16000 * seconds), level), 16000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def write_tar(path: Path, *members: tuple[str, str | bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_raw(folder: Path, *rows: dict | str) -> Path:
    (folder / "a.wav").write_bytes(wav())
    lines = [
        row if isinstance(row, str) else json.dumps({"wav": "a.wav", "txt": "hi", **row}, ensure_ascii=False)
        for row in rows
    ]
    path = folder / "data.list"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def by_key(corpus) -> dict[str, Sample | DefectKind]:
    """Samples, and the kinds of defects of those refused."""
    found = {}
    for index in range(len(corpus)):
        try:
            found[corpus[index].key] = corpus[index]
        except DataError as error:
            found[error.defect.key or error.defect.place] = error.defect.kind
    return found


def published_corpus(published: Path, name: str):
    lists = {"raw": "raw/data.list", "shard": "shard/shards_list.txt", "combine": "combine/combines_list.txt"}
    return open_corpus(published / lists[name])


def test_every_row_of_the_table_has_its_test():
    rows = re.findall(
        r"^\| ([a-z0-9-]+) \|", DOCUMENT.read_text("utf-8").split("## Where echat differs")[1], re.M
    )
    rows.remove("row")
    missing = [row for row in rows if f"test_{row.replace('-', '_')}" not in globals()]
    assert len(rows) > 20 and not missing


@pytest.mark.parametrize("name", ["raw", "shard", "combine"])
def test_history_in_all_formats(published, name):
    sample = by_key(published_corpus(published, name))["fx_s2s_hist_006"]
    (turn,) = sample.history
    assert turn.reply == "今天天气晴朗，很适合出门。" and len(turn.speech_ids) == 90
    assert turn.audio.read_bytes() == (published / "raw/wav/fx_s2s_hist_006_q1.wav").read_bytes()


def test_history_is_trained(published):
    sample = by_key(published_corpus(published, "shard"))["fx_s2s_hist_006"]
    assert sample.task == "s2s" and len(sample.speech_ids) == 100 and sample.history


def test_label_only_targets(tmp_path):
    corpus = open_corpus(write_raw(tmp_path, {"key": "k", "task": "<EMOTION>", "txt": "<HAPPY>"}))
    assert corpus[0].target == "<HAPPY>" and corpus[0].labels.emotion == "happy" and corpus[0].text is None


def test_unknown_stays_unknown(published):
    labels = by_key(published_corpus(published, "raw"))["fx_s2s_lang_003"].labels
    assert (labels.emotion, labels.sound_event) == (None, None)


def test_either_thought(published):
    found = by_key(published_corpus(published, "combine"))
    assert found["fx_s2s_tag_002"].task == "s2s_think_label"
    assert found["fx_s2s_lang_003"].task == "s2s_think_language"


def test_no_noise_for_sound(tmp_path):
    typed = (("t.txt", "yes"), ("t.task", "<TEXT2TEXT>"), ("t.extra", '{"question": "well?"}'))
    heard = (("h.txt", "yes"), ("h.task", "<TRANSCRIBE>"))
    found = by_key(open_corpus(write_tar(tmp_path / "a.tar", *typed, *heard)))
    assert found["t"].audio is None and found["h"] is DefectKind.MISSING_AUDIO


def test_members_anywhere(published):
    corpus = open_corpus(published / "edge/shards_list.txt")
    keys = [corpus[index].key for index in range(8)]
    assert keys.count("e4_split") == 1 and keys.index("e4_split") == 3
    assert corpus[3].text == "分开的成员" and len(corpus[3].audio.read_bytes()) == 32044


def test_last_record_like_any(tmp_path):
    members = [("a.wav", wav()), ("b.txt", "b"), ("b.wav", wav()), ("c.wav", wav())]
    found = by_key(open_corpus(write_tar(tmp_path / "a.tar", *members)))
    assert found["a"] is found["c"] is DefectKind.MISSING_FIELD and found["b"].text == "b"


def test_row_before_tar(published):
    found = by_key(open_corpus(published / "edge/combines_list.txt"))
    assert found["c1_stale"].text == "新文本"
    assert (found["c3_wavonly"].text, found["c3_wavonly"].task) == ("只有音频成员", "asr_emotion")
    assert "c2_missing" not in found  # the rows say which records there are


def test_row_without_task(tmp_path):
    write_tar(tmp_path / "a.tar", ("x.wav", wav()), ("x.task", "<AGE>"), ("y.wav", wav()))
    rows = [{"key": key, "txt": "<OLD>", "wav": "only-meta", "extra": {}} for key in "xy"]
    (tmp_path / "a.list").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = by_key(open_corpus(tmp_path / "a.list", tar_root=tmp_path))
    assert found["x"].task == "age" and found["y"] is DefectKind.MISSING_FIELD


def test_conversion_keeps_tasks(published):
    out = published / "out"
    convert(ConversionConfig(source=str(published / "shard"), out=str(out), to="combine"))
    ours = [(sample.key, sample.task) for sample in open_corpus(out)]
    assert ours == [(sample.key, sample.task) for sample in published_corpus(published, "shard")]


def test_names_without_dot(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("README"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in (("k.txt", b"hi"), ("k.wav", wav())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    corpus = open_corpus(tmp_path / "a.tar")
    assert [sample.text for sample in corpus] == ["hi"]
    assert [(defect.kind, defect.place) for defect in corpus.defects()] == [
        (DefectKind.FOREIGN_MEMBER, "member README"),
        (DefectKind.FOREIGN_MEMBER, "member folder/"),
    ]


def test_blank_lines(tmp_path):
    path = write_raw(tmp_path, {"key": "a"}, "", "  ", "{broken", {"key": "b", "txt": None}, {"key": "c"})
    found = by_key(open_corpus(path))
    assert found["line 4"] is DefectKind.BAD_JSON and found["b"] is DefectKind.MISSING_FIELD
    assert found["a"].text == found["c"].text == "hi" and len(found) == 4


def test_first_key_counts(tmp_path):
    path = write_raw(tmp_path, {"key": "a", "txt": "one"}, {"key": "b"}, {"key": "a", "txt": "two"})
    corpus = open_corpus(path)
    assert corpus[0].text == "one"
    with pytest.raises(DataError, match="line 3, record a: .* found that of line 1") as caught:
        corpus[2]
    assert caught.value.defect.kind is DefectKind.DUPLICATE_KEY


def test_no_forbidden_names(published):
    assert by_key(open_corpus(published / "edge/shards_list.txt"))["e8_name"].text == "我是一个大型语言模型"


def test_question_is_no_instruction(tmp_path):
    sample = open_corpus(write_raw(tmp_path, {"key": "k", "extra": {"question": "hi"}}))[0]
    assert sample.task == "asr" and sample.prompt is None and sample.extra["extra"] == {"question": "hi"}


def test_unknown_task_is_named(tmp_path):
    rows = ({"key": "a", "task": "<S2TCHAT> <THINK>"}, {"key": "b", "task": "<TRANSCRIBE><GENDER>"})
    found = by_key(open_corpus(write_raw(tmp_path, *rows)))
    assert found["a"] is DefectKind.UNKNOWN_TASK and found["b"].task == "asr_gender"


def test_ids_in_range(tmp_path):
    row = {"key": "a", "task": "<TEXT2TOKEN>", "extra": {"speech_token": [1] * 9 + [4096]}}
    corpus = open_corpus(write_raw(tmp_path, row))
    with pytest.raises(DataError, match=r"expected ids in 0\.\.4095, found 4096 at position 9; .* strip"):
        corpus[0]
    assert len(open_corpus(tmp_path / "data.list", codec_size=5000)[0].speech_ids) == 10


def test_speech_not_shorter(published):
    assert by_key(open_corpus(published / "edge/shards_list.txt"))["e10_ratio"] is DefectKind.SPEECH_TOO_SHORT


@pytest.mark.parametrize("name", ["shard", "combine"])
def test_metadata_in_all_formats(published, name):
    sample = published_corpus(published, name)[0]
    assert (sample.language, sample.seconds, sample.labels.gender) == ("cn", 1.2, "male")
    assert sample.extra["speaker"] == "spk_a"


def test_one_line_texts(tmp_path):
    row = {"key": "k", "task": "<TRANSCRIBE> <STYLE>", "txt": "once\nupon <小说>"}
    assert open_corpus(write_raw(tmp_path, row))[0].target == "once upon<有声书>"


def test_full_scale_stays(tmp_path):
    path = write_raw(tmp_path, {"key": "k", "lang": "中文", "speaker": "说话人"})
    loud = wav(level=0.5)[:44] + struct.pack("<h", 32767) * 1600
    (tmp_path / "a.wav").write_bytes(loud)
    convert(ConversionConfig(source=str(path), out=str(tmp_path / "out"), to="shard"))
    sample = open_corpus(tmp_path / "out")[0]
    assert sample.audio.read_bytes() == loud
    assert (sample.language, sample.extra["speaker"]) == ("中文", "说话人")


def test_whole_records_only(tmp_path):
    path = write_raw(
        tmp_path, {"key": "a"}, {"key": "b", "wav": "gone.wav"}, {"key": "c"}, {"key": "d", "wav": "gone"}
    )
    out = tmp_path / "out"
    report = convert(ConversionConfig(source=str(path), out=str(out), to="shard", shard_size=3))
    with tarfile.open(out / "shards_000000000.tar") as tar:
        assert {name.split(".")[0] for name in tar.getnames()} == {"a", "c"}
    assert (out / "shards_list.txt").read_text() == "shards_000000000.tar\n"
    assert report.records == 2 and report.defects.counts == {DefectKind.MISSING_AUDIO: 2}


def test_bar_in_a_path(tmp_path):
    folder = tmp_path / "a|b|c"
    folder.mkdir()
    write_tar(folder / "x.tar", ("k.txt", "hi"), ("k.wav", wav()))
    (tmp_path / "shards_list.txt").write_text("a|b|c/x.tar\n-|a|b|c/x.tar\n")
    assert [sample.text for sample in open_corpus(tmp_path / "shards_list.txt", "shard")] == ["hi", "hi"]


def test_object_stores(tmp_path):
    store = fsspec.filesystem("memory")
    write_tar(tmp_path / "x.tar", ("k.txt", "hi"), ("k.wav", wav()))
    store.pipe("/data/x.tar", (tmp_path / "x.tar").read_bytes())
    store.pipe("/data/shards_list.txt", b"x.tar\ngone.tar\n")
    corpus = open_corpus("memory://data/shards_list.txt")
    (sample,) = corpus
    assert sample.text == "hi" and sample.audio.read_bytes() == wav()
    assert [defect.kind for defect in corpus.defects()] == [DefectKind.MISSING_FILE]


def test_label_alone_by_choice(published):
    corpus = open_corpus(published / "edge/shards_list.txt", without_transcript=True)
    found = by_key(corpus)
    assert (found["e7_style"].task, found["e7_style"].target) == ("style", "<有声书>")
    assert (found["e11_sttc"].task, found["e11_sttc"].reply) == ("s2t", "今天是三号。")
    assert found["e2.dotted.key"].task == "asr"


def test_a_stretch_of_a_file_is_cut_when_it_moves_into_a_tar(tmp_path):
    noise = np.random.default_rng(0).integers(-9000, 9000, 16000, dtype=np.int16)
    path = write_raw(tmp_path, {"key": "k", "start": 0.25, "end": 0.5})
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype="PCM_16")
    assert open_corpus(path)[0].audio == replace(
        AudioRef(str(tmp_path / "a.wav")), start_seconds=0.25, end_seconds=0.5
    )
    convert(ConversionConfig(source=str(path), out=str(tmp_path / "out"), to="shard"))
    stored = open_corpus(tmp_path / "out")[0].audio
    samples, _ = soundfile.read(io.BytesIO(stored.read_bytes()), dtype="int16")
    assert np.array_equal(samples, noise[4000:8000]) and stored.start_seconds is None
